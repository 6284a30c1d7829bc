"""`treadle indexer` and `treadle recall`."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click
import msgspec
from treadle.cli.support import echo_json, json_option, pass_settings, workspace_of
from treadle.errors import MissingExtra
from treadle.settings import Settings
from treadle_schemas.moments import now

__all__ = ["indexer", "recall"]


@click.command()
@click.option(
    "--workspace",
    "-w",
    "named",
    multiple=True,
    metavar="WS",
    help="May be given several times. Default: TREADLE_WORKSPACE.",
)
@click.option(
    "--embedder",
    metavar="PKG.MOD:FN",
    envvar="TREADLE_EMBEDDER",
    help="Rank by likeness as well: a function from texts to vectors (TREADLE_EMBEDDER).",
)
@click.option("--rebuild", is_flag=True, help="Make the index anew from the log.")
@click.option("--once", is_flag=True, help="End with 0 as soon as everything that is there is in it.")
@click.option("--verbose", "-v", is_flag=True, help="Say more on stderr.")
@pass_settings
def indexer(
    settings: Settings, named: tuple[str, ...], embedder: str | None, rebuild: bool, once: bool, verbose: bool
) -> None:
    """Keep the live index of workspaces up to their topics, for `treadle recall` and `Recorder.recall` on this machine.

    Interactions can be found within a second of being recorded, with the grade that they have at the moment. The index lies under
    TREADLE_HOME/index/WORKSPACE and has one writer. Runs until SIGTERM; it can be killed at any time.
    """
    with _extra("indexer"):
        from treadle_streams.live.embedding import load_embedder
        from treadle_streams.live.indexer import run_indexer

    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr)
    loaded = load_embedder(embedder) if embedder else None
    chosen = list(dict.fromkeys(named)) or [workspace_of(settings, None)]
    quit_ = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: quit_.set())
    failed: list[BaseException] = []

    def run(workspace: str) -> None:
        try:
            run_indexer(
                settings.bootstrap_servers,
                settings.home,
                workspace,
                quit_,
                embedder=loaded,
                rebuild=rebuild,
                once=once,
                tell=lambda text: click.echo(f"{now()} {text}", err=True),
            )
        except BaseException as err:
            # one that cannot go on ends all, so that whoever started them sees it
            failed.append(err)
            quit_.set()

    threads = [threading.Thread(target=run, args=(name,), name=f"indexer-{name}") for name in chosen]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)  # in pieces: a signal's handler runs in this thread only
    if failed:
        raise failed[0]


@click.command()
@click.argument("workspace")
@click.argument("query", nargs=-1, required=True)
@click.option(
    "--filter", "filter_", metavar="EXPR", help="SQL condition over columns, metrics, tags.NAME, state(METRIC), now."
)
@click.option("-n", "count", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many at most.")
@click.option("--words", is_flag=True, help="Rank by words alone, where the index has an embedder.")
@json_option
@pass_settings
def recall(
    settings: Settings,
    workspace: str,
    query: tuple[str, ...],
    filter_: str | None,
    count: int,
    words: bool,
    as_json: bool,
) -> None:
    """Find what agents did before, best first: snippet, grade and handle of each interaction.

    QUERY are plain words. Reads the index that `treadle indexer` keeps on this machine; Kafka is not asked.
    """
    with _extra("recall"):
        from treadle_streams.live.search import Recall

    hits = Recall(settings.home, workspace, hybrid=not words).search(" ".join(query), count, filter_)
    if as_json:
        echo_json([msgspec.to_builtins(hit) for hit in hits])
        return
    for hit in hits:
        reward = "-" if hit.reward is None else f"{hit.reward:g}"
        click.echo(
            f"{hit.handle}\n  {hit.state}  reward {reward}  {hit.agent}  {hit.ended_at[:19]}  score {hit.score:.4f}"
        )
        click.echo(f"  {hit.snippet}")
    if not hits:
        click.echo("nothing found", err=True)


@contextmanager
def _extra(command: str) -> Iterator[None]:
    """Name the extra where the index's library is missing; the command line itself only knows that of all commands here."""
    try:
        yield
    except ModuleNotFoundError as err:
        if err.name != "tantivy":
            raise
        raise MissingExtra(command, "tantivy", "recall") from err
