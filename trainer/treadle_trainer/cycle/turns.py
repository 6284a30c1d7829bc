"""The turns of a workspace by stage, from append times.

A turn begins with the append of the newest interaction in a corpus version and ends with the append of the first interaction that the
release made from it served. In between, each stage ends where the next one begins:

    settle     until the last outcome (or deadline) that the version waited for settled a row
    snapshot   until the version's record was on `.snapshots`
    queue      until its job started, and whatever else is not one of the others
    read, train, register, evaluate, gate, promote    as the trainer times itself
    serve      from the promotion's record on `.releases` to the first interaction of the release

So the stages of a served turn add up to its cycle time.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
from treadle.log import Admin, Record, read
from treadle_schemas import ReleaseEvent, SnapshotRecord
from treadle_schemas.codec import PROGRESS, RELEASE, SNAPSHOT, decode
from treadle_schemas.records import Progress
from treadle_schemas.topics import topic

__all__ = ["STAGES", "Stage", "Turn", "bottleneck", "read_turns", "turns_of"]

Stage = Literal["settle", "snapshot", "queue", "read", "train", "register", "evaluate", "gate", "promote", "serve"]
STAGES: Final[tuple[Stage, ...]] = (
    "settle",
    "snapshot",
    "queue",
    "read",
    "train",
    "register",
    "evaluate",
    "gate",
    "promote",
    "serve",
)
_DECISIONS: Final = ("promoted", "rejected", "not_enough_evidence", "failed", "admitted", "awaiting_approval")


@dataclass(kw_only=True)
class Turn:
    """One version of one corpus and what a slot's trainer made of it."""

    corpus: str
    version: int
    slot: str
    rows: int
    new_rows: int
    release: str | None
    decision: str
    reason: str
    began_ms: int
    """Append time of the newest interaction in the version."""
    decided_ms: int
    served_ms: int | None = None
    """Append time of the first interaction that the release served; None: it served none yet."""
    seconds: dict[Stage, float] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def cycle_s(self) -> float | None:
        """From the newest interaction in the version to the first one that its release served, in seconds."""
        return None if self.served_ms is None else (self.served_ms - self.began_ms) / 1000

    @property
    def overhead_s(self) -> float | None:
        """The cycle without settling, training and evaluation, which are what a turn is for."""
        cycle = self.cycle_s
        return None if cycle is None else cycle - sum(self.seconds[stage] for stage in ("settle", "train", "evaluate"))

    @property
    def lift(self) -> float | None:
        """What the gate saw the candidate gain over the champion, in the unit of the scores."""
        gate = self.evidence.get("gate")
        if not isinstance(gate, dict) or gate.get("candidate") is None or gate.get("champion") is None:
            return None
        return float(gate["candidate"]) - float(gate["champion"])


def bottleneck(turns: Sequence[Turn]) -> tuple[Stage, float] | None:
    """The stage that took most over the served turns, and its share of their cycle time in [0, 1]. None: no turn was served."""
    served = [turn for turn in turns if turn.cycle_s]
    whole = sum(turn.cycle_s or 0.0 for turn in served)
    if not served or whole <= 0:
        return None
    total = {stage: sum(turn.seconds.get(stage, 0.0) for turn in served) for stage in STAGES}
    longest = max(STAGES, key=lambda stage: total[stage])
    return longest, total[longest] / whole


def turns_of(
    snapshots: Iterable[Record], releases: Iterable[Record], progress: Iterable[Record], last: int
) -> list[Turn]:
    """The newest `last` turns, oldest first, from the records of `.snapshots`, `.releases` and `.progress`.

    `progress` needs to reach back to the beginning of the oldest of them only, and is read once.
    """
    versions = {}
    for record, event in _decoded(snapshots, SNAPSHOT):
        made = msgspec.convert(event, SnapshotRecord)
        versions[made.corpus, made.version] = (record.timestamp_ms, made)
    turns = []
    for record, event in _decoded(releases, RELEASE):
        said = msgspec.convert(event, ReleaseEvent)
        found = versions.get((str(said.evidence.get("corpus")), said.evidence.get("version", -1)))
        if said.event in _DECISIONS and found is not None:
            made_ms, version = found
            turns.append(_begun(made_ms, version, said, record.timestamp_ms))
    turns = sorted(turns, key=lambda turn: turn.decided_ms)[-last:]
    snapshot_ms = {key: at for key, (at, _) in versions.items()}
    settled = _fold(progress, turns, snapshot_ms)
    for turn, settled_ms in zip(turns, settled, strict=True):
        _time(turn, settled_ms, snapshot_ms[turn.corpus, turn.version])
    return turns


