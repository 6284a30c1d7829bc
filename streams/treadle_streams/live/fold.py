"""Records of the log into rows of the index. Which interactions count, and which of two with one id, is as the join decides it.

A batch is one transaction of `Rows`; `changed` are the ids whose text the text index has to take over before it is committed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from treadle.log import Record
from treadle_schemas.canonical import content_hash, dumps, loads
from treadle_schemas.codec import PROGRESS, header_map
from treadle_schemas.parts import Part, names_parts
from treadle_schemas.records import Progress
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.join.arrivals import (
    Arrival,
    EpisodeEvent,
    InteractionEvent,
    PartsEvent,
    RightsEvent,
    understand,
)
from treadle_streams.join.grading import Grading
from treadle_streams.live.erased import Erased
from treadle_streams.live.extract import Spoken, Text, captured, spoken, text_of, with_claims
from treadle_streams.live.store import Hidden, Row, Rows, StoredPart

__all__ = ["INPUTS", "Fold"]

_LOG: Final = logging.getLogger(__name__)

INPUTS: Final = ("interactions", "outcomes", "references", "progress")
"""The topics that an index is made of."""
_PROGRESS: Final = PROGRESS.encode()
_RECALL: Final = "recall"


class Fold:
    """Takes records in, one partition's in their order. The caller begins, commits and forgets transactions of `rows`."""

    def __init__(self, rows: Rows, settings: WorkspaceSettings, erased: Erased) -> None:
        self._rows = rows
        self._grading = Grading(settings)
        self._erased = erased
        self._prefix = len(f"treadle.{settings.workspace}.")
        self._progress = msgspec.json.Decoder(Progress)
        self.changed: dict[int, None] = {}
        """Rows whose text or facets changed since `changed` was cleared, in their order."""
        self.waiting = {(row.episode, row.interaction): _place(row) for row in rows.waiting()}
        """Rows whose interaction has to be read again, with partition and offset: parts were missing, or they may be recalled once more."""
        self._waiting_episodes = {episode for episode, _ in self.waiting}
        self.uncovered: list[str] = []
        """Episodes that turned out to be an erased subject's after something of them was taken in."""
        self.fresh_parts: set[str] = set()
        """Episodes with waiting rows of which parts came since this was cleared."""
        self.parts_erased = False
        """Whether a shown row lost its text since this was set to false, because a part of it was erased."""
        self.newest_grading = settings.grading_version

    def take(self, record: Record) -> None:
        """Take one record in. What the join refuses, and what says nothing here, changes nothing."""
        kind = record.topic[self._prefix :]
        if kind == "progress":
            if header_map(record.headers).get("ce_type") == _PROGRESS and record.value is not None:
                self._graded(record.value)
            return
        if kind != "interactions" and b'"rights"' not in (record.value or b""):
            return
        arrival = Arrival(
            kind,  # type: ignore[arg-type]
            record.partition,
            record.offset,
            record.timestamp_ms,
            record.key,
            record.value,
            record.headers,
        )
        match understand(arrival, self._grading):
            case InteractionEvent() as event:
                self._interaction(event)
            case PartsEvent() as event:
                self._parts(event.episode_id, event.parts)
            case RightsEvent() as event if event.right == _RECALL:
                self._right(event.episode_id, event.interaction_id, event.observed_us, event.value)
            case EpisodeEvent() as event if event.op == "erase":
                if not self._erased.covers(event.episode_id, None):
                    self.uncovered.append(event.episode_id)
            case EpisodeEvent() as event if event.right == _RECALL:
                self._right(event.episode_id, "", event.observed_us, event.value)

    # ---- interactions

    def _interaction(self, event: InteractionEvent) -> None:
        row, body = self._rows.row(event.episode_id, event.interaction_id), loads(event.captured.body)
        if (row.episode, row.interaction) != (event.episode_id, event.interaction_id):
            _LOG.error("%s/%s has the id of another row and is left out", event.episode_id, event.interaction_id)
            return
        subject = _plain(body.get("subject"))
        if event.erased or self._erased.covers(event.episode_id, subject):
            if not self._erased.covers(event.episode_id, None):
                self.uncovered.append(event.episode_id)
            return
        hash_ = content_hash(body)
        if row.content is not None and row.content != hash_:
            assert row.ended_us is not None
            if (row.ended_us, row.content) < (event.captured.ended_us, hash_):
                return
        elif row.content == hash_ and row.hidden not in ("unseen", "waiting"):
            return
        append_ms = event.captured.append_ms if row.append_ms is None else min(row.append_ms, event.captured.append_ms)
        row = row._replace(
            subject=subject,
            captured=dumps(captured(body)).decode(),
            ended_us=event.captured.ended_us,
            content=hash_,
            side=event.captured.side,
            needs=dumps(names_parts(body)).decode(),
            append_ms=append_ms,
            partition=event.arrival.partition,
            position=event.arrival.offset,
        )
        self._settle(row, body)

    def _settle(self, row: Row, body: dict[str, Any]) -> None:
        """Decide whether a row is shown, and write it. `body` is its interaction."""
        why = self._why(row, body)
        if why == "":
            found = self._text(row.episode, body)
            if found is None:
                why = "waiting"
            else:
                row = row._replace(asked=found.asked, request=found.request, response=found.response)
        self._write(row, why)

    def _why(self, row: Row, body: dict[str, Any]) -> Hidden:
        if (body.get("redaction") or {}).get("error") is not None:
            return "redacted"
        said = (body.get("rights") or {}).get(_RECALL, "allow")
        if self._word(row.episode, row.interaction, said) == "deny":
            return "denied"
        return "erased" if self._names_erased(row.episode, names_parts(body)) else ""

    def _write(self, row: Row, why: Hidden) -> None:
        if why != "":
            # its position stays, by which it can be read again
            row = row._replace(captured=None, asked=None, request=None, response=None)
        self._rows.put(row._replace(hidden=why))
        self.changed[row.id] = None
        if why == "waiting":
            self.waiting[row.episode, row.interaction] = _place(row)
            self._waiting_episodes.add(row.episode)
        else:
            self.waiting.pop((row.episode, row.interaction), None)
        if why not in ("", "waiting") and not any(
            one.hidden in ("", "waiting") for one in self._rows.of_episode(row.episode)
        ):
            self._rows.forget_parts(row.episode)

    def _text(self, episode: str, body: dict[str, Any]) -> Text | None:
        """What is searched; None where parts are missing."""
        own = {p: name for p, name in (body.get("claims") or {}).items() if p.startswith("/messages/")}
        said = with_claims({"messages": body["messages"]}, own, lambda name: self._value(episode, name))
        messages, transcript = said["messages"], body.get("transcript")
        head, before = (None, 0) if transcript is None else (transcript["head"], transcript["count"])
        first: Spoken | None = None
        if head is not None:
            part = self._rows.part(episode, head)
            if part is None:
                return None
            if part.first is not None:
                found = self._rows.part(episode, part.first)
                first = None if found is None else found.spoken
        try:
            return text_of(
                self._newest_first(episode, messages, head), before + len(messages), body.get("response"), first
            )
        except KeyError:
            return None

    def _newest_first(self, episode: str, messages: list[dict[str, Any]], head: str | None) -> Iterator[Spoken]:
        """Raises KeyError where a part is missing."""
        for message in reversed(messages):
            yield spoken(message)
        while head is not None:
            part = self._rows.part(episode, head)
            if part is None or part.kind != "message":
                raise KeyError(head)
            yield part.spoken
            head = part.prev

    # ---- parts

    def _parts(self, episode: str, parts: list[Part]) -> None:
        if self._erased.covers(episode, None):
            return
        for part in parts:
            known = self._rows.part(episode, part.hash)
            if part.kind == "erased":
                if known is None or known.kind != "erased":
                    self._rows.put_part(episode, part.hash, StoredPart("erased", Spoken("", ""), None, None))
                    self._part_erased(episode)
            elif known is None:
                self._rows.put_part(episode, part.hash, self._stored(episode, part))
                if episode in self._waiting_episodes:
                    self.fresh_parts.add(episode)

    def _stored(self, episode: str, part: Part) -> StoredPart:
        if part.kind == "value":
            text = part.body if isinstance(part.body, str) else ""
            return StoredPart("value", spoken({"role": "", "content": text}), None, None)
        message = part.body
        if part.claims:
            message = with_claims(message, part.claims, lambda name: self._value(episode, name))
        said = spoken(message)
        before = None if part.prev is None else self._rows.part(episode, part.prev)
        first = before.first if before is not None else None
        if first is None and said.role == "user" and (part.prev is None or before is not None):
            first = part.hash
        return StoredPart("message", said, part.prev, first)

    def _value(self, episode: str, name: str) -> str | None:
        part = self._rows.part(episode, name)
        return None if part is None or part.kind != "value" else part.spoken.text

    def _names_erased(self, episode: str, needs: list[str]) -> bool:
        left, seen = list(needs), set[str]()
        while left:
            name = left.pop()
            if name in seen:
                continue
            seen.add(name)
            part = self._rows.part(episode, name)
            if part is not None and part.kind == "erased":
                return True
            if part is not None and part.prev is not None:
                left.append(part.prev)
        return False

    def _part_erased(self, episode: str) -> None:
        for row in self._rows.of_episode(episode):
            if row.hidden in ("", "waiting") and self._names_erased(episode, loads((row.needs or "[]").encode())):
                self.parts_erased |= row.hidden == ""
                self._write(row, "erased")

    # ---- rights

    def _word(self, episode: str, interaction: str, first: str) -> str:
        """allow or deny: what the interaction says holds until something else is said, then the later word."""
        said = [right for who in (interaction, "") if (right := self._rows.right(episode, who)) is not None]
        return max(said)[1] if said else first

    def _right(self, episode: str, interaction: str, at_us: int, value: str) -> None:
        if self._erased.covers(episode, None):
            return
        known = self._rows.right(episode, interaction)
        if known is not None and known >= (at_us, value):  # "deny" > "allow"
            return
        self._rows.set_right(episode, interaction, at_us, value)
        rows = self._rows.of_episode(episode) if interaction == "" else [self._rows.row(episode, interaction)]
        for row in rows:
            if row.position is None:
                continue
            word = self._word(row.episode, row.interaction, "deny" if row.hidden == "denied" else "allow")
            if word == "deny" and row.hidden in ("", "waiting"):
                self._write(row, "denied")
            elif word == "allow" and row.hidden == "denied":
                self._write(row, "waiting")

    # ---- grades

    def _graded(self, value: bytes) -> None:
        try:
            said = self._progress.decode(value)
        except msgspec.DecodeError:
            return  # it only informs: whoever must not miss it says so
        row = self._rows.row(said.episode_id, said.interaction_id)
        if row.interaction != said.interaction_id or self._erased.covers(said.episode_id, None):
            return
        self.newest_grading = max(self.newest_grading, said.grade.grading_version)
        if row.hidden == "unseen":
            self._rows.put(row._replace(progress=value.decode(), revision=said.revision))
        else:
            self._rows.grade(row.id, value.decode(), said.revision)
        self._rows.add_metrics((_plain(name) or "", _kind(found)) for name, (_, found) in said.grade.metrics.items())


def _place(row: Row) -> tuple[int, int]:
    assert row.partition is not None
    assert row.position is not None
    return row.partition, row.position


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    return "text" if isinstance(value, str) else "" if value is None else "number"


def _plain(text: Any) -> str | None:
    """A text without lone surrogates, which no file can hold."""
    return text.encode(errors="replace").decode() if isinstance(text, str) else None
