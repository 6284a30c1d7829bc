"""`treadle archive WORKSPACE --to TARGET`, `treadle archive list|verify`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec
from treadle.cli.support import (
    DURATION,
    SuggestingGroup,
    confirmed,
    echo_json,
    json_option,
    pass_settings,
    workspace_of,
    yes_option,
)
from treadle.log import Admin
from treadle.settings import Settings
from treadle_corpus import Corpus, CorpusMissing, VersionMissing, folded_offsets
from treadle_corpus.objects import place_at
from treadle_schemas.codec import to_json
from treadle_schemas.moments import now, to_micros
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams import workspaces
from treadle_streams.archive.deleting import Need, delete_archived, group_needs
from treadle_streams.archive.errors import ArchiveDamaged, ArchiveMissing
from treadle_streams.archive.ranges import KINDS, Archive, Range
from treadle_streams.archive.writing import alone, closed_ends, sweep
from treadle_streams.archive.writing import archive as write_ranges
from treadle_streams.snapshot.policies import policies_of, target_of

__all__ = ["archive"]


class _Archive(SuggestingGroup):
    """What is no subcommand is a workspace to archive."""

    default = "run"

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The default for what is none of the subcommands."""
        if args and args[0] not in self.commands:
            args = [self.default, *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_Archive)
def archive() -> None:
    """Move what a workspace's log has into files, and look after them. `treadle archive WORKSPACE --to TARGET` is `archive run`."""


_from_option = click.option(
    "--from", "target", metavar="TARGET", help="The archive; default: each that the workspace names."
)


