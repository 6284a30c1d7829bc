"""One run: from the present ends of a workspace's topics to the next version of a corpus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from treadle.log import Admin, Record, read
from treadle_corpus import (
    CorpusWriter,
    GradedRecord,
    Manifest,
    PartRecord,
    Policy,
    Refusal,
    Tally,
    read_parts,
    read_record,
)
from treadle_schemas.codec import GRADED, PART, REGRADED, header_map
from treadle_schemas.errors import FieldError
from treadle_schemas.moments import from_micros, now
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams import filter as filters
from treadle_streams import workspaces
from treadle_streams.snapshot._announce import announce, announce_if_missing
from treadle_streams.snapshot._pending import PendingRows
from treadle_streams.snapshot._refused import send_dead_letters
from treadle_streams.snapshot._rounds import wait_for_join
from treadle_streams.snapshot.errors import LogMismatch, RegradeBehind

__all__ = ["DEFAULT_WAIT_S", "RunReport", "Snapshotter", "run_snapshot"]

DEFAULT_WAIT_S: Final = 300.0
"""How long a run waits for the join."""
_PAUSE_S: Final = 0.5
_BATCH_RECORDS: Final = 2000
_BATCH_BYTES: Final = 64 * 1024 * 1024
"""A batch is one commit: 16 KB of log and 11 files, whatever it holds. Bounded by bytes, since rows may be megabytes."""

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What a run found and did. Counts are rows."""

    corpus: Path
    version: int | None
    """Newest version now; None where there is none yet."""
    new: bool
    """Did this run make it?"""
    rows: int
    """Rows in that version."""
    tally: Tally
    """Where each row of the corpus stands."""
    pending: int
    """Rows that had not settled: they wait for a later version."""
    refused: int
    """Records of `.graded` that became dead letters in this run."""
    settled_through_ms: int
    """Newest timestamp on `.graded` that was folded; 0 where nothing was."""
    manifest: Manifest | None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        made = self.manifest
        return {
            "corpus": str(self.corpus),
            "version": self.version,
            "new": self.new,
            "rows": self.rows,
            "selected": self.tally.selected,
            "rejected": self.tally.rejected,
            "unknown": sum(self.tally.unknown.values()),
            "unknown_by_reason": self.tally.unknown,
            "pending": self.pending,
            "dropped": self.tally.dropped,
            "refused": self.refused,
            "added": made.added if made and self.new else 0,
            "updated": made.updated if made and self.new else 0,
            "removed": made.removed if made and self.new else 0,
            "content_hash": made.content_hash if made else None,
            "settled_through": from_micros(self.settled_through_ms * 1000) if self.settled_through_ms else None,
        }


