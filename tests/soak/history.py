"""The history that the join is given while things break. A new kind of event is one more entry of `KINDS`.

Each maker draws ids from what the history holds so far and returns records to append, in an order that no join may care about. Poison
(what no join can take) is among them at all times.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from treadle.log import Sender
from treadle_schemas import codec
from treadle_schemas.moments import from_micros
from treadle_schemas.partitioner import partition_of
from treadle_schemas.parts import SentParts, split
from treadle_schemas.topics import topic

__all__ = ["KINDS", "POISON", "Entry", "History", "Writer"]

Data = dict[str, Any]
T0_US: Final = 1_700_000_000_000_000
_END_S: Final = 100_000
"""Event time of the ends that close the history: after every interaction."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One record to append. Without key it goes to every partition; `raw` is sent in place of the data."""

    topic: str
    event_type: str
    key: str | None
    data: Data
    import_id: str | None = None
    raw: bytes | None = None
    shift: int = 0
    """Partitions beside the right one."""


class History:
    """What was said so far, and what is still held back."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.second = 0
        self.rows: deque[Data] = deque(maxlen=2_000)
        """Ids of rows, the newest last; some of them were never captured, or will be."""
        self.episodes: deque[str] = deque(maxlen=300)
        self.all_episodes: set[str] = set()
        self.references: deque[str] = deque(maxlen=40)
        self.said: deque[Entry] = deque(maxlen=1_000)
        self.held: deque[Entry] = deque()
        """Interactions whose outcomes came first, and parts."""
        self.counts: Counter[str] = Counter()
        self._number = 0

    def next(self) -> list[Entry]:
        """Records of one kind, drawn."""
        self.second += 1
        kind = self.random.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
        entries = KINDS[kind][1](self)
        self.counts[kind] += len(entries)
        self.said += [entry for entry in entries if entry.raw is None and entry.key is not None]
        while len(self.held) > 50:
            entries.append(self.held.popleft())
        return entries

    def last(self) -> list[Entry]:
        """What closes the history: everything held back, and an end for each episode."""
        ends = [
            Entry("interactions", codec.EPISODE_END, name, {"episode_id": name, "ended_at": _at(_END_S)})
            for name in sorted(self.all_episodes)
        ]
        self.counts["closing"] += len(ends) + len(self.held)
        return [*self.held, *ends]

    def number(self) -> int:
        """A number that nothing else has."""
        self._number += 1
        return self._number

    def new_row(self, episode: str | None = None) -> Data:
        """Ids of a row that was not there."""
        name = f"i{self.number()}"
        ids = {"episode_id": episode or name, "interaction_id": name}
        self.rows.append(ids)
        return ids

    def new_episode(self) -> str:
        """An episode that was not there."""
        name = f"e{self.number()}"
        self.episodes.append(name)
        self.all_episodes.add(name)
        return name

    def row(self) -> Data:
        """A row: mostly a new one, sometimes one whose time was up long ago."""
        rows = self.rows or [self.new_row()]
        near = min(len(rows), 60)
        back = (
            self.random.randrange(1, near + 1)
            if self.random.random() < 0.8
            else self.random.randrange(1, len(rows) + 1)
        )
        return dict(rows[-back])

    def episode(self) -> str:
        """An episode that was mentioned before."""
        return self.random.choice(list(self.episodes)[-40:]) if self.episodes else self.new_episode()

    def again(self, event_type: str) -> Entry | None:
        """Something of that type that was said before."""
        known = [entry for entry in self.said if entry.event_type == event_type and entry.import_id is None]
        return self.random.choice(known) if known else None


def _at(second: float) -> str:
    return from_micros(T0_US + int(second * 1_000_000))


def _interaction(h: History, ids: Data, **more: Any) -> Entry:
    name = ids["interaction_id"]
    data = {
        **ids,
        "agent": "bot",
        "messages": [{"role": "user", "content": name * 40}, {"role": "assistant", "content": "yes"}],
        "started_at": _at(h.second),
        "ended_at": _at(h.second + 1),
        **more,
    }
    if h.random.random() < 0.8:
        data.setdefault("task_id", f"t-{ids['episode_id']}")
    return Entry("interactions", codec.INTERACTION, ids["episode_id"], data)


def _outcome(h: History, ids: Data, **more: Any) -> Entry:
    name = more.get("name") or h.random.choice(("reward", "reward", "score", "mood"))
    value = {
        "reward": h.random.choice((0.0, 0.5, 1, None)),
        "score": h.random.random(),
        "mood": h.random.choice(("sad", "glad")),
        "done": h.random.choice((True, False)),
    }.get(name)
    data = {**ids, "name": name, "value": value, "outcome_id": f"o{h.number()}"}
    data |= {"observed_at": _at(h.second + h.random.randint(-30, 60)), **more}
    key = data.get("episode_id") or data.get("interaction_id") or data["reference"]
    return Entry("outcomes", codec.OUTCOME, key, data)


def _shuffled(h: History, entries: list[Entry]) -> list[Entry]:
    h.random.shuffle(entries)
    return entries


def _alone(h: History) -> list[Entry]:
    ids = h.new_row()
    outcomes = [_outcome(h, ids) for _ in range(h.random.choice((0, 1, 1, 2)))]
    return _shuffled(h, [_interaction(h, ids), *outcomes])


def _episode(h: History) -> list[Entry]:
    name = h.new_episode()
    entries = [_interaction(h, h.new_row(name), step=n) for n in range(h.random.randint(2, 5))]
    entries += [_outcome(h, h.row() | {"episode_id": name}) for _ in range(2)]
    if h.random.random() < 0.5:
        entries.append(_outcome(h, {"episode_id": name}, name=h.random.choice(("reward", "done"))))
    if h.random.random() < 0.5:
        entries.append(
            Entry("interactions", codec.EPISODE_END, name, {"episode_id": name, "ended_at": _at(h.second + 1)})
        )
    return _shuffled(h, entries)


def _further_step(h: History) -> list[Entry]:
    return [_interaction(h, h.new_row(h.episode()))]


def _said_of_row(h: History) -> list[Entry]:
    return [_outcome(h, h.row())]


def _said_first(h: History) -> list[Entry]:
    ids = h.new_row(h.episode() if h.random.random() < 0.5 else None)
    h.held.append(_interaction(h, ids))
    return [_outcome(h, ids, name="reward"), _outcome(h, ids)]


def _said_late(h: History) -> list[Entry]:
    old = list(h.rows)[: max(1, len(h.rows) // 4)]
    return [_outcome(h, dict(h.random.choice(old)))] if old else _alone(h)


def _said_again(h: History) -> list[Entry]:
    known = [h.random.choice(h.said) for _ in range(2)] if h.said else []
    return known or _alone(h)


def _other_content(h: History) -> list[Entry]:
    known = h.again(codec.INTERACTION)
    if known is None:
        return _alone(h)
    data = known.data | {
        "agent": h.random.choice(("bot", "other")),
        "ended_at": _at(h.second + h.random.choice((-1, 1))),
    }
    return [Entry("interactions", codec.INTERACTION, known.key, data)]


def _same_id(h: History) -> list[Entry]:
    known = h.again(codec.OUTCOME)
    if known is None or known.data.get("op") == "retract" or known.data["name"] not in ("reward", "score"):
        return _said_of_row(h)
    data = known.data | {"value": h.random.choice((0.25, 0.75)), "observed_at": _at(h.second + h.random.randint(0, 9))}
    return [Entry("outcomes", codec.OUTCOME, known.key, data)]


def _retract_one(h: History) -> list[Entry]:
    known = h.again(codec.OUTCOME)
    if known is None or known.data.get("op") == "retract" or known.data.get("kind"):
        return _said_of_row(h)
    kept = {k: v for k, v in known.data.items() if k not in ("value", "observed_at")}
    return [Entry("outcomes", codec.OUTCOME, known.key, kept | {"op": "retract", "observed_at": _at(h.second)})]


def _retract_first(h: History) -> list[Entry]:
    outcome = _outcome(h, h.row(), name="score")
    kept = {k: v for k, v in outcome.data.items() if k not in ("value", "observed_at")}
    h.held.append(outcome)
    return [Entry("outcomes", codec.OUTCOME, outcome.key, kept | {"op": "retract", "observed_at": _at(h.second)})]


def _retract_all(h: History) -> list[Entry]:
    ids = h.row() if h.random.random() < 0.7 else {"episode_id": h.episode()}
    data = {**ids, "name": "score", "op": "retract", "observed_at": _at(h.second + h.random.randint(-20, 20))}
    return [Entry("outcomes", codec.OUTCOME, data["episode_id"], data)]


def _of_episode(h: History) -> list[Entry]:
    return [_outcome(h, {"episode_id": h.episode()}, name=h.random.choice(("reward", "done", "score")))]


def _episode_end(h: History) -> list[Entry]:
    name = h.episode()
    data = {"episode_id": name, "ended_at": _at(h.second + h.random.randint(-20, 2))}
    return [Entry("interactions", codec.EPISODE_END, name, data)]


def _by_interaction(h: History) -> list[Entry]:
    return [_outcome(h, {"interaction_id": h.row()["interaction_id"]})]


def _referring(h: History) -> list[Entry]:
    names = [h.random.choice(h.references)] if h.references and h.random.random() < 0.5 else []
    names.append(f"pr:org/repo#{h.number()}")
    h.references.append(names[-1])
    ids = h.new_row(h.episode() if h.random.random() < 0.5 else None)
    entries = [_interaction(h, ids, references=names), _outcome(h, {"reference": names[-1]}, name="reward")]
    return _shuffled(h, entries)


def _by_reference(h: History) -> list[Entry]:
    return [_outcome(h, {"reference": h.random.choice(h.references)})] if h.references else _referring(h)


def _reference_first(h: History) -> list[Entry]:
    name = f"pr:org/repo#{h.number()}"
    h.held.append(_interaction(h, h.new_row(h.episode()), references=[name]))
    return [_outcome(h, {"reference": name}, name="reward")]


def _long(h: History) -> list[Entry]:
    ids = h.new_row(h.new_episode())
    messages = [{"role": role, "content": f"{h.number()} " * 400} for role in ("user", "assistant", "user")]
    body, parts = split(_interaction(h, ids, messages=messages).data, SentParts())
    entries = [Entry("interactions", codec.PART, ids["episode_id"], part) for part in parts]
    if h.random.random() < 0.3 and entries:
        h.held.append(entries.pop())
    return _shuffled(h, [*entries, Entry("interactions", codec.INTERACTION, ids["episode_id"], body), _outcome(h, ids)])


def _import(h: History) -> list[Entry]:
    import_id = f"imp{h.number()}"

    def marks(phase: str) -> list[Entry]:
        data = {"import_id": import_id, "phase": phase}
        return [Entry(name, codec.IMPORT_MARKER, None, data) for name in ("interactions", "outcomes")]

    entries = []
    for _ in range(3):
        ids = h.new_row()
        entries += [_interaction(h, ids), _outcome(h, ids, name="reward")]
    imported = [Entry(e.topic, e.event_type, e.key, e.data, import_id) for e in _shuffled(h, entries)]
    return [*marks("begin"), *imported, *marks("end")]


def _feedback(h: History) -> list[Entry]:
    kind = h.random.choice(("comment", "preference", "demonstration"))
    more: dict[str, Data] = {
        "comment": {"value": "well done"},
        "preference": {"value": None, "over": "another"},
        "demonstration": {"value": None, "messages": [{"role": "assistant", "content": "better"}]},
    }
    return [_outcome(h, h.row(), name="said", kind=kind, **more[kind])]


def _rights(h: History) -> list[Entry]:
    more: Data = {"kind": "rights", "name": h.random.choice(("train", "eval")), "outcome_id": "r"}
    return [_outcome(h, h.row(), value=h.random.choice(("allow", "deny")), **more)]


def _orphan(h: History) -> list[Entry]:
    return [_outcome(h, {"episode_id": h.episode(), "interaction_id": "nobody"})]


def _undeclared(h: History) -> list[Entry]:
    return [_outcome(h, h.row(), name="surprise", value=h.random.choice((1, "much")))]


def _malformed(h: History) -> list[Entry]:
    raw = h.random.choice((b"{", b"[]", b"\xff\xfe", b"", b'{"name":"reward"}'))
    name, kind = h.random.choice((("outcomes", codec.OUTCOME), ("interactions", codec.INTERACTION)))
    return [Entry(name, kind, h.row()["episode_id"], {}, raw=raw)]


def _wrong_type(h: History) -> list[Entry]:
    return [_outcome(h, h.row(), name="reward", value="text")]


def _out_of_range(h: History) -> list[Entry]:
    return [_outcome(h, h.row(), name="reward", value=7.0)]


def _misplaced(h: History) -> list[Entry]:
    one = _outcome(h, h.row())
    return [Entry(one.topic, one.event_type, one.key, one.data, raw=json.dumps(one.data).encode(), shift=1)]


def _unknown_type(h: History) -> list[Entry]:
    one = _outcome(h, h.row())
    return [Entry(one.topic, "dev.treadle.outcome.v9", one.key, one.data, raw=json.dumps(one.data).encode())]


KINDS: Final[dict[str, tuple[float, Callable[[History], list[Entry]]]]] = {
    "alone": (10, _alone),
    "episode": (8, _episode),
    "further step": (4, _further_step),
    "said of a row": (10, _said_of_row),
    "said first": (6, _said_first),
    "said late": (4, _said_late),
    "said again": (5, _said_again),
    "other content": (2, _other_content),
    "same outcome id": (2, _same_id),
    "retract one": (3, _retract_one),
    "retract before": (2, _retract_first),
    "retract all": (2, _retract_all),
    "of an episode": (4, _of_episode),
    "episode end": (2, _episode_end),
    "by interaction id": (4, _by_interaction),
    "referring": (3, _referring),
    "by reference": (4, _by_reference),
    "reference first": (2, _reference_first),
    "long": (1, _long),
    "import": (0.5, _import),
    "feedback": (1, _feedback),
    "rights": (1, _rights),
    "orphan": (1, _orphan),
    "undeclared": (1, _undeclared),
    "malformed": (1, _malformed),
    "wrong type": (1, _wrong_type),
    "out of range": (1, _out_of_range),
    "misplaced": (1, _misplaced),
    "unknown type": (1, _unknown_type),
}
"""By name, how often, and what makes it."""
POISON: Final = frozenset({"malformed", "wrong type", "out of range", "misplaced", "unknown type"})


class Writer(threading.Thread):
    """Produces the history until told to finish, and counts what Kafka acknowledged."""

    def __init__(self, servers: str, workspace: str, partitions: int, seed: int, rate_per_s: float) -> None:
        super().__init__(name=f"writer-{workspace}", daemon=True)
        self.history = History(seed)
        self._workspace, self._partitions, self._rate_per_s = workspace, partitions, rate_per_s
        # a broker may be away, or its disk full, for most of a minute
        self._sender = Sender(servers, timeout_s=180.0)
        self._quit = threading.Event()
        self._resting = threading.Event()

    def run(self) -> None:
        """Keep to the rate on average, so that a broker that was away finds what it missed."""
        due_s = time.monotonic()
        while not self._quit.wait(max(0.0, due_s - time.monotonic())):
            if self._resting.is_set():
                due_s = time.monotonic() + 0.05
                continue
            entries = self.history.next()
            for entry in entries:
                self._send(entry)
            due_s += len(entries) / self._rate_per_s

    def rest(self, resting: bool) -> None:
        """Make nothing for a while: then only time moves the join."""
        (self._resting.set if resting else self._resting.clear)()

    def stop(self) -> None:
        """End without closing the history."""
        self._quit.set()

    def finish(self) -> int:
        """Close the history; how many records Kafka has of it."""
        self._quit.set()
        self.join(60)
        for entry in self.history.last():
            self._send(entry)
        self._sender.flush(180.0)
        return self._sender.acked

    def _send(self, entry: Entry) -> None:
        headers = codec.make_headers(entry.event_type, self._workspace, source="test", import_id=entry.import_id)
        value = entry.raw if entry.raw is not None else json.dumps(entry.data).encode()
        name = topic(self._workspace, entry.topic)
        if entry.key is None:
            for partition in range(self._partitions):
                self._sender.send(name, None, value, headers, partition)
            return
        key = entry.key.encode()
        self._sender.send(
            name, key, value, headers, (partition_of(key, self._partitions) + entry.shift) % self._partitions
        )
