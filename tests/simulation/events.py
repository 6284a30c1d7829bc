"""The events of a schedule, kind by kind. A new kind of event is one more entry of `KINDS`.

Each maker draws a few ids from small pools, so that events of every kind meet on the same rows, and returns what is to be appended.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from treadle_schemas import codec
from treadle_schemas.moments import from_micros
from treadle_schemas.partitioner import partition_of
from treadle_schemas.parts import SentParts, split

from simulation.log import T0_MS

__all__ = ["KINDS", "WORKSPACE", "Event", "draw"]

WORKSPACE: Final = "sim"
Data = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """One record to append."""

    kind: str
    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: list[tuple[str, Any]]


class _Pool:
    """Ids and records of one schedule."""

    def __init__(self, random: Random, partitions: int) -> None:
        self.random = random
        self.partitions = partitions
        self.episodes = [f"e{n}" for n in range(4)]
        self.sent = SentParts()
        self.part_records: list[tuple[str, Data]] = []
        self.said: list[tuple[str, str, str, Data]] = []
        """(topic, event type, key, data) of what was sent, to be sent again."""

    def row(self) -> Data:
        """A row's ids."""
        episode = self.random.choice(self.episodes)
        return {"episode_id": episode, "interaction_id": f"{episode}-{self.random.randrange(3)}"}

    def record(self, topic: str, event_type: str, key: str | None, data: Data, import_id: str | None = None) -> Record:
        if key is not None:
            self.said.append((topic, event_type, key, data))
        return Record(topic, event_type, key, data, import_id)


@dataclass(frozen=True, slots=True)
class Record:
    """What a maker returns. Without key it goes to every partition; `raw` is sent in place of the data."""

    topic: str
    event_type: str
    key: str | None
    data: Data
    import_id: str | None = None
    raw: bytes | None = None
    shift: int = 0
    """Partitions beside the right one."""


def _at(second: float) -> str:
    return from_micros((T0_MS + int(second * 1000)) * 1000)


def _interaction(pool: _Pool, ids: Data, ended: int = 0, **more: Any) -> Data:
    name = ids["interaction_id"]
    return {
        **ids,
        "agent": "bot",
        "task_id": f"t-{ids['episode_id']}",
        "messages": [{"role": "user", "content": name}, {"role": "assistant", "content": "yes"}],
        "started_at": _at(-60 + int(name[-1])),
        "ended_at": _at(ended),
        **more,
    }


def _outcome(pool: _Pool, ids: Data, **more: Any) -> Data:
    random = pool.random
    name = random.choice(("reward", "score", "mood"))
    value = {"reward": random.choice((0.0, 0.5, 1, None)), "score": random.random(), "mood": random.choice(("sad", 3))}[
        name
    ]
    number = random.randrange(10_000)
    data = {"name": name, "value": value, "outcome_id": f"o{number}", "observed_at": _at(random.randint(-30, 60))}
    return {**ids, **data, **more}


def _captured(pool: _Pool) -> list[Record]:
    ids = pool.row()
    return [pool.record("interactions", codec.INTERACTION, ids["episode_id"], _interaction(pool, ids))]


def _other_content(pool: _Pool) -> list[Record]:
    ids = pool.row()
    data = _interaction(pool, ids, pool.random.choice((-1, 1)), agent=pool.random.choice(("bot", "other")))
    return [pool.record("interactions", codec.INTERACTION, ids["episode_id"], data)]


def _sent_again(pool: _Pool) -> list[Record]:
    if not pool.said:
        return _captured(pool)
    topic, event_type, key, data = pool.random.choice(pool.said)
    return [Record(topic, event_type, key, data)]


def _observed(pool: _Pool) -> list[Record]:
    ids = pool.row()
    return [pool.record("outcomes", codec.OUTCOME, ids["episode_id"], _outcome(pool, ids))]


def _reward(pool: _Pool) -> list[Record]:
    ids = pool.row()
    data = _outcome(pool, ids, name="reward", value=pool.random.choice((0.0, 1.0)))
    return [pool.record("outcomes", codec.OUTCOME, ids["episode_id"], data)]


def _same_id(pool: _Pool) -> list[Record]:
    ids = pool.row()
    data = _outcome(pool, ids, outcome_id="same")
    return [pool.record("outcomes", codec.OUTCOME, ids["episode_id"], data)]


