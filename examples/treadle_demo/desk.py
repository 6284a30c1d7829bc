"""A small shop's customer-service desk on a real SQLite database.

The agent reads a customer's message, looks the order up, and makes one change. The change is executed, triggers refuse what the
shop's systems refuse, and SQL over the resulting state says whether the case is settled. A needless refund pleases the customer
at first; finance takes that back hours later.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, cast

from treadle_schemas.environment import Attempt, Message, Task, Verdict

from treadle_demo._attempt import SqlAttempt, integer, late_verdicts, succeeds
from treadle_demo._calls import Call, compact, tool_schema, written_call

__all__ = ["CustomerDesk", "DeskAttempt"]

SYSTEM = "shop desk"
"""Short on purpose: ten more tokens made copying the order number fail in one warm start of ten. `tools` says the rest."""
LOOKUP = "get_order"
ACTIONS = (
    "cancel_order",
    "refund_order",
    "reship_order",
    "send_return_label",
    "send_tracking",
    "escalate",
)
ORDERS = range(10, 100)
"""Two digits, so that an order number is one token of the tiny model."""

_SCHEMA = """
create table orders(id integer primary key, status text not null, stock int not null, charges int not null);
create table events(
  n integer primary key, order_id int not null references orders(id), kind text not null, unique(order_id, kind));
create trigger t_cancel before insert on events when new.kind = 'cancel_order'
  and (select status from orders where id = new.order_id) <> 'placed'
  begin select raise(abort, 'already shipped'); end;
create trigger t_stock before insert on events when new.kind = 'reship_order'
  and (select stock from orders where id = new.order_id) = 0
  begin select raise(abort, 'out of stock'); end;
create trigger t_label before insert on events when new.kind = 'send_return_label'
  and (select status from orders where id = new.order_id) <> 'delivered'
  begin select raise(abort, 'not delivered'); end;
"""

_REPLACE = "(o.stock > 0 and e.kind = 'reship_order') or (o.stock = 0 and e.kind = 'refund_order')"


class _Intent(NamedTuple):
    """What a customer wants: ways to say it, what the order can look like, and the SQL condition that settles it."""

    says: tuple[str, ...]
    statuses: tuple[str, ...]
    stocks: tuple[int, ...]
    charges: tuple[int, ...]
    settles: str


_INTENTS = {
    "broken": _Intent(
        (
            "order {o} arrived broken",
            "the box of {o} was crushed",
            "{o} came with cracks",
            "item in {o} does not work",
            "{o} stopped working at once",
            "order {o} is damaged",
        ),
        ("delivered",),
        (0, 0, 4, 7, 9),
        (1,),
        _REPLACE,
    ),
    "mind": _Intent(
        (
            "i changed my mind on {o}",
            "i do not want {o} any more",
            "please stop order {o}",
            "i no longer need {o}",
            "{o} was a mistake, take it back",
            "cancel {o} for me",
        ),
        ("placed", "shipped", "delivered"),
        (0, 3, 8),
        (1,),
        "(o.status = 'placed' and e.kind = 'cancel_order') or (o.status = 'shipped' and e.kind = 'escalate')"
        " or (o.status = 'delivered' and e.kind = 'send_return_label')",
    ),
    "where": _Intent(
        (
            "where is order {o}",
            "{o} has not come yet",
            "when will {o} be here",
            "still waiting for {o}",
            "any news of {o}",
            "order {o} is late",
        ),
        ("placed", "shipped", "lost", "lost"),
        (0, 0, 4, 7, 9),
        (1,),
        f"(o.status in ('placed', 'shipped') and e.kind = 'send_tracking') or (o.status = 'lost' and ({_REPLACE}))",
    ),
    "twice": _Intent(
        (
            "i paid twice for {o}",
            "{o} is on my card two times",
            "double charge on order {o}",
            "you billed {o} again",
            "charged too much for {o}",
            "two payments for {o}",
        ),
        ("placed", "shipped", "delivered"),
        (0, 3, 8),
        (1, 2),
        "(o.charges = 2 and e.kind = 'refund_order') or (o.charges = 1 and e.kind = 'escalate')",
    ),
    "wrong": _Intent(
        (
            "{o} is the wrong item",
            "you sent me something else for {o}",
            "wrong colour in order {o}",
            "{o} is not what i ordered",
            "i got the wrong size in {o}",
            "order {o} was mixed up",
        ),
        ("delivered",),
        (0, 0, 4, 7, 9),
        (1,),
        "(o.stock = 0 and e.kind = 'send_return_label') or (o.stock > 0 and e.kind = 'reship_order')",
    ),
}
_OPENERS = ("hi,", "hello,", "good morning,", "hey,", "dear shop,", "", "sorry to ask,", "excuse me,")
_CLOSERS = ("please help.", "thanks.", "can you fix it?", "what now?", "", "i am upset.", "let me know.", "best, {n}.")
_NAMES = ("ana", "bo", "cy", "dee", "eli", "fay", "gus", "hal", "ida", "jo")

_SETTLED = """
select (select count(*) from events where order_id <> :order) = 0 and (select count(*) from events) = 1
  and exists(select 1 from orders o join events e on e.order_id = o.id where o.id = :order and ({settles}))