class Snapshotter:
    """A corpus held open for runs: the one writer of it. A context manager."""

    def __init__(
        self,
        servers: str,
        workspace: WorkspaceSettings,
        corpus: Path,
        policy: Policy,
        *,
        replace_policy: bool = False,
        tell: Tell | None = None,
    ) -> None:
        """Open or make the corpus, finish what an interrupted run left, and announce a version that was not yet.

        `tell` hears of progress. Raises FilterError, CorpusError, LogError.
        """
        if policy.filter is not None:
            filters.check_syntax(policy.filter)  # before anything is made
        self._servers = servers
        self._workspace = workspace
        self._tell = tell
        self.writer = CorpusWriter.open(
            corpus,
            workspace=workspace.workspace,
            workspace_created_at=workspace.created_at,
            policy=policy,
            replace_policy=replace_policy,
        )
        self._announced = 0
        try:
            self._pending = PendingRows(servers, workspace, corpus / "progress.json")
            self._announce_newest()
        except BaseException:
            self.writer.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another writer in."""
        self.writer.close()

    def run(self, wait_s: float = DEFAULT_WAIT_S) -> RunReport:
        """One run of the policy.

        1. wait in rounds until the join has passed the present ends of the inputs
        2. read `.progress` to its end, for the count of pending rows; what it calls settled is on `.graded` by then. While kept rows are
           still graded anew by changed settings, wait for the markers of every partition
        3. take the end of `.graded` and fold up to it in untagged commits
        4. decide and finish the version
        5. announce it

        Raises JoinBehind, LogMismatch, FilterError, CorpusError, LogError. Nothing needs undoing: the next run goes on.
        """
        self._announce_newest()  # a run before this one may have failed at its last step
        admin = Admin(
            self._servers
        )  # a new one: after a restart of the broker an old one keeps asking by the old leader epoch
        self._workspace = workspaces.get(self._servers, self._workspace.workspace)  # it may be graded otherwise by now
        began = time.monotonic()
        wait_for_join(admin, self._workspace, wait_s, self._tell)  # 1
        self._pending.advance(admin)  # 2
        self._wait_regraded(admin, began + wait_s, wait_s)
        refused = self._fold(self._graded_ends(admin))  # 3
        pending = self._pending.count(self.writer.settled, self.writer.unsettled())
        selector = filters.compile(
            self.writer.policy.filter,
            filters.metric_types(self._workspace, self.writer.metric_kinds),
            self.writer.watermark_ms,
        )
        made = self.writer.finish(  # 4
            selector, pending=pending, code_version=_code_version(), created_at=now()
        )
        if made is not None:
            announce(self._servers, self.writer.path, made)  # 5
            self._announced = made.version
        newest = self.writer.manifest
        return RunReport(
            corpus=self.writer.path,
            version=newest.version if newest else None,
            new=made is not None,
            rows=newest.rows if newest else 0,
            tally=self.writer.tally,
            pending=pending,
            refused=refused,
            settled_through_ms=self.writer.watermark_ms,
            manifest=newest,
        )

    def _wait_regraded(self, admin: Admin, deadline: float, wait_s: float) -> None:
        version = self._workspace.grading_version
        while left := self._pending.ungraded(version):
            if time.monotonic() > deadline:
                raise RegradeBehind(self._workspace.workspace, version, left[0], wait_s)
            if self._tell is not None:
                self._tell(f"waiting for kept rows to be graded by version {version}: {len(left)} partitions left")
            time.sleep(_PAUSE_S)
            self._pending.advance(admin)

    def _announce_newest(self) -> None:
        newest = self.writer.manifest
        if newest is not None and newest.version != self._announced:
            announce_if_missing(self._servers, self.writer.path, newest)
            self._announced = newest.version

    def _graded_ends(self, admin: Admin) -> dict[int, int]:
        """Where `.graded` ends. Raises LogMismatch where that does not go with the corpus' offsets."""
        name = topic(self._workspace.workspace, "graded")
        partitions = [(name, p) for p in range(self._workspace.partitions)]
        ends, starts = admin.end_offsets(partitions), admin.start_offsets(partitions)
        for (_, partition), end in ends.items():
            held = self.writer.offsets.get(partition)
            if held is not None and end < held:
                raise LogMismatch(
                    f"{name}[{partition}] ends at offset {end}, but {self.writer.path} folded it up to {held}: the log lost "
                    "records, or is another one. Write to another path"
                )
            first = starts[name, partition]
            if first > (held or 0):
                raise LogMismatch(
                    f"{name}[{partition}] begins at offset {first}, but {self.writer.path} needs it from {held or 0} on: graded rows "
                    "are gone, so no version can be the exact fold of it. `.graded` must keep everything (retention.ms=-1)"
                )
        return {partition: end for (_, partition), end in ends.items()}

    def _fold(self, ends: dict[int, int]) -> int:
        """Fold up to `ends`; how many records were refused."""
        refused = 0
        for batch, offsets in self._batches(ends):
            refused += self._apply(batch, offsets)
            if self._tell is not None:
                self._tell(f"folded {sum(offsets.values())} of {sum(ends.values())} offsets of .graded")
        # past the markers after the last record too, so that the next run does not begin by reading them again
        self.writer.apply([], ends, 0)
        return refused

    def _batches(self, ends: dict[int, int]) -> Iterator[tuple[list[Record], dict[int, int]]]:
        start = self.writer.offsets
        offsets = dict(start)
        batch: list[Record] = []
        size = 0
        name = topic(self._workspace.workspace, "graded")
        for record in read(self._servers, name, self._workspace.partitions, start=start, until=ends):
            batch.append(record)
            size += len(record.value or b"")
            offsets[record.partition] = record.offset + 1
            if len(batch) >= _BATCH_RECORDS or size >= _BATCH_BYTES:
                yield batch, offsets
                batch, size = [], 0
        if batch:
            yield batch, offsets

    def _apply(self, batch: list[Record], offsets: dict[int, int]) -> int:
        good: list[Record] = []
        decoded: list[GradedRecord | PartRecord] = []
        bad: list[tuple[Record, str, str]] = []
        for record in batch:
            try:
                taken = _decode(record)
                if taken is not None:
                    decoded.append(taken)
                    good.append(record)
            except FieldError as err:
                bad.append((record, "malformed", str(err)))
        count = len(bad)

        def refuse(refusals: list[Refusal]) -> None:
            nonlocal count
            count += len(refusals)
            found = [(good[r.position], "conflict", r.problem) for r in refusals]
            send_dead_letters(self._servers, self._workspace.workspace, found)

        send_dead_letters(self._servers, self._workspace.workspace, bad)
        self.writer.apply(decoded, offsets, max((r.timestamp_ms for r in batch), default=0), refuse)
        return count


def run_snapshot(
    servers: str,
    workspace: str,
    corpus: Path,
    policy: Policy,
    *,
    wait_s: float = DEFAULT_WAIT_S,
    replace_policy: bool = False,
    tell: Tell | None = None,
) -> RunReport:
    """One run of `policy` from a workspace into the corpus at `corpus`, as `treadle snapshot` does it.

    Raises WorkspaceMissing, JoinBehind (exit code 5), FilterError, CorpusError, LogError.
    """
    settings = workspaces.get(servers, workspace)
    with Snapshotter(servers, settings, corpus, policy, replace_policy=replace_policy, tell=tell) as snapshotter:
        return snapshotter.run(wait_s)


def _decode(record: Record) -> GradedRecord | PartRecord | None:
    """What the corpus takes of a record; None: nothing."""
    found = header_map(record.headers).get("ce_type")
    if record.value is None:
        raise FieldError("$", "is null")
    if found == PART.encode():
        return read_parts(record.value)
    if found == REGRADED.encode():
        return None
    if found != GRADED.encode():
        raise FieldError("headers.ce_type", f"is {found!r}, neither {GRADED} nor {PART}")
    return read_record(record.value)


def _code_version() -> str:
    try:
        return version("treadle")
    except PackageNotFoundError:
        return "source"