def _retract_one(pool: _Pool) -> list[Record]:
    outcomes = [
        d
        for _, t, _, d in pool.said
        if t == codec.OUTCOME and d.get("outcome_id") and "episode_id" in d and d.get("interaction_id")
    ]
    if not outcomes:
        return _observed(pool)
    of = pool.random.choice(outcomes)
    data = {k: of[k] for k in ("episode_id", "interaction_id", "name", "outcome_id")}
    data |= {"op": "retract", "observed_at": _at(pool.random.randint(-30, 60))}
    return [pool.record("outcomes", codec.OUTCOME, data["episode_id"], data)]


def _retract_all(pool: _Pool) -> list[Record]:
    data = {**pool.row(), "name": "score", "op": "retract", "observed_at": _at(pool.random.randint(-30, 30))}
    return [pool.record("outcomes", codec.OUTCOME, data["episode_id"], data)]


def _orphan(pool: _Pool) -> list[Record]:
    ids = {"episode_id": pool.random.choice(pool.episodes), "interaction_id": "nobody"}
    return [pool.record("outcomes", codec.OUTCOME, ids["episode_id"], _outcome(pool, ids))]


def _rights(pool: _Pool) -> list[Record]:
    ids = pool.row()
    data = {**ids, "kind": "rights", "name": pool.random.choice(("train", "eval")), "outcome_id": "r"}
    data |= {"value": pool.random.choice(("allow", "deny")), "observed_at": _at(pool.random.randint(0, 9))}
    return [pool.record("outcomes", codec.OUTCOME, ids["episode_id"], data)]


def _long(pool: _Pool) -> list[Record]:
    """An interaction that names parts; some of them come later, with `part`."""
    ids = {"episode_id": pool.random.choice(pool.episodes)}
    ids["interaction_id"] = f"{ids['episode_id']}-long{pool.random.randrange(2)}"
    turns = [{"role": role, "content": f"{n} " * 300} for n, role in enumerate(("user", "assistant", "user"))]
    messages = turns[: 2 + int(ids["interaction_id"][-1])]
    data = _interaction(pool, ids, messages=messages)
    body, parts = split(data, SentParts())
    pool.part_records += [(ids["episode_id"], part) for part in parts]
    here = [
        pool.record("interactions", codec.PART, ids["episode_id"], part) for part in parts if pool.random.random() < 0.5
    ]
    return [*here, pool.record("interactions", codec.INTERACTION, ids["episode_id"], body)]


def _part(pool: _Pool) -> list[Record]:
    if not pool.part_records:
        return _long(pool)
    key, data = pool.random.choice(pool.part_records)
    return [Record("interactions", codec.PART, key, data)]


def _erased(pool: _Pool) -> list[Record]:
    if not pool.part_records or pool.random.random() < 0.5:
        return _part(pool)
    key, part = pool.random.choice(pool.part_records)
    data = {"episode_id": key, "part": part["part"], "erased": "asked for"}
    return [pool.record("interactions", codec.PART, key, data)]


def _imported(pool: _Pool) -> list[Record]:
    ids = pool.row()
    data = _interaction(pool, ids) if pool.random.random() < 0.5 else _outcome(pool, ids)
    topic, kind = ("interactions", codec.INTERACTION) if "messages" in data else ("outcomes", codec.OUTCOME)
    return [pool.record(topic, kind, ids["episode_id"], data, "imp")]


def _marker(pool: _Pool) -> list[Record]:
    phase = pool.random.choice(("begin", "end"))
    topic = pool.random.choice(("interactions", "outcomes"))
    return [Record(topic, codec.IMPORT_MARKER, None, {"import_id": "imp", "phase": phase})]


def _malformed(pool: _Pool) -> list[Record]:
    ids = pool.row()
    raw = pool.random.choice((b"{", b"[]", b'{"name":"reward"}'))
    return [Record("outcomes", codec.OUTCOME, ids["episode_id"], {}, raw=raw)]


def _bad_value(pool: _Pool) -> list[Record]:
    ids = pool.row()
    return [Record("outcomes", codec.OUTCOME, ids["episode_id"], _outcome(pool, ids, name="reward", value="text"))]