"""


class DeskAttempt(SqlAttempt):
    """One customer's case. The database holds the customer's order and a neighbour's, which must stay untouched."""

    lookup: ClassVar[str] = LOOKUP

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.executescript(_SCHEMA)
        order = self.task.data
        row = (order["status"], order["stock"], order["charges"])
        db.execute("insert into orders values (?, ?, ?, ?)", (order["order_id"], *row))
        db.execute("insert into orders values (?, ?, ?, ?)", (order["other_id"], *row))

    def _run(self, db: sqlite3.Connection, call: Call) -> dict[str, Any]:
        order_id = integer(call.arguments.get("order_id"))
        if call.name not in (LOOKUP, *ACTIONS) or order_id is None or len(call.arguments) != 1:
            return {"error": "bad call"}
        row = db.execute("select status, stock, charges from orders where id = ?", (order_id,)).fetchone()
        if row is None:
            return {"error": "no such order"}
        if call.name == LOOKUP:
            return {"status": row[0], "stock": row[1], "charges": row[2]}
        db.execute("insert into events(order_id, kind) values (?, ?)", (order_id, call.name))
        return {"ok": True}

    def _question(self) -> tuple[str, dict[str, Any]]:
        settles = _INTENTS[self.task.data["intent"]].settles
        return _SETTLED.format(settles=settles), {"order": self.task.data["order_id"]}

    def pleased_for_now(self) -> bool:
        """The customer has money back, whether or not it was due."""
        return self.last_call is not None and self.last_call.name == "refund_order" and "ok" in self.last_result


class CustomerDesk:
    """The environment `treadle_demo.desk:CustomerDesk`: 5 intents x 6 wordings x 90 orders = 2,700 groups of tasks.

    A group (`task_id`, for example `broken-3-47`) fixes intent, wording and order number. Tasks of one group differ in the state of
    the order and in the phrases around the wording; they are never torn by the split.
    """

    tools: ClassVar[list[dict[str, Any]]] = [
        tool_schema(name, description, {"order_id": {"type": "integer"}})
        for name, description in (
            (LOOKUP, "Status, stock and number of charges of an order."),
            ("cancel_order", "Cancel an order that has not been shipped."),
            ("refund_order", "Pay the customer back."),
            ("reship_order", "Send the item again, from stock."),
            ("send_return_label", "Let the customer return a delivered item."),
            ("send_tracking", "Tell the customer where the parcel is."),
            ("escalate", "Hand the case to a person."),
        )
    ]
    """The tools in OpenAI form, for chat templates that show them to the model."""

    def tasks(self, n: int, seed: int) -> Iterator[Task]:
        """`n` tasks, the same for the same seed."""
        rng = random.Random(f"desk-{seed}")
        names = list(_INTENTS)
        for _ in range(n):
            yield _task(rng, rng.choice(names))

    def start(self, task: Task) -> DeskAttempt:
        """A fresh shop in which `task` is asked."""
        return DeskAttempt(task)

    def outcomes(self, attempt: Attempt, rng: random.Random) -> list[Verdict]:
        """The customer's answer, and finance taking back a needless refund. See `late_verdicts`."""
        desk = cast(DeskAttempt, attempt)
        return late_verdicts(
            rng,
            settled=desk.success() > 0,
            pleased=desk.pleased_for_now(),
            asker="customer",
            auditor="finance",
        )

    def demonstrate(self, task: Task, rng: random.Random, skill: float) -> list[Message]:
        """A clerk's conversation: the right lookup, then a settling action with probability `skill`, else any action."""
        arguments = compact({"order_id": task.data["order_id"]})
        attempt = self.start(task)
        try:
            attempt.act(written_call(LOOKUP, arguments))
            action = rng.choice(self.settling_actions(task)) if rng.random() < skill else rng.choice(ACTIONS)
            attempt.act(written_call(action, arguments))
            return attempt.messages
        finally:
            attempt.close()

    def settling_actions(self, task: Task) -> list[str]:
        """The actions that settle the case, found by trying each in a fresh shop. Only for demonstrations and tests."""
        arguments = compact({"order_id": task.data["order_id"]})
        return [action for action in ACTIONS if succeeds(self, task, written_call(action, arguments))]


def _task(rng: random.Random, name: str) -> Task:
    intent = _INTENTS[name]
    order_id, wording = rng.choice(ORDERS), rng.randrange(len(intent.says))
    neighbours = [n for n in (order_id - 10, order_id - 1, order_id + 1, order_id + 10) if n in ORDERS]
    said = (
        rng.choice(_OPENERS),
        intent.says[wording].format(o=order_id),
        rng.choice(_CLOSERS).format(n=rng.choice(_NAMES)),
    )
    return Task(
        task_id=f"{name}-{wording}-{order_id}",
        messages=(
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": " ".join(part for part in said if part)},
        ),
        data={
            "intent": name,
            "order_id": order_id,
            "other_id": rng.choice(neighbours),
            "status": rng.choice(intent.statuses),
            "stock": rng.choice(intent.stocks),
            "charges": rng.choice(intent.charges),
        },
    )
