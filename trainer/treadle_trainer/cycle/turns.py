"""The turns of a workspace by stage, from append times.

A turn begins with the append of the newest interaction in a corpus version and ends with the append of the first interaction that the
release made from it served. In between, each stage ends where the next one begins:

    settle     until the last outcome (or deadline) that the version waited for settled a row
    snapshot   until the version's record was on `.snapshots`
    queue      until its job started, and whatever else is not one of the others
    read       until the rows were tokens, which an earlier job of the version may have made
    train, register, evaluate, gate, promote    as the trainer times itself
    approve    where a person had to say yes: from the trainer's record on `.releases` to the promotion's
    serve      from there to the first interaction of the release

So the stages of a served turn add up to its cycle time.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import msgspec
from treadle.log import Record
from treadle_schemas import ReleaseEvent, SnapshotRecord
from treadle_schemas.codec import PROGRESS, RELEASE, SNAPSHOT, decode
from treadle_schemas.records import Progress

from treadle_trainer.cycle.spending import Bytes, Judged, Window

__all__ = ["STAGES", "Stage", "Turn", "bottleneck", "turns_of"]

Stage = Literal[
    "settle",
    "snapshot",
    "queue",
    "read",
    "train",
    "register",
    "evaluate",
    "gate",
    "promote",
    "approve",
    "serve",
]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
_MEASURED: Final[tuple[Stage, ...]] = ("read", "train", "register", "evaluate", "gate", "promote")
"""Those that the trainer times itself."""
_DECISIONS: Final = ("promoted", "rejected", "not_enough_evidence", "failed", "admitted", "awaiting_approval")
_SERVING: Final = ("promoted", "admitted")
_FATES: Final = ("promoted", "rejected", "withdrawn", "rolled_back")
"""What may become of a release after the trainer's decision."""


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
    """What the trainer said: promoted, admitted (to canary), awaiting_approval, rejected, not_enough_evidence or failed."""
    reason: str
    fate: list[str] = field(default_factory=list)
    """What became of the release afterwards: promoted, rejected, withdrawn, rolled_back, in that order of time."""
    began_ms: int
    """Append time of the newest interaction in the version."""
    snapshot_ms: int
    """Append time of the version's record."""
    decided_ms: int
    approved_ms: int | None = None
    """Append time of the promotion that a person allowed."""
    served_ms: int | None = None
    """Append time of the first interaction that the release served; None: it served none yet."""
    seconds: dict[Stage, float] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    window: Window | None = None
    """What was captured and judged for the version, where the inputs were read."""
    version_bytes: int | None = None
    """What the version added to the corpus."""

    @property
    def cycle_s(self) -> float | None:
        """From the newest interaction in the version to the first one that its release served, in seconds."""
        return None if self.served_ms is None else (self.served_ms - self.began_ms) / 1000

    @property
    def overhead_s(self) -> float | None:
        """The cycle without settling, training and evaluation, which are what a turn is for, and without a person's time to approve."""
        cycle = self.cycle_s
        purpose: tuple[Stage, ...] = ("settle", "train", "evaluate", "approve")
        return None if cycle is None else cycle - sum(self.seconds.get(stage, 0.0) for stage in purpose)

    @property
    def lift(self) -> float | None:
        """What the gate saw the candidate gain over the champion, in the unit of the scores."""
        gate = self.evidence.get("gate")
        if not isinstance(gate, dict) or gate.get("candidate") is None or gate.get("champion") is None:
            return None
        return float(gate["candidate"]) - float(gate["champion"])

    @property
    def devices(self) -> int:
        """How many accelerators its training held."""
        training = self.evidence.get("training")
        return int(training.get("devices") or 0) if isinstance(training, dict) else 0

    @property
    def judged(self) -> Judged:
        """Calls of judges: by the evaluation, and by graders of what came in for this version, where the inputs were read."""
        own = Judged.of(self.evidence.get("judge"))
        return own if self.window is None else own + self.window.judged

    @property
    def bytes(self) -> Bytes:
        """Bytes of each kind that the turn wrote."""
        return Bytes.of(self.evidence.get("bytes"), self.version_bytes, self.window)


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
    snapshots: Iterable[Record],
    releases: Iterable[Record],
    progress: Iterable[Record],
    last: int,
    slot: str | None = None,
) -> list[Turn]:
    """The newest `last` turns, oldest first, from the records of `.snapshots`, `.releases` and `.progress`; of one slot or of all.

    `progress` needs to reach back to the beginning of the oldest of them only, and is read once.
    """
    versions: dict[tuple[str, int], tuple[int, SnapshotRecord]] = {}
    for record, event in _decoded(snapshots, SNAPSHOT):
        made = msgspec.convert(event, SnapshotRecord)
        versions.setdefault((made.corpus, made.version), (record.timestamp_ms, made))
    turns: list[Turn] = []
    of_release: dict[str, Turn] = {}
    for record, event in _decoded(releases, RELEASE):
        said = msgspec.convert(event, ReleaseEvent)
        found = versions.get((str(said.evidence.get("corpus")), said.evidence.get("version", -1)))
        turn = of_release.get(said.release or "")
        if said.event in _DECISIONS and said.evidence.get("seconds") is not None and found is not None:
            turns.append(_begun(*found, said, record.timestamp_ms))
            if said.release is not None:
                of_release[said.release] = turns[-1]
        elif said.event == "failed" and found is not None:
            turns.append(_begun(*found, said, record.timestamp_ms))
        elif said.event == "rolled_back":
            if (back := of_release.get(said.previous or "")) is not None:
                back.fate.append(said.event)
        elif said.event in _FATES and turn is not None:
            turn.fate.append(said.event)
            if said.event == "promoted" and turn.decision == "awaiting_approval" and turn.approved_ms is None:
                turn.approved_ms = record.timestamp_ms
    wanted = (turn for turn in turns if slot in (None, turn.slot))
    turns = sorted(wanted, key=lambda turn: turn.decided_ms)[-last:]
    settled = _fold(progress, turns)
    for turn, settled_ms in zip(turns, settled, strict=True):
        _time(turn, settled_ms)
    return turns


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
        snapshot_ms=snapshot_ms,
        decided_ms=decided_ms,
        evidence=said.evidence,
        version_bytes=version.written_bytes,
    )


