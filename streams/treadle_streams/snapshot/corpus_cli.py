"""`treadle corpus list|show|log|diff|verify|tag|prune|rebuild|export|exports`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from treadle.cli.support import SuggestingGroup, echo_json, json_option, pass_settings
from treadle.settings import Settings
from treadle_corpus import Corpus, CorpusError, Manifest, name_of, parse_ref, resolve_target, versions
from treadle_corpus.objects import is_object_url, published_below
from treadle_schemas.codec import to_json

from treadle_streams.exporting.commands import export, exports_
from treadle_streams.snapshot._erased import erasures_json
from treadle_streams.snapshot.history_cli import diff, log, tag, verify
from treadle_streams.snapshot.proof_cli import rebuild
from treadle_streams.snapshot.prune_cli import prune

__all__ = ["corpus"]


@click.group(cls=SuggestingGroup)
def corpus() -> None:
    """Look into corpora, compare, name and prove their versions, and export views of them."""


for _command in (export, exports_, log, diff, verify, tag, prune, rebuild):
    corpus.add_command(_command)


@corpus.command()
@click.argument("ref", metavar="PATH[@vN|@TAG]")
@json_option
@pass_settings
def show(settings: Settings, ref: str, as_json: bool) -> None:
    """Show a version: rows, split, completeness, pass^k, what was dropped, offsets. Without @vN the newest one.

    pass^k is the chance that k attempts at one task all succeed (reward > 0), averaged over the tasks with k graded attempts.
    """
    found = Corpus.open(parse_ref(ref, settings.corpus_root))
    if as_json:
        echo_json(
            {
                "corpus": found.name,
                **to_json(found.manifest),
                "tags": found.tags(),
                "versions": found.versions(),
                "erasures": erasures_json(found.erasures(), found.version),
            }
        )
        return
    for line in _lines(found):
        click.echo(line)


@corpus.command("list")
@click.argument("folder", required=False, metavar="[FOLDER]")
@json_option
@pass_settings
def list_(settings: Settings, folder: str | None, as_json: bool) -> None:
    """List the corpora below a folder or s3://BUCKET/PREFIX, by default the corpus root and TREADLE_HOME/corpora."""
    if folder is not None and is_object_url(folder):
        entries = [_entry(resolve_target(url)) for url in published_below(folder)]
        _show_entries(entries, as_json)
        return
    roots = {settings.corpus_root, settings.home / "corpora"} if folder is None else {Path(folder).absolute()}
    _show_entries([_entry(path) for root in sorted(roots) for path in _corpora(root)], as_json)


def _show_entries(entries: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        echo_json(entries)
        return
    for entry in entries:
        click.echo(
            f"{entry['corpus']}  {entry['problem']}"
            if entry["problem"]
            else f"{entry['corpus']}@v{entry['version']}  {entry['rows']:,} rows  workspace {entry['workspace']}"
        )
    if not entries:
        click.echo("no corpus yet: treadle snapshot WORKSPACE", err=True)


def _corpora(root: Path) -> list[Path]:
    """Folders with a corpus' marker, at most two below the root. A hidden one is being made by a rebuild."""
    found = (marker.parent for depth in ("*", "*/*") for marker in root.glob(f"{depth}/corpus.json"))
    return sorted(path for path in found if not path.name.startswith("."))


def _entry(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"corpus": name_of(path), "version": None, "rows": None, "workspace": None, "problem": None}
    try:
        if not versions(path):
            return {**entry, "problem": "no version yet"}
        found = Corpus.open(path)
    except CorpusError as err:
        return {**entry, "problem": str(err)}
    return {**entry, "version": found.version, "rows": found.manifest.rows, "workspace": found.manifest.workspace}


def _lines(found: Corpus) -> Iterator[str]:
    made: Manifest = found.manifest
    yield f"{found}   {made.rows:,} rows   workspace {made.workspace}   made {made.created_at} by treadle {made.code_version}"
    yield f"  policy        {made.policy}"
    yield f"  content hash  {made.content_hash}"
    yield f"  split         train {made.split['train']:,}, held-out {made.split['heldout']:,}"
    yield f"  since before  added {made.added:,}, updated {made.updated:,}, removed {made.removed:,}, new rows {made.new_rows:,}"
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in made.dropped.items() if count) or "nothing"
    yield f"  dropped       {dropped}; pending {made.pending:,}"
    for name, states in made.completeness.items():
        yield f"  metric        {name}: " + ", ".join(
            f"{state} {states[state]:,}" for state in ("observed", "absent", "pending")
        )
    passed = ", ".join(f"pass^{k} {value:.3f}" for k, value in made.pass_at_all.items() if value is not None)
    yield f"  tasks         {passed or 'no graded attempts'}"
    yield "  offsets       " + ", ".join(f"{p}:{offset}" for p, offset in made.offsets.items())
    erased = erasures_json(found.erasures(), found.version)
    for one in erased:
        yield (
            f"  erasure       {one['erasure']} of {one['erased_at']} ({one['reason']}) took out {one['removed']:,} of "
            f"{one['rows_before']:,} rows; before it the content hash was {one['content_hash_before']}"
        )
    tags = found.tags()
    if tags:
        yield "  tags          " + ", ".join(tags)
    there = found.versions()
    few = ", ".join(f"v{n}" for n in there)
    yield "  versions      " + (few if len(there) <= 8 else f"v{there[0]} to v{there[-1]}, {len(there):,} of them")
