"""An office's room-booking desk on a real SQLite database: the demo's second environment.

The agent reads what a colleague wants of a meeting room, checks the room, and makes one change, some of them with a second
argument. Constraints and triggers refuse impossible changes, an audit log written by triggers records the rest, and SQL over both says
whether the wish was met. Booking a room that is held for somebody else looks fine until office management releases it.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, cast

from treadle_schemas.environment import Attempt, Message, Task, Verdict

from treadle_demo._attempt import SqlAttempt, integer, late_verdicts, succeeds
from treadle_demo._calls import Call, compact, tool_schema, written_call

__all__ = ["RoomAttempt", "RoomDesk"]

SYSTEM = "room desk"
LOOKUP = "check_room"
SLOTTED = ("book_room", "move_booking")
ACTIONS = (*SLOTTED, "cancel_booking", "join_waitlist", "ask_owner", "call_facilities", "send_guide")
SLOTS = ("am", "pm")
ROOMS = range(10, 100)
"""Two digits, so that a room number is one token of the tiny model."""

_SCHEMA = """
create table rooms(id integer primary key, held int not null, screen text not null);
create table bookings(room int not null references rooms(id), slot text not null check (slot in ('am', 'pm')),
  who text not null, primary key (room, slot)) without rowid;
create table waitlist(room int primary key references rooms(id));
create table tickets(room int not null references rooms(id), kind text not null, primary key (room, kind)) without rowid;
create table audit(n integer primary key, room int not null, change text not null, slot text);
"""
# Made after the day's bookings are in, so that the log holds what the agent did and nothing else.
_TRIGGERS = """
create trigger t_owner before insert on tickets when new.kind = 'ask_owner'
  and not exists (select 1 from bookings where room = new.room and who = 'other')
  begin select raise(abort, 'nobody to ask'); end;
create trigger a_book after insert on bookings
  begin insert into audit(room, change, slot) values (new.room, 'book', new.slot); end;
create trigger a_move after update on bookings
  begin insert into audit(room, change, slot) values (new.room, 'move', new.slot); end;
create trigger a_cancel after delete on bookings
  begin insert into audit(room, change, slot) values (old.room, 'cancel', old.slot); end;
create trigger a_wait after insert on waitlist begin insert into audit(room, change) values (new.room, 'wait'); end;
create trigger a_ticket after insert on tickets begin insert into audit(room, change) values (new.room, new.kind); end;
"""


class _Intent(NamedTuple):
    """What a colleague wants: ways to say it with the slot each names, who has the room, and the condition that meets it.

    `days` are pairs (morning, afternoon) of free, yours (the colleague's) or taken (somebody else's). The condition reads the room
    `r`, the logged change `a` and the state before, `:am` and `:pm`; `:slot` is the slot asked for and `:at` who has it.
    """

    says: tuple[tuple[str, str | None], ...]
    days: tuple[tuple[str, str], ...]
    meets: str


_INTENTS = {
    "book": _Intent(
        (
            ("i need room {r} in the morning", "am"),
            ("book {r} before noon for us", "am"),
            ("can we have {r} early", "am"),
            ("i need room {r} in the afternoon", "pm"),
            ("book {r} after lunch for us", "pm"),
            ("can we have {r} late", "pm"),
        ),
        (("free", "free"), ("free", "taken"), ("taken", "free")),
        "(:at = 'free' and r.held = 0 and a.change = 'book' and a.slot = :slot)"
        " or ((:at = 'taken' or r.held = 1) and a.change = 'wait')",
    ),
    "move": _Intent(
        (
            ("move us in {r} to the morning", "am"),
            ("we would rather have {r} before noon", "am"),
            ("our meeting in {r} must be early", "am"),
            ("move us in {r} to the afternoon", "pm"),
            ("we would rather have {r} after lunch", "pm"),
            ("our meeting in {r} must be late", "pm"),
        ),
        (("yours", "free"), ("yours", "taken"), ("free", "yours"), ("taken", "yours")),
        "(:at = 'free' and r.held = 0 and a.change = 'move' and a.slot = :slot)"
        " or (:at = 'taken' and a.change = 'ask_owner') or (:at = 'free' and r.held = 1 and a.change = 'wait')",
    ),
    "cancel": _Intent(
        (
            ("we do not need {r}", None),
            ("please free room {r}", None),
            ("drop our meeting in {r}", None),
            ("{r} is off, give it back", None),
            ("nobody comes to {r}", None),
            ("cancel {r}", None),
        ),
        (("yours", "free"), ("taken", "yours"), ("taken", "free"), ("free", "taken")),
        "('yours' in (:am, :pm) and a.change = 'cancel') or ('yours' not in (:am, :pm) and a.change = 'ask_owner')",
    ),
    "screen": _Intent(
        (
            ("the screen in {r} is black", None),
            ("no picture in room {r}", None),
            ("we can not share in {r}", None),
            ("{r} shows nothing", None),
            ("the projector of {r} fails", None),
            ("how do i present in {r}", None),
        ),
        (("yours", "free"), ("free", "yours")),
        "(r.screen = 'dead' and a.change = 'call_facilities') or (r.screen = 'ok' and a.change = 'send_guide')",
    ),
    "people": _Intent(
        (
            ("people sit in {r}", None),
            ("room {r} is full of strangers", None),
            ("somebody is in {r}", None),
            ("who uses {r} now", None),
            ("{r} is not empty", None),
            ("there is a crowd in room {r}", None),
        ),
        (("taken", "free"), ("yours", "taken"), ("yours", "free"), ("free", "yours")),
        "('taken' in (:am, :pm) and a.change = 'ask_owner')"
        " or ('taken' not in (:am, :pm) and a.change = 'call_facilities')",
    ),
}
_OPENERS = ("hi,", "hello,", "morning,", "hey,", "team,", "", "sorry,", "quick one:")
_CLOSERS = ("please.", "thanks.", "can you help?", "what now?", "", "it is urgent.", "cheers, {n}.", "{n} from sales.")
_NAMES = ("kim", "leo", "mia", "noa", "oto", "pia", "ray", "sue", "tom", "uma")
_WHO = {"yours": "asker", "taken": "other"}

_MET = """
select (select count(*) from audit) = 1
  and exists(select 1 from rooms r join audit a on a.room = r.id where r.id = :room and ({meets}))