def _fold(progress: Iterable[Record], turns: Sequence[Turn]) -> list[int]:
    """When the last row of each turn's version settled; notes when each release served first."""
    by_release: dict[str, list[Turn]] = {}
    for turn in turns:
        # a release that a person forces live after the gate refused it ends no turn of the wheel
        if turn.release is not None and (turn.decision in _SERVING or turn.approved_ms is not None):
            by_release.setdefault(turn.release, []).append(turn)
    order = sorted(range(len(turns)), key=lambda n: turns[n].snapshot_ms)
    ends = [turns[n].snapshot_ms for n in order]
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


def _time(turn: Turn, settled_ms: int) -> None:
    own = turn.evidence.get("seconds")
    measured: Mapping[str, float] = own if isinstance(own, dict) else {}
    # who follows the registry itself may serve a moment before the record of it is on `.releases`
    told_ms = turn.decided_ms if turn.served_ms is None else min(turn.decided_ms, turn.served_ms)
    turn.seconds = dict.fromkeys(STAGES[:-2], 0.0)
    turn.seconds |= {stage: float(measured[stage]) for stage in _MEASURED if stage in measured}
    turn.seconds["settle"] = (settled_ms - turn.began_ms) / 1000
    turn.seconds["snapshot"] = (turn.snapshot_ms - settled_ms) / 1000
    turn.seconds["queue"] = (told_ms - turn.snapshot_ms) / 1000 - sum(turn.seconds[stage] for stage in _MEASURED)
    if turn.approved_ms is not None:
        approved_ms = turn.approved_ms if turn.served_ms is None else min(turn.approved_ms, turn.served_ms)
        turn.seconds["approve"] = (approved_ms - told_ms) / 1000
        told_ms = approved_ms
    if turn.served_ms is not None:
        turn.seconds["serve"] = (turn.served_ms - told_ms) / 1000