def read_turns(bootstrap_servers: str, workspace: str, last: int = 10) -> list[Turn]:
    """The newest turns of a workspace. Reads `.snapshots` and `.releases` whole, of `.progress` what the turns need.

    Raises LogUnreachable or TopicMissing.
    """
    admin = Admin(bootstrap_servers)
    counts = admin.partitions()

    def records(name: str, start: dict[int, int] | None = None) -> Iterable[Record]:
        return read(bootstrap_servers, name, counts.get(name, 1), start=start)

    snapshots, releases = list(records(topic(workspace, "snapshots"))), list(records(topic(workspace, "releases")))
    began = [turn.began_ms for turn in turns_of(snapshots, releases, (), last)]
    if not began:
        return []
    name = topic(workspace, "progress")
    start = admin.offsets_at(((name, p) for p in range(counts.get(name, 1))), min(began))
    progress = records(name, {p: offset for (_, p), offset in start.items() if offset >= 0})
    return turns_of(snapshots, releases, progress, last)


def _decoded(records: Iterable[Record], kind: str) -> Iterable[tuple[Record, dict[str, Any]]]:
    for record in records:
        if record.value is None:
            continue
        event = decode(record.value, record.headers)
        if event.type == kind:
            yield record, event.data


def _begun(snapshot_ms: int, version: SnapshotRecord, said: ReleaseEvent, decided_ms: int) -> Turn:
    return Turn(
        corpus=version.corpus,
        version=version.version,
        slot=said.slot,
        rows=version.rows,
        new_rows=version.new_rows,
        release=said.release,
        decision=said.event,
        reason=said.reason,
        began_ms=snapshot_ms if version.last_append_ms is None else version.last_append_ms,
        decided_ms=decided_ms,
        evidence=said.evidence,
    )


def _fold(progress: Iterable[Record], turns: Sequence[Turn], snapshot_ms: dict[tuple[str, int], int]) -> list[int]:
    """When the last row of each turn's version settled; notes when each release served first."""
    by_release: dict[str, list[Turn]] = {}
    for turn in turns:
        if turn.release is not None and turn.decision in ("promoted", "admitted"):
            by_release.setdefault(turn.release, []).append(turn)
    order = sorted(range(len(turns)), key=lambda n: snapshot_ms[turns[n].corpus, turns[n].version])
    ends = [snapshot_ms[turns[n].corpus, turns[n].version] for n in order]
    settled = [turn.began_ms for turn in turns]
    for record, event in _decoded(progress, PROGRESS):
        row = msgspec.convert(event, Progress)
        for turn in by_release.get(row.release or "", ()):
            turn.served_ms = row.append_ms if turn.served_ms is None else min(turn.served_ms, row.append_ms)
        if row.grade.settled:
            # of the turns whose version was there after it the first: it is what that one waited for
            for place in range(bisect.bisect_left(ends, record.timestamp_ms), len(ends)):
                turn = turns[order[place]]
                if row.append_ms <= turn.began_ms:
                    settled[order[place]] = max(settled[order[place]], record.timestamp_ms)
                    break
    return settled


def _time(turn: Turn, settled_ms: int, snapshot_ms: int) -> None:
    own = turn.evidence.get("seconds")
    measured = {name: float(s) for name, s in own.items() if name in STAGES} if isinstance(own, dict) else {}
    turn.seconds = {
        "settle": (settled_ms - turn.began_ms) / 1000,
        "snapshot": (snapshot_ms - settled_ms) / 1000,
        "queue": (turn.decided_ms - snapshot_ms) / 1000 - sum(measured.values()),
    }
    for stage in STAGES[3:-1]:
        turn.seconds[stage] = measured.get(stage, 0.0)
    if turn.served_ms is not None:
        turn.seconds["serve"] = (turn.served_ms - turn.decided_ms) / 1000