"""


class RoomAttempt(SqlAttempt):
    """One colleague's wish. A neighbouring room in the same state must stay untouched."""

    lookup: ClassVar[str] = LOOKUP

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.executescript(_SCHEMA)
        day = self.task.data
        for room in (day["room_id"], day["other_id"]):
            db.execute("insert into rooms values (?, ?, ?)", (room, day["held"], day["screen"]))
            for slot in SLOTS:
                if day[slot] != "free":
                    db.execute("insert into bookings values (?, ?, ?)", (room, slot, _WHO[day[slot]]))
        db.executescript(_TRIGGERS)

    def _run(self, db: sqlite3.Connection, call: Call) -> dict[str, Any]:
        room, slot = integer(call.arguments.get("room_id")), call.arguments.get("slot")
        wanted = {"room_id", "slot"} if call.name in SLOTTED else {"room_id"}
        if call.name not in (LOOKUP, *ACTIONS) or room is None or set(call.arguments) != wanted:
            return {"error": "bad call"}
        if call.name in SLOTTED and slot not in SLOTS:
            return {"error": "no such slot"}
        found = db.execute("select held, screen from rooms where id = ?", (room,)).fetchone()
        if found is None:
            return {"error": "no such room"}
        if call.name == LOOKUP:
            return {**_day(db, room), "held": found[0], "screen": found[1]}
        return {"ok": True} if _change(db, call.name, room, slot) else {"error": "no booking of yours"}

    def _question(self) -> tuple[str, dict[str, Any]]:
        day = self.task.data
        slot = day["slot"]
        values = {"room": day["room_id"], "am": day["am"], "pm": day["pm"]}
        return _MET.format(meets=_INTENTS[day["intent"]].meets), {
            **values,
            "slot": slot,
            "at": day[slot] if slot else None,
        }

    def pleased_for_now(self) -> bool:
        """The colleague has a room or its promise: a booking or a move went through."""
        return self.last_call is not None and self.last_call.name in SLOTTED and "ok" in self.last_result


def _day(db: sqlite3.Connection, room: int) -> dict[str, str]:
    """Who has the room, by slot, as the asker may see it."""
    whose = dict(db.execute("select slot, who from bookings where room = ?", (room,)).fetchall())
    names = {who: name for name, who in _WHO.items()}
    return {slot: names[whose[slot]] if slot in whose else "free" for slot in SLOTS}


def _change(db: sqlite3.Connection, name: str, room: int, slot: str | None) -> bool:
    """Make the change. False when it needs a booking of the asker's and there is none."""
    if name == "book_room":
        return db.execute("insert into bookings values (?, ?, 'asker')", (room, slot)).rowcount > 0
    if name == "move_booking":
        return db.execute("update bookings set slot = ? where room = ? and who = 'asker'", (slot, room)).rowcount > 0
    if name == "cancel_booking":
        return db.execute("delete from bookings where room = ? and who = 'asker'", (room,)).rowcount > 0
    if name == "join_waitlist":
        return db.execute("insert into waitlist values (?)", (room,)).rowcount > 0
    return db.execute("insert into tickets values (?, ?)", (room, name)).rowcount > 0


