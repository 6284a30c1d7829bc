"""Versions made again from the log, by the code that made them: to prove them, and to rebuild a corpus."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from treadle.log import Admin
from treadle_corpus import Corpus, CorpusDamaged, CorpusRef, CorpusWriter, Diff, Manifest, Replacement, versions
from treadle_schemas.codec import to_json
from treadle_schemas.errors import SettingError
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams import filter as filters
from treadle_streams import workspaces
from treadle_streams.archive.history import History
from treadle_streams.filter import FilterError
from treadle_streams.snapshot._graded import BATCH_RECORDS, batches, decoded
from treadle_streams.snapshot._selector import PolicySelector
from treadle_streams.snapshot.errors import LogGone, PolicyNotReproducible, VersionDiffers, WorkspaceReplaced

__all__ = ["prove", "rebuild"]

_COMPARED: Final = (
    *("content_hash", "rows", "split", "dropped", "unknown", "completeness", "watermark_ms", "last_append_ms"),
)
"""Fields of a manifest that follow from the log below the offsets and the policy. The others say what was before, or when it was made."""
Tell = Callable[[str], None]


class _Told(NamedTuple):
    """What a version says of itself. The last two are None where its journal cannot be read."""

    manifest: Manifest
    workspace_created_at: str | None
    selector: str | None


def prove(
    servers: str, path: Path, numbers: Sequence[int], tell: Tell | None = None, archives: Sequence[str] = ()
) -> Iterator[Manifest]:
    """Recompute versions of the corpus at `path` from `.graded`, in a temporary folder. What the log has no more is read from `archives`
    and from those that the workspace names. Yields the manifest of each that is proven.

    Episodes that were erased from the corpus are left out of the log, so a version that an erasure changed is proven as its record has it.

    A version is proven when all that follows from the log is the same: the rows with their content (`content_hash`), their number and
    sides, and how many rows dropped for which reason. `numbers` are ascending. Nothing at `path` or on Kafka is changed.

    Raises LogGone, WorkspaceReplaced, PolicyNotReproducible, VersionDiffers, WorkspaceMissing, CorpusError, LogError.
    """
    with tempfile.TemporaryDirectory(prefix="treadle-proof-") as folder:
        yield from _replay(servers, path, numbers, Path(folder) / "corpus", tell, archives)


def rebuild(
    servers: str,
    path: Path,
    *,
    to: Path | None = None,
    as_of: int | None = None,
    tell: Tell | None = None,
    archives: Sequence[str] = (),
) -> list[Manifest]:
    """Make the corpus at `path` again from `.graded`: every version that it has, under its number, each proven to be the same.

    With `to` it is put there, where nothing may be yet, up to version `as_of`; otherwise it takes the place of the old one, which is not
    touched before the new one is whole. Of the old one only the files of versions must be readable. Tags are kept. Returns the manifests.

    Raises what `prove` does, TargetError, CorpusLocked, CorpusInUse; nothing was changed then.
    """
    there = versions(path)
    if as_of is not None:
        Corpus.open(CorpusRef(path, as_of)).close()  # VersionMissing
        there = [number for number in there if number <= as_of]
    with Replacement(to or path, new=to is not None) as replacement:
        made = list(_replay(servers, path, there, replacement.fresh, tell, archives))
        replacement.place()
    return made


def _replay(
    servers: str, path: Path, numbers: Sequence[int], folder: Path, tell: Tell | None, archives: Sequence[str]
) -> Iterator[Manifest]:
    """Make the versions again in `folder`, one after the other, and yield each whose manifest says the same."""
    told = [_told(path, number) for number in numbers]
    if not told:
        raise CorpusDamaged(path, "has no version yet, so there is nothing to make again")
    newest = told[-1].manifest
    settings = workspaces.get(servers, newest.workspace)
    created = next((t.workspace_created_at for t in told if t.workspace_created_at is not None), settings.created_at)
    if created != settings.created_at:
        raise WorkspaceReplaced(path, settings.workspace, created, settings.created_at)
    history = History(servers, settings, archives)
    _check_log(Admin(servers), history, settings, path, newest)
    policy = told[0].manifest.policy
    with CorpusWriter.open(folder, workspace=settings.workspace, workspace_created_at=created, policy=policy) as writer:
        writer.adopt_erasures(path)
        for version in told:
            yield _again(history, settings, path, version, writer, tell)


def _again(
    history: History, settings: WorkspaceSettings, path: Path, told: _Told, writer: CorpusWriter, tell: Tell | None
) -> Manifest:
    """Fold up to the offsets of one version, finish it, compare."""
    manifest = told.manifest
    ends = {int(partition): offset for partition, offset in manifest.offsets.items()}
    writer.policy = manifest.policy
    for batch, offsets in batches(history, writer.offsets, ends, BATCH_RECORDS):
        writer.apply(decoded(batch).values, offsets, max(r.timestamp_ms for r in batch))
        if tell is not None:
            tell(f"v{manifest.version}: folded {sum(offsets.values())} of {sum(ends.values())} offsets of .graded")
    writer.apply([], ends, 0)
    selector = _selector(path, told, settings, writer)
    made = writer.finish(
        selector,
        pending=manifest.pending,
        code_version=manifest.code_version,
        created_at=manifest.created_at,
        number=manifest.version,
    )
    assert made is not None, "a version that is given a number is always made"
    differences = _differences(manifest, made)
    if differences:
        if told.selector not in (None, selector.identity):
            raise PolicyNotReproducible(
                path,
                manifest.version,
                manifest.policy,
                "a metric has another type now, or this treadle reads the filter otherwise",
            )
        raise VersionDiffers(path, manifest.version, differences, _rows(path, writer.path, manifest.version))
    return made


def _told(path: Path, number: int) -> _Told:
    with Corpus.open(CorpusRef(path, number)) as found:
        try:
            return _Told(found.manifest, found.workspace_created_at, found.selector)
        except CorpusDamaged:
            return _Told(found.manifest, None, None)


def _check_log(admin: Admin, history: History, settings: WorkspaceSettings, path: Path, newest: Manifest) -> None:
    """Raises LogGone for the first partition of which log and archives have not all records below the offsets."""
    name = topic(settings.workspace, "graded")
    needed = {int(partition): offset for partition, offset in newest.offsets.items() if offset > 0}
    there = admin.partitions().get(name, 0)
    partitions = [(name, partition) for partition in needed if partition < there]
    starts, ends = admin.start_offsets(partitions), admin.end_offsets(partitions)
    for partition, offset in sorted(needed.items()):
        where = (name, partition)
        if partition >= there:
            gone = (0, offset - 1)
            raise LogGone(path, newest.version, name, partition, gone, "the topic has no such partition")
        gap = history.missing("graded", {partition: 0}, {partition: min(starts[where], offset)})
        if gap is not None:
            looked = f"not archived in {', '.join(history.targets)}" if history.targets else "archived nowhere"
            why = f"the log begins at offset {starts[where]}, and they are {looked}"
            raise LogGone(path, newest.version, name, partition, gap[1:], why)
        if ends[where] < offset:
            gone = (ends[where], offset - 1)
            raise LogGone(path, newest.version, name, partition, gone, f"the log ends at offset {ends[where]}")


def _selector(path: Path, told: _Told, settings: WorkspaceSettings, writer: CorpusWriter) -> PolicySelector:
    """The policy, with the types that metrics have by the present settings, or without any where only those decide as then."""
    manifest = told.manifest
    found: list[PolicySelector] = []
    problem = ""
    for declared in (settings, msgspec.structs.replace(settings, metrics=())):
        try:
            types = filters.metric_types(declared, writer.metric_kinds)
            found.append(PolicySelector(manifest.policy, types, writer.watermark_ms))
        except (FilterError, SettingError) as err:
            problem = problem or str(err)
    if not found:
        raise PolicyNotReproducible(path, manifest.version, manifest.policy, problem)
    return next((selector for selector in found if selector.identity == told.selector), found[0])


def _differences(told: Manifest, made: Manifest) -> dict[str, tuple[Any, Any]]:
    one, two = to_json(told), to_json(made)
    return {name: (one[name], two[name]) for name in _COMPARED if one[name] != two[name]}


def _rows(path: Path, folder: Path, version: int) -> Diff | None:
    """Which rows differ; None where the version cannot be read from disk."""
    try:
        with Corpus.open(CorpusRef(path, version)) as one, Corpus.open(CorpusRef(folder, version)) as two:
            return one.diff(two)
    except CorpusDamaged:
        return None
