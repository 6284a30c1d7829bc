"""`treadle corpus log|diff|verify|tag`: the versions of a corpus, against each other and against what is on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import click
from treadle.cli.support import echo_json, json_option, pass_settings
from treadle.settings import Settings
from treadle_corpus import Corpus, CorpusRef, Diff, Manifest, RowChange, erasures, name_of, parse_ref, read_tags, untag
from treadle_schemas.codec import to_json

from treadle_streams.snapshot._erased import erasures_json, erasures_line
from treadle_streams.snapshot.proof_cli import archive_option, verify_from_log

__all__ = ["diff", "log", "tag", "verify"]

T = TypeVar("T")

_limit = click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many to print; --json prints all."
)


@click.command()
@click.argument("ref", metavar="PATH[@vN|@TAG]")
@_limit
@json_option
@pass_settings
def log(settings: Settings, ref: str, limit: int, as_json: bool) -> None:
    """List the versions of a corpus up to one, the newest first: what came, changed and left, and under which policy."""
    with Corpus.open(parse_ref(ref, settings.corpus_root)) as found:
        tags: dict[int, list[str]] = {}
        for name, version in read_tags(found.path).items():
            tags.setdefault(version, []).append(name)
        erased = erasures(found.path)
        if as_json:
            echo_json(
                [
                    {
                        **to_json(made),
                        "tags": tags.get(made.version, []),
                        "erasures": erasures_json(erased, made.version),
                    }
                    for made in found.log()
                ]
            )
            return
        count = 0
        for made in found.log():
            count += 1
            if count <= limit:
                click.echo(_version_line(made, tags.get(made.version, [])))
                changed = erasures_line(erased, made.version)
                if changed:
                    click.echo(f"    {changed}")
        if count > limit:
            click.echo(f"and {count - limit:,} before")


@click.command()
@click.argument("before", metavar="PATH@vA")
@click.argument("after", metavar="PATH@vB|@vB")
@_limit
@json_option
@pass_settings
def diff(settings: Settings, before: str, after: str, limit: int, as_json: bool) -> None:
    """Compare two versions row by row: ids that were added or removed, and of rows with other content what changed of them.

    The second may be @vB or @TAG alone, for the same corpus. `messages` stands for messages that are not those of before.
    """
    if after.startswith("@"):
        after = f"{_without_version(before, settings)}{after}"
    one = Corpus.open(parse_ref(before, settings.corpus_root))
    two = Corpus.open(parse_ref(after, settings.corpus_root))
    with one, two:
        found = one.diff(two)
        erased = {str(side): erasures_json(side.erasures(), side.version) for side in (one, two)}
        if as_json:
            echo_json({"before": str(one), "after": str(two), **_diff_json(found), "erasures": erased})
            return
        click.echo(
            f"{one} to v{two.version}: added {len(found.added):,}, removed {len(found.removed):,}, updated {len(found.updated):,}"
        )
        for line in _cut([f"  + {e}/{i}" for e, i in found.added], limit):
            click.echo(line)
        for line in _cut([f"  - {e}/{i}" for e, i in found.removed], limit):
            click.echo(line)
        for line in _cut([f"  ~ {_change_line(change)}" for change in found.updated], limit):
            click.echo(line)
        for side in (one, two):
            if erased[str(side)]:
                click.echo(f"  {side}: {erasures_line(side.erasures(), side.version)}")


@click.command()
@click.argument("ref", metavar="PATH[@vN|@TAG]")
@click.option("--all", "every", is_flag=True, help="Every version of the corpus.")
@click.option("--from-log", is_flag=True, help="Recompute it from the workspace's log too, with the version's policy.")
@archive_option
@json_option
@pass_settings
def verify(settings: Settings, ref: str, every: bool, from_log: bool, archives: tuple[str, ...], as_json: bool) -> None:
    """Read all that a version is made of and compare: checksums of its files, and its content hash with one computed anew.

    With --from-log the version is also made again in a temporary folder, from `.graded` up to the version's offsets without what was erased
    from the corpus, and must come out the same. Exits with 1 where something is not what was written, or not what the log gives, and says
    what. Nothing is changed.
    """
    with Corpus.open(parse_ref(ref, settings.corpus_root)) as named:
        numbers = named.versions() if every else [named.version]
        made: list[dict[str, Any]] = []
        for number in numbers:
            with Corpus.open(CorpusRef(named.path, number)) as found:
                found.verify()
                erased = found.erasures()
                made.append(
                    {
                        "version": number,
                        "rows": found.manifest.rows,
                        "content_hash": found.manifest.content_hash,
                        "erasures": erasures_json(erased, number),
                    }
                )
                if not as_json:
                    said = erasures_line(erased, number)
                    click.echo(
                        f"{found}  {found.manifest.rows:,} rows  content hash {found.manifest.content_hash}  ok"
                        + (f", as its erasure record says: {said}" if said else "")
                    )
        if from_log:
            verify_from_log(settings, named.path, numbers, made if as_json else None, archives)
        elif as_json:
            echo_json({"corpus": named.name, "verified": made})


@click.command()
@click.argument("ref", metavar="PATH[@vN]")
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--delete", is_flag=True, help="Take the tag away; the version stays.")
@click.option("--force", is_flag=True, help="Move a tag that names another version.")
@json_option
@pass_settings
def tag(settings: Settings, ref: str, name: str | None, delete: bool, force: bool, as_json: bool) -> None:
    """Name a version, so that PATH@NAME means it everywhere. Without NAME list the tags. A version with a tag is never removed."""
    if name is None:
        if delete or force:
            raise click.UsageError("--delete and --force need the NAME of a tag")
        with Corpus.open(parse_ref(ref, settings.corpus_root)) as found:
            tags = read_tags(found.path)
        if as_json:
            echo_json([{"tag": known, "version": version} for known, version in tags.items()])
        for known, version in () if as_json else tags.items():
            click.echo(f"{known}  v{version}")
        return
    parsed = parse_ref(ref, settings.corpus_root)
    if delete:
        version = untag(parsed.path, name)
    else:
        with Corpus.open(parsed) as found:
            found.tag(name, force=force)
            version = found.version
    if as_json:
        echo_json({"tag": name, "version": version, "deleted": delete})
    else:
        click.echo(f"{name_of(parsed.path)}@{name} is v{version}{' no more' if delete else ''}")


def _without_version(ref: str, settings: Settings) -> str:
    return name_of(parse_ref(ref, settings.corpus_root).path)


def _version_line(made: Manifest, tags: Sequence[str]) -> str:
    named = f"  ({', '.join(tags)})" if tags else ""
    return (
        f"v{made.version}{named}  {made.created_at or 'no date'}  {made.rows:,} rows  "
        f"added {made.added:,}, updated {made.updated:,}, removed {made.removed:,}  {made.policy}"
    )


def _change_line(change: RowChange) -> str:
    said: list[str] = []
    for name in change.changed:
        if name == "reward" and change.reward is not None:
            said.append(f"reward {_value(change.reward[0])} to {_value(change.reward[1])}")
        elif name == "split" and change.split is not None:
            said.append(f"split {change.split[0]} to {change.split[1]}")
        elif name == "metrics":
            said += [f"metrics.{metric} {_state(a)} to {_state(b)}" for metric, (a, b) in change.metrics.items()]
        else:
            said.append(str(name))
    return f"{change.episode_id}/{change.interaction_id}  {', '.join(said)}"


def _state(state: Any) -> str:
    if state is None:
        return "unseen"
    return _value(state[1]) if state[0] == "observed" else str(state[0])


def _value(value: object) -> str:
    return "none" if value is None else f"{value!s:.40}"


def _diff_json(found: Diff) -> dict[str, Any]:
    return {
        "added": [list(key) for key in found.added],
        "removed": [list(key) for key in found.removed],
        "updated": [to_json(change) for change in found.updated],
    }


def _cut(lines: Sequence[T], limit: int) -> Iterator[T | str]:
    yield from lines[:limit]
    if len(lines) > limit:
        yield f"    and {len(lines) - limit:,} more"
