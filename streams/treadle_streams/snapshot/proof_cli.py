"""`treadle corpus rebuild`, and what `treadle corpus verify --from-log` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from treadle.cli.support import echo_json, json_option, pass_settings
from treadle.settings import Settings
from treadle_corpus import Manifest, erasures, parse_ref, resolve_target
from treadle_schemas.moments import now

from treadle_streams.snapshot._erased import erasures_json, erasures_line
from treadle_streams.snapshot.errors import ReplayError
from treadle_streams.snapshot.replay import prove
from treadle_streams.snapshot.replay import rebuild as make_again

__all__ = ["archive_option", "rebuild", "verify_from_log"]

archive_option = click.option(
    "--archive",
    "archives",
    metavar="TARGET",
    multiple=True,
    help="Read what the log has no more from here, beside the archives that the workspace names. Repeatable.",
)


def verify_from_log(
    settings: Settings,
    path: Path,
    numbers: Sequence[int],
    verified: list[dict[str, Any]] | None,
    archives: Sequence[str] = (),
) -> None:
    """Prove versions and print what was proven. With `verified`, what lay on disk as it should, all as JSON, also what could not be.

    Raises what `prove` does.
    """
    proven: list[dict[str, Any]] = []
    erased = erasures(path)
    try:
        for made in prove(settings.bootstrap_servers, path, numbers, _tell, archives):
            proven.append({**_entry(made), "erasures": erasures_json(erased, made.version)})
            if verified is None:
                offsets = ", ".join(f"{partition}:{offset}" for partition, offset in made.offsets.items())
                click.echo(
                    f"{path}@v{made.version}  {made.rows:,} rows  content hash {made.content_hash}  proven by the log up to {offsets}"
                    + (", without what was erased" if erasures_line(erased, made.version) else "")
                )
    except ReplayError as err:
        if verified is not None:
            echo_json({"corpus": str(path), "verified": verified, "proven": proven, "failed": err.to_json()})
        raise
    if verified is not None:
        echo_json({"corpus": str(path), "verified": verified, "proven": proven, "failed": None})


@click.command()
@click.argument("ref", metavar="PATH")
@click.option("--to", "target", metavar="NEWPATH", help="Put it there, where nothing is yet, and leave the old one.")
@click.option("--as-of", metavar="vN", help="Up to this version; needs --to where there are newer ones.")
@archive_option
@json_option
@pass_settings
def rebuild(
    settings: Settings, ref: str, target: str | None, as_of: str | None, archives: tuple[str, ...], as_json: bool
) -> None:
    """Make a corpus again from the log: every version that it has, under its number, each compared with the old one.

    Without --to the new corpus takes the place of the old one, which is not touched before the new one is whole; meanwhile nobody may
    write it, or read it at the end. Of the old one only versions/ must be readable, so a damaged corpus can be made whole. Tags are
    kept. Exits with 1 where the log gives something else, and says what.
    """
    parsed = parse_ref(ref, settings.corpus_root)
    if parsed.version is not None:
        raise click.UsageError(
            "a corpus is rebuilt with all its versions; name it without @, and --as-of vN --to NEWPATH"
        )
    number = None if as_of is None else parse_ref(f"{ref}@{as_of.lstrip('@')}", settings.corpus_root).version
    if as_of is not None and number is None:
        raise click.UsageError(f"--as-of {as_of}: expected a version, as v3")
    if number is not None and target is None:
        raise click.UsageError("--as-of leaves newer versions out; name --to NEWPATH, so that they are not lost")
    to = None if target is None else resolve_target(target, settings.corpus_root)
    try:
        made = make_again(settings.bootstrap_servers, parsed.path, to=to, as_of=number, tell=_tell, archives=archives)
    except ReplayError as err:
        if as_json:
            echo_json({"corpus": str(to or parsed.path), "rebuilt": [], "failed": err.to_json()})
        raise
    if as_json:
        echo_json({"corpus": str(to or parsed.path), "rebuilt": [_entry(m) for m in made], "failed": None})
        return
    for manifest in made:
        click.echo(
            f"{to or parsed.path}@v{manifest.version}  {manifest.rows:,} rows  content hash {manifest.content_hash}  as before"
        )


def _entry(made: Manifest) -> dict[str, Any]:
    return {"version": made.version, "rows": made.rows, "content_hash": made.content_hash, "offsets": made.offsets}


def _tell(text: str) -> None:
    click.echo(f"{now()} {text}", err=True)
