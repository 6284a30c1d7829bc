"""One run: from the present ends of a workspace's topics to the next version of a corpus."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from treadle.disk import folder_bytes
from treadle.log import Admin, Record
from treadle_corpus import CorpusLocked, CorpusWriter, Manifest, Policy, Refusal, Tally
from treadle_schemas.moments import now
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams import filter as filters
from treadle_streams import workspaces
from treadle_streams.archive.history import History
from treadle_streams.snapshot._announce import announce, announce_if_missing
from treadle_streams.snapshot._counts import counts_json
from treadle_streams.snapshot._graded import BATCH_RECORDS, batches, decoded, graded_ends
from treadle_streams.snapshot._pending import PendingRows
from treadle_streams.snapshot._refused import send_dead_letters
from treadle_streams.snapshot._rounds import wait_for_join, wait_regraded
from treadle_streams.snapshot._selector import PolicySelector

__all__ = ["DEFAULT_WAIT_S", "RunReport", "Snapshotter", "run_snapshot"]

DEFAULT_WAIT_S: Final = 300.0
"""How long a run waits for the join."""

_GIVE_WAY_S: Final = 0.5
"""Longer than whoever waits for a corpus takes to notice that it is free."""

DERIVED: Final = "tokens"
"""Token columns, which trainers put beside a corpus."""

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What a run found and did. Counts are rows."""

    corpus: str
    """Its URL, or its path."""
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
    """Records of `.graded` that became dead letters in this run, or since the one before."""
    settled_through_ms: int
    """Newest timestamp on `.graded` that was folded; 0 where nothing was."""
    manifest: Manifest | None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        made = self.manifest
        return {
            "corpus": self.corpus,
            "version": self.version,
            "new": self.new,
            "rows": self.rows,
            **counts_json(self.tally, self.pending, self.refused, self.settled_through_ms),
            "added": made.added if made and self.new else 0,
            "updated": made.updated if made and self.new else 0,
            "removed": made.removed if made and self.new else 0,
            "content_hash": made.content_hash if made else None,
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
        self._corpus = corpus
        self._tell = tell
        self._replace_policy = replace_policy
        self.writer = self._opened(corpus, policy)
        self._announced = 0
        self._refused_ahead = 0
        self._size: int | None = None if self.writer.unfinished else _size(self.writer.path)
        """Bytes of the corpus when the version before was made; None where that is not known."""
        try:
            self._forbid_erased()
            self._pending = PendingRows(
                servers, workspace, corpus / "progress.json", erased=lambda episode_id: self.writer.erased(episode_id)
            )
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

    def give_way(self, stop: threading.Event) -> None:
        """Let a process that waits for the corpus have it, and go on when it is done, or `stop` is set. Raises CorpusError."""
        self.writer.close()
        while not stop.wait(_GIVE_WAY_S):
            try:
                self.writer = self._opened(self._corpus, self.writer.policy)
                return
            except CorpusLocked:
                continue

    def _opened(self, corpus: Path, policy: Policy) -> CorpusWriter:
        return CorpusWriter.open(
            corpus,
            workspace=self._workspace.workspace,
            workspace_created_at=self._workspace.created_at,
            policy=policy,
            replace_policy=self._replace_policy,
        )

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
        self.writer.publish()  # and the one before may have been cut off from the object store
        self._announce_newest()  # a run before this one may have failed at its last step
        admin = Admin(
            self._servers
        )  # a new one: after a restart of the broker an old one keeps asking by the old leader epoch
        self._workspace = workspaces.get(self._servers, self._workspace.workspace)  # it may be graded otherwise by now
        began = time.monotonic()
        wait_for_join(admin, self._workspace, wait_s, self._tell)  # 1
        wait_regraded(admin, self._workspace, self._pending, began, wait_s, self._tell)  # 2
        history = History(self._servers, self._workspace)
        ends = graded_ends(admin, self._workspace, self.writer.offsets, self.writer.name, history)
        refused = self._refused_ahead + self._fold(history, ends)  # 3
        self._refused_ahead = 0
        pending = self._pending.count(self.writer.settled, self.writer.unsettled())
        metrics = filters.metric_types(self._workspace, self.writer.metric_kinds)
        selector = PolicySelector(self.writer.policy, metrics, self.writer.watermark_ms)
        made = self.writer.finish(  # 4
            selector, pending=pending, code_version=_code_version(), created_at=now()
        )
        if made is not None:
            size = _size(self.writer.path)
            grown = None if self._size is None else max(0, size - self._size)
            announce(self._servers, self.writer.name, made, grown)  # 5
            self._announced, self._size = made.version, size
        newest = self.writer.manifest
        return RunReport(
            corpus=self.writer.name,
            version=newest.version if newest else None,
            new=made is not None,
            rows=newest.rows if newest else 0,
            tally=self.writer.tally,
            pending=pending,
            refused=refused,
            settled_through_ms=self.writer.watermark_ms,
            manifest=newest,
        )

    def fold_ahead(self, looked: Mapping[int, int]) -> None:
        """Fold `.graded` up to the offsets `looked` at, for which no run is due yet: commits without a version, as those of a run are.

        Raises LogMismatch, CorpusError, LogError; the next call, or the run, goes on.
        """
        admin, history = Admin(self._servers), History(self._servers, self._workspace)
        held = self.writer.offsets
        ends = graded_ends(admin, self._workspace, held, self.writer.name, history)
        reached = {p: max(held.get(p, 0), min(end, looked.get(p, 0))) for p, end in ends.items()}
        self._refused_ahead += self._fold(history, reached)

    def _forbid_erased(self) -> None:
        """A corpus that begins reads the log from its beginning, where the words of erased subjects may still stand."""
        if not self._workspace.erased.subjects or any(self.writer.offsets.values()):
            return
        from treadle_streams.erasing import erased_episodes  # which knows policies, hence this package

        episodes = erased_episodes(self._servers, self._workspace.workspace)
        self.writer.forbid(episodes, reason="erased before this corpus was made", erased_at=now())

    def _announce_newest(self) -> None:
        newest = self.writer.manifest
        if newest is not None and newest.version != self._announced:
            announce_if_missing(self._servers, self.writer.name, newest)
            self._announced = newest.version

    def _fold(self, history: History, ends: dict[int, int]) -> int:
        """Fold up to `ends`; how many records were refused."""
        refused = 0
        for batch, offsets in batches(history, self.writer.offsets, ends, BATCH_RECORDS):
            refused += self._apply(batch, offsets)
            if self._tell is not None:
                self._tell(f"folded {sum(offsets.values())} of {sum(ends.values())} offsets of .graded")
        # past the markers after the last record too, so that the next run does not begin by reading them again
        self.writer.apply([], ends, 0)
        return refused

    def _apply(self, batch: list[Record], offsets: dict[int, int]) -> int:
        found = decoded(batch)
        count = len(found.bad)

        def refuse(refusals: list[Refusal]) -> None:
            nonlocal count
            count += len(refusals)
            conflicts = [(found.good[r.position], "conflict", r.problem) for r in refusals]
            send_dead_letters(self._servers, self._workspace.workspace, conflicts)

        send_dead_letters(self._servers, self._workspace.workspace, found.bad)
        self.writer.apply(found.values, offsets, max((r.timestamp_ms for r in batch), default=0), refuse)
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


def _size(corpus: Path) -> int:
    """Bytes of a corpus, without what is derived from it."""
    return folder_bytes(corpus) - folder_bytes(corpus / DERIVED)


def _code_version() -> str:
    try:
        return version("treadle")
    except PackageNotFoundError:
        return "source"
