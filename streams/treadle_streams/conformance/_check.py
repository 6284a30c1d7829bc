"""One run over records of a producer: each by itself, then what they say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from treadle.redaction import RedactionRefused, Redactor
from treadle_schemas import codec
from treadle_schemas.canonical import dumps
from treadle_schemas.conformance import (
    Finding,
    SentRecord,
    clock_findings,
    expected_key,
    header_findings,
    identity,
    unknown_fields,
)
from treadle_schemas.errors import shown
from treadle_schemas.partitioner import partition_of
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.conformance._sources import Place
from treadle_streams.join.arrivals import (
    Arrival,
    InteractionEvent,
    MarkerEvent,
    PartsEvent,
    Refused,
    understand,
)
from treadle_streams.join.grading import Grading
from treadle_streams.join.state import Seen

__all__ = ["Check", "Found", "json_of"]

_NAMES: Final = {
    codec.INTERACTION: "interactions",
    codec.OUTCOME: "outcomes",
    codec.PART: "parts",
    codec.EPISODE_END: "episode ends",
    codec.ERASURE: "erasures",
    codec.IMPORT_MARKER: "import markers",
}
_OTHER: Final = "unreadable"
_NO_KEY: Final = b"no workspace's key: what is found is counted, never kept"
_MAX_KEPT: Final = 10_000
"""Findings that are kept; all are counted."""


@dataclass(frozen=True, slots=True)
class Found:
    """A finding and the record it is about; `place` None: about the whole run."""

    place: Place | None
    finding: Finding


@dataclass(slots=True)
class _Import:
    seen: Place
    markers: set[tuple[str, int, str]] = field(default_factory=set)


class Check:
    """Counts and findings so far. `add` each record, then `finish` once.

    `workspace_policy` false: the settings are made up for a file, so nothing is held against their PII policy.
    """

    def __init__(self, settings: WorkspaceSettings, *, workspace_policy: bool = True) -> None:
        """Raises SettingError for settings that make no sense."""
        self._grading = Grading(settings)
        self._settings = settings
        self._policy = settings.pii if workspace_policy else None
        self._redactor = Redactor(settings.pii, _NO_KEY) if self._policy and settings.pii.effective() else None
        self.records = 0
        self.repeats = 0
        """Records that say again what one before them said; harmless."""
        self.kinds: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.found: list[Found] = []
        self._contents: dict[tuple[str | None, ...], tuple[str, Place]] = {}
        self._parts: dict[tuple[str, str], list[str]] = {}
        self._named: list[tuple[str, tuple[str, ...], Place]] = []
        self._imports: dict[str, _Import] = {}

    @property
    def conforming(self) -> bool:
        """Something was there, and nothing of it was wrong."""
        return self.records > 0 and not self.errors

    def add(self, record: SentRecord, place: Place) -> list[Found]:
        """Check one record; what was found in it, and kept."""
        self.records += 1
        new = [Found(place, finding) for finding in self._of(record, place)]
        self._keep(new)
        return new

    def finish(self, *, whole: bool) -> list[Found]:
        """What only all records together show: parts that are missing, imports without markers. `whole`: nothing was left out, so
        what is not among the records is not there."""
        new = [*self._missing_parts(whole), *(self._open_imports() if whole else ())]
        self._keep(new)
        return new

    def unread(self, place: Place, detail: str) -> list[Found]:
        """A line of a file that holds no record."""
        self.records += 1
        self.kinds[_OTHER] += 1
        new = [Found(place, Finding("error", "no_record", detail))]
        self._keep(new)
        return new

    def _keep(self, new: list[Found]) -> None:
        for found in new:
            counts = self.errors if found.finding.level == "error" else self.warnings
            counts[found.finding.reason] += 1
        self.found += new[: _MAX_KEPT - len(self.found)]

    def _of(self, record: SentRecord, place: Place) -> Iterator[Finding]:
        # what stands nowhere yet is judged as if the partitioner had placed it, and had arrived on time
        partition = record.partition
        if partition is None:
            partition = 0 if record.key is None else partition_of(record.key, self._settings.partitions)
        arrival = Arrival(
            record.kind, partition, 0, record.append_ms or 0, record.key, record.value, list(record.headers)
        )
        said = understand(arrival, self._grading)
        yield from header_findings(record.headers)
        if isinstance(said, Refused):
            event_type = codec.header_map(record.headers).get("ce_type", b"").decode(errors="replace")
            self.kinds[_NAMES.get(event_type, _OTHER)] += 1
            yield Finding("error", said.reason, said.detail)
            return
        event = codec.decode(record.value, record.headers)
        self.kinds[_NAMES.get(event.type, event.type)] += 1
        yield from unknown_fields(event.type, event.data)
        if record.append_ms is not None:
            yield from clock_findings(event.type, event.data, record.append_ms)
        yield from self._private(event)
        # 1 and 1.0 of a float metric are one content, as in the join
        seen: Seen | None = getattr(said, "seen", None)
        kept = {} if seen is None or event.data.get("op") == "retract" else {"value": seen.value}
        yield from self._once(event.type, event.data | kept, place)
        self._note(said, event, record, place)

    def _placed(self, arrival: Arrival, event: codec.Event) -> Iterator[Finding]:
        """Key and partition of what the join puts aside before it looks at them."""
        wanted = expected_key(event.type, event.data)
        if wanted is None:
            return
        if arrival.key != wanted.encode():
            detail = f"key: {shown(arrival.key)}, but this event is keyed by {shown(wanted)}"
            yield Finding("error", "malformed", detail)
        elif arrival.partition != (right := partition_of(wanted.encode(), self._settings.partitions)):
            detail = (
                f"partition: {arrival.partition}, but murmur2 puts {shown(wanted)} into {right}; set the partitioner"
            )
            yield Finding("error", "wrong_partition", detail)

    def _private(self, event: codec.Event) -> Iterator[Finding]:
        """Is the policy that the header names the workspace's, and does the value look as if it had been carried out?"""
        if self._policy is None or event.type not in (codec.INTERACTION, codec.OUTCOME, codec.PART):
            return
        policy = self._policy
        wanted = "off" if policy.name == "off" else f"{policy.name}/{policy.version}"
        said = event.headers.get("ce_pii", wanted.encode()).decode(errors="replace")
        if said == "off" and policy.effective():
            detail = (
                f"headers.ce_pii: off, but the workspace's policy is {wanted}; carry it out before anything is written"
            )
            yield Finding("error", "pii_off", detail)
        elif said != wanted:
            detail = f"headers.ce_pii: {shown(said)}, but the workspace's policy is {wanted} now"
            yield Finding("warning", "pii_other", detail)
        kinds = self._still_private(event)
        if kinds:
            detail = f"$: the workspace's detectors still find {kinds}; redact it before it is sent"
            yield Finding("warning", "pii_found", detail)

    def _still_private(self, event: codec.Event) -> str:
        if self._redactor is None:
            return ""
        data: dict[str, Any] = event.data
        if event.type == codec.PART:  # its content, where an interaction has it
            data = {"messages": data.get("messages") or [{"role": "part", "content": data.get("value")}]}
        elif event.type == codec.OUTCOME:
            data = {"messages": [*(data.get("messages") or ()), {"role": "outcome", "content": data.get("value")}]}
        try:
            before = (event.data.get("redaction") or {}).get("counts") or {}
            counts = self._redactor.redact(data)["redaction"].get("counts", {})
        except RedactionRefused:
            return "what it refuses"
        new = {kind: count - before.get(kind, 0) for kind, count in counts.items()}
        return ", ".join(f"{kind} {count}" for kind, count in sorted(new.items()) if count > 0)

    def _once(self, event_type: str, data: dict[str, Any], place: Place) -> Iterator[Finding]:
        known = identity(event_type, data)
        if known is None:
            return
        name, content = known
        first, where = self._contents.setdefault(name, (content, place))
        if where is place:
            return
        if first == content:
            self.repeats += 1
            return
        field_name = "$.interaction_id" if event_type == codec.INTERACTION else "$.outcome_id"
        detail = (
            f"{field_name}: {shown(name[-1])} was sent with other content at {where}; one of the two is kept. "
            "An id stands for one content: send corrections under a new one, or as a retract and a new outcome"
        )
        yield Finding("error", "conflict", detail)

    def _note(self, said: object, event: codec.Event, record: SentRecord, place: Place) -> None:
        if event.import_id is not None:
            found = self._imports.setdefault(event.import_id, _Import(place))
            if isinstance(said, MarkerEvent):
                found.markers.add((record.kind, record.partition or 0, said.marker.phase))
        if isinstance(said, PartsEvent):
            self._parts.update({(said.episode_id, part.hash): part.needs for part in said.parts})
        elif isinstance(said, InteractionEvent) and said.captured.parts:
            self._named.append((said.episode_id, said.captured.parts, place))

    def _missing_parts(self, whole: bool) -> Iterator[Found]:
        for episode_id, names, place in self._named:
            left, seen = list(names), set[str]()
            while left:
                name = left.pop()
                if name in seen:
                    continue
                seen.add(name)
                needs = self._parts.get((episode_id, name))
                if needs is None:
                    detail = f"part {name} of episode {shown(episode_id)} is not among the records; send parts before what names them"
                    yield Found(place, Finding("error" if whole else "warning", "part_missing", detail))
                    break
                left += needs

    def _open_imports(self) -> Iterator[Found]:
        for import_id, found in self._imports.items():
            for phase in ("begin", "end"):
                lacking = [
                    f"{kind}[{n}]"
                    for kind in ("interactions", "outcomes")
                    for n in range(self._settings.partitions)
                    if (kind, n, phase) not in found.markers
                ]
                if lacking:
                    detail = (
                        f"import {shown(import_id)} has no {phase} marker on {', '.join(lacking[:8])}"
                        f"{' and others' if len(lacking) > 8 else ''}; send one to every partition of both topics"
                    )
                    yield Found(found.seen, Finding("error", "import_open", detail))


def json_of(found: Found) -> bytes:
    """A finding as a line of JSON."""
    place = {} if found.place is None else found.place.to_json()
    return dumps({**place, **found.finding._asdict()})