def _misplaced(pool: _Pool) -> list[Record]:
    ids = pool.row()
    return [Record("outcomes", codec.OUTCOME, ids["episode_id"], _outcome(pool, ids), shift=1)]


def _of_episode(pool: _Pool) -> list[Record]:
    data = _outcome(pool, {"episode_id": pool.random.choice(pool.episodes)})
    if pool.random.random() < 0.3:
        data |= {"name": "done", "value": pool.random.choice((True, False))}
    if pool.random.random() < 0.2:
        data |= {"op": "retract"}
    return [pool.record("outcomes", codec.OUTCOME, data["episode_id"], data)]


def _episode_end(pool: _Pool) -> list[Record]:
    data = {"episode_id": pool.random.choice(pool.episodes), "ended_at": _at(pool.random.randint(-61, 5))}
    return [pool.record("interactions", codec.EPISODE_END, data["episode_id"], data)]


def _by_interaction(pool: _Pool) -> list[Record]:
    data = _outcome(pool, {"interaction_id": pool.row()["interaction_id"]})
    return [pool.record("outcomes", codec.OUTCOME, data["interaction_id"], data)]


def _by_reference(pool: _Pool) -> list[Record]:
    data = _outcome(pool, {"reference": f"pr:org/repo#{pool.random.randrange(3)}"})
    return [pool.record("outcomes", codec.OUTCOME, data["reference"], data)]


def _referring(pool: _Pool) -> list[Record]:
    number = pool.random.randrange(4)
    ids = {"episode_id": pool.episodes[number]}
    ids["interaction_id"] = f"{ids['episode_id']}-ref{number}"
    data = _interaction(pool, ids, references=[f"pr:org/repo#{number % 3}", f"pr:org/repo#{(number + 1) % 3}"])
    return [pool.record("interactions", codec.INTERACTION, ids["episode_id"], data)]


def _feedback(pool: _Pool) -> list[Record]:
    kind = pool.random.choice(("comment", "preference", "demonstration"))
    says: dict[str, Data] = {
        "comment": {"value": "well done"},
        "preference": {"value": None, "over": "another"},
        "demonstration": {"value": None, "messages": [{"role": "assistant", "content": "better"}]},
    }
    data = _outcome(pool, pool.row(), name="said", kind=kind, **says[kind])
    return [pool.record("outcomes", codec.OUTCOME, data["episode_id"], data)]


KINDS: Final[dict[str, Callable[[_Pool], list[Record]]]] = {
    "interaction": _captured,
    "other content": _other_content,
    "sent again": _sent_again,
    "outcome": _observed,
    "reward": _reward,
    "same outcome id": _same_id,
    "retract one": _retract_one,
    "retract all": _retract_all,
    "orphan": _orphan,
    "rights": _rights,
    "feedback": _feedback,
    "of an episode": _of_episode,
    "episode end": _episode_end,
    "by interaction id": _by_interaction,
    "by reference": _by_reference,
    "referring": _referring,
    "long interaction": _long,
    "part": _part,
    "erased part": _erased,
    "imported": _imported,
    "import marker": _marker,
    "malformed": _malformed,
    "bad value": _bad_value,
    "misplaced": _misplaced,
}


def draw(random: Random, partitions: int, count: int) -> list[list[Event]]:
    """The history: makers' records, `count` of them and at least one of each kind, in the order in which they are appended."""
    pool = _Pool(random, partitions)
    names = list(KINDS)
    chosen = names + random.choices(names, k=max(0, count - len(names)))
    random.shuffle(chosen)
    return [[e for record in KINDS[kind](pool) for e in _events(kind, record, partitions)] for kind in chosen]


def _events(kind: str, record: Record, partitions: int) -> list[Event]:
    value = record.raw if record.raw is not None else json.dumps(record.data).encode()
    headers = [("ce_type", record.event_type.encode()), ("ce_workspace", WORKSPACE.encode())]
    if record.import_id is not None:
        headers.append(("ce_importid", record.import_id.encode()))
    if record.key is None:
        return [Event(kind, record.topic, p, None, value, [*headers]) for p in range(partitions)]
    key = record.key.encode()
    partition = (partition_of(key, partitions) + record.shift) % partitions
    return [Event(kind, record.topic, partition, key, value, [*headers])]