class RoomDesk:
    """The environment `treadle_demo.rooms:RoomDesk`: 5 intents x 6 wordings x 90 rooms = 2,700 groups of tasks.

    A group (`task_id`, for example `book-3-47`) fixes intent, wording and room number; the state of the room and the phrases around
    the wording vary within it.
    """

    tools: ClassVar[list[dict[str, Any]]] = [
        tool_schema(
            name,
            description,
            {"room_id": {"type": "integer"}}
            | ({"slot": {"type": "string", "enum": list(SLOTS)}} if name in SLOTTED else {}),
        )
        for name, description in (
            (
                LOOKUP,
                "Who has a room in the morning (am) and afternoon (pm), whether it is held, whether its screen works.",
            ),
            ("book_room", "Book a free slot. A held room is kept for somebody else."),
            ("move_booking", "Move the asker's booking to another slot."),
            ("cancel_booking", "Give the asker's booking back."),
            ("join_waitlist", "Put the asker on the room's waiting list."),
            ("ask_owner", "Ask the other person who has booked the room."),
            ("call_facilities", "Send somebody to the room."),
            ("send_guide", "Send the guide to the room and its equipment."),
        )
    ]
    """The tools in OpenAI form, for chat templates that show them to the model."""

    def tasks(self, n: int, seed: int) -> Iterator[Task]:
        """`n` tasks, the same for the same seed."""
        rng = random.Random(f"rooms-{seed}")
        names = list(_INTENTS)
        for _ in range(n):
            yield _task(rng, rng.choice(names))

    def start(self, task: Task) -> RoomAttempt:
        """A fresh day in which `task` is asked."""
        return RoomAttempt(task)

    def outcomes(self, attempt: Attempt, rng: random.Random) -> list[Verdict]:
        """The colleague's answer, and office management releasing a room that was held. See `late_verdicts`."""
        rooms = cast(RoomAttempt, attempt)
        return late_verdicts(
            rng,
            settled=rooms.success() > 0,
            pleased=rooms.pleased_for_now(),
            asker="colleague",
            auditor="office-management",
        )

    def demonstrate(self, task: Task, rng: random.Random, skill: float) -> list[Message]:
        """A clerk's conversation: the right check, then a wish met with probability `skill`, else any action."""
        written = rng.choice(self.meeting_calls(task)) if rng.random() < skill else rng.choice(_written_actions(task))
        attempt = self.start(task)
        try:
            attempt.act(written_call(LOOKUP, compact({"room_id": task.data["room_id"]})))
            attempt.act(written)
            return attempt.messages
        finally:
            attempt.close()

    def meeting_calls(self, task: Task) -> list[str]:
        """The calls that meet the wish, found by trying each in a fresh world. Only for demonstrations and tests."""
        return [text for text in _written_actions(task) if succeeds(self, task, text)]


def _written_actions(task: Task) -> list[str]:
    """Every action on the task's room, as the model would write it."""
    room = task.data["room_id"]
    slotted = [written_call(name, compact({"room_id": room, "slot": slot})) for name in SLOTTED for slot in SLOTS]
    return slotted + [written_call(name, compact({"room_id": room})) for name in ACTIONS if name not in SLOTTED]


def _task(rng: random.Random, name: str) -> Task:
    intent = _INTENTS[name]
    room_id, wording = rng.choice(ROOMS), rng.randrange(len(intent.says))
    neighbours = [n for n in (room_id - 10, room_id - 1, room_id + 1, room_id + 10) if n in ROOMS]
    says, slot = intent.says[wording]
    # nobody asks for a slot that is already theirs
    am, pm = rng.choice([day for day in intent.days if slot is None or day[SLOTS.index(slot)] != "yours"])
    said = (rng.choice(_OPENERS), says.format(r=room_id), rng.choice(_CLOSERS).format(n=rng.choice(_NAMES)))
    return Task(
        task_id=f"{name}-{wording}-{room_id}",
        messages=(
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": " ".join(part for part in said if part)},
        ),
        data={
            "intent": name,
            "room_id": room_id,
            "other_id": rng.choice(neighbours),
            "slot": slot,
            "am": am,
            "pm": pm,
            "held": rng.choice((0, 0, 1)),
            "screen": rng.choice(("ok", "dead")),
        },
    )