@archive.command()
@click.argument("workspace", required=False)
@click.option(
    "--to", "target", metavar="TARGET", help="A folder or s3://BUCKET/PREFIX; default: where it was archived last."
)
@click.option("--before", metavar="TIME", help="Only what came before this time (RFC 3339).")
@click.option("--keep", type=DURATION, metavar="TIME", help="Only what is older, as 30d.")
@click.option("--topic", "kinds", type=click.Choice(KINDS), multiple=True, help="Only this topic. Repeatable.")
@click.option("--delete", is_flag=True, help="Then delete from Kafka what is archived and nobody needs there.")
@yes_option
@json_option
@pass_settings
def run(
    settings: Settings,
    workspace: str | None,
    target: str | None,
    before: str | None,
    keep: float | None,
    kinds: tuple[str, ...],
    delete: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Archive all that is closed, from where the archive ends on. Can be killed and repeated at any time.

    Each range becomes one file with a manifest, which is read back before it counts. The workspace remembers where it is archived, so that
    verify, rebuild, snapshots and restore read archive and log as one. With --delete what was archived is compared once more and then
    deleted from Kafka: not what a consumer group or the corpus of a stored policy has still to read (that is an error, and nothing is
    deleted), and not inputs younger than twice the time that the join keeps state.
    """
    if before is not None and keep is not None:
        raise click.UsageError("say either --before or --keep")
    name = workspace_of(settings, workspace)
    servers = settings.bootstrap_servers
    found = workspaces.get(servers, name)
    before_ms = _before_ms(before, keep)
    place = Archive(_target(found, target), found)
    chosen = kinds or KINDS
    made: list[Range] = []
    with alone(place.store, place.top):
        sweep(place)
        if place.store.url not in found.archives:
            found = workspaces.update(servers, name, lambda s: _remembering(s, place.store.url))
        for one in write_ranges(servers, found, place, before_ms=before_ms, kinds=chosen, tell=_tell):
            made.append(one)
            if not as_json:
                click.echo(_line(one))
        deleted: list[dict[str, Any]] = []
        if delete and confirmed(f"{place.store.url} has it all. Delete it from Kafka, workspace {name}?", yes):
            deleted = _delete(settings, found, place, before_ms, chosen)
    if as_json:
        echo_json(
            {"workspace": name, "archive": place.store.url, "archived": [to_json(r) for r in made], "deleted": deleted}
        )
        return 0
    if not made:
        click.echo(f"{place.store.url}: everything that is closed is archived", err=True)
    for gone in deleted:
        click.echo(f"{gone['topic']}[{gone['partition']}]  deleted offsets {gone['first']} to {gone['next'] - 1}")
    return 0


@archive.command("list")
@click.argument("workspace", required=False)
@_from_option
@json_option
@pass_settings
def list_(settings: Settings, workspace: str | None, target: str | None, as_json: bool) -> None:
    """List the ranges that are archived of a workspace: offsets, records, times, and what erasures took out."""
    found = workspaces.get(settings.bootstrap_servers, workspace_of(settings, workspace))
    places = _places(found, target)
    if as_json:
        echo_json([{"archive": place.store.url, "ranges": [to_json(r) for r in place.every()]} for place in places])
        return
    for place in places:
        click.echo(place.store.url)
        for one in place.every():
            click.echo(f"  {_line(one)}")


@archive.command()
@click.argument("workspace", required=False)
@_from_option
@json_option
@pass_settings
def verify(settings: Settings, workspace: str | None, target: str | None, as_json: bool) -> int:
    """Read every file of an archive and compare it with its manifest, and look for gaps. Exits with 1 where something is wrong."""
    found = workspaces.get(settings.bootstrap_servers, workspace_of(settings, workspace))
    said: list[dict[str, Any]] = []
    for place in _places(found, target):
        problems: list[str] = []
        ranges = records = 0
        last: Range | None = None
        for one in place.every():
            same = last is not None and (last.kind, last.partition) == (one.kind, one.partition)
            if same and last is not None and one.first > last.next:
                problems.append(f"{one.topic}[{one.partition}]: offsets {last.next} to {one.first - 1} are missing")
            last = one if not same or last is None or one.next > last.next else last
            try:
                records += sum(1 for _ in place.records(one))
                ranges += 1
            except ArchiveDamaged as err:
                problems.append(str(err))
        said.append({"archive": place.store.url, "ranges": ranges, "records": records, "problems": problems})
    if as_json:
        echo_json(said)
    for each in () if as_json else said:
        click.echo(f"{each['archive']}  {each['ranges']:,} ranges, {each['records']:,} records as they were written")
        for problem in each["problems"]:
            click.echo(f"  {problem}")
    return 1 if any(each["problems"] for each in said) else 0


def _delete(
    settings: Settings, found: WorkspaceSettings, place: Archive, before_ms: int | None, kinds: Iterable[str]
) -> list[dict[str, Any]]:
    admin = Admin(settings.bootstrap_servers)
    ends = {kind: closed_ends(admin, found, kind, before_ms) for kind in kinds}
    needs = group_needs(admin, found, kinds)
    if "graded" in ends:
        needs += _corpus_needs(settings, found)
    deleted = delete_archived(admin, found, place, ends, needs)
    return [
        {"topic": topic, "partition": partition, "first": first, "next": after}
        for (topic, partition), (first, after) in sorted(deleted.items())
    ]


def _corpus_needs(settings: Settings, found: WorkspaceSettings) -> list[Need]:
    """What the corpora of stored policies have still to fold. Other corpora read the archive."""
    needs: list[Need] = []
    for policy in policies_of(found).values():
        try:
            _, path = target_of(settings, found.workspace, policy)
            offsets = _folded(path)
        except (CorpusMissing, VersionMissing):
            continue  # there is none yet: it will be made of archive and log
        needs += [
            Need("graded", partition, offsets.get(partition, 0), f"the corpus {path} of policy {policy.name}")
            for partition in range(found.partitions)
        ]
    return needs


def _folded(path: Path) -> dict[int, int]:
    if place_at(path) is None:
        return folded_offsets(path)
    with Corpus.open(path) as newest:  # its writer may be on another machine
        return {int(partition): offset for partition, offset in newest.manifest.offsets.items()}


def _before_ms(before: str | None, keep: float | None) -> int | None:
    if before is not None:
        return to_micros(before, "--before") // 1000
    return None if keep is None else int((time.time() - keep) * 1000)


def _target(found: WorkspaceSettings, target: str | None) -> str:
    if target is not None:
        return target
    if not found.archives:
        raise ArchiveMissing(f"workspace {found.workspace} names no archive yet: --to TARGET says where to")
    return found.archives[-1]


def _places(found: WorkspaceSettings, target: str | None) -> list[Archive]:
    targets = (target,) if target is not None else found.archives
    places = [Archive(one, found) for one in targets]
    if not any(place.store.names(place.top) for place in places):
        raise ArchiveMissing(
            f"nothing of workspace {found.workspace} is archived"
            + (f" at {', '.join(targets)}" if targets else "; `treadle archive WORKSPACE --to TARGET` does it")
        )
    return places


def _remembering(settings: WorkspaceSettings, url: str) -> WorkspaceSettings:
    return msgspec.structs.replace(settings, archives=(*(a for a in settings.archives if a != url), url))


def _line(one: Range) -> str:
    erased = sum(e.records for e in one.erased)
    return (
        f"{one.topic}[{one.partition}]  offsets {one.first} to {one.next - 1}  {one.records:,} records  {one.size:,} bytes"
        + (f"  {erased:,} erased" if erased else "")
    )


def _tell(text: str) -> None:
    click.echo(f"{now()} {text}", err=True)
