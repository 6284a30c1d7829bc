"""A shop's back office on a real SQLite database: the environment of the demo's gpu profile, for a model of 100 million parameters.

A customer writes with two wishes about two orders. The agent finds the customer's account by name, lists the orders, does what each
wish needs in the state that its order is in, and writes a reply: five calls, some with free text. Which action is right depends on the
order, and SQL over the resulting state says whether both wishes are settled, nothing else was touched, and the reply speaks of both.

A group of tasks is a composition: what is wished of which product, twice. The split holds out compositions that were never seen, made
of wishes that were.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, cast

from treadle_schemas.environment import Attempt, Message, Task, Verdict

from treadle_demo._attempt import SqlAttempt, integer, late_verdicts
from treadle_demo._calls import Call, compact, tool_schema, written_call

__all__ = ["BackOffice", "OfficeAttempt"]

SYSTEM = "back office"
FIND, LIST, REPLY = "find_customer_account", "list_customer_orders", "send_customer_reply"
REFUND, REPLACE = "issue_full_refund", "schedule_replacement_shipment"
ADDRESS, CARRIER = "change_delivery_address", "open_carrier_ticket"
TRACKING, CANCEL = "send_tracking_update", "cancel_open_order"
LABEL, BILLING = "email_return_label", "escalate_to_billing_team"
ACTIONS: Mapping[str, str | None] = {
    REFUND: "reason",
    REPLACE: None,
    ADDRESS: "address",
    CARRIER: "text",
    TRACKING: None,
    CANCEL: None,
    LABEL: None,
    BILLING: "text",
}
"""Each action, and its argument of free text beside the order."""
NUMBERS = range(10, 100)
"""Accounts and orders have two digits: a number is one token, and copying it is no riddle."""
MAX_TEXT_CHARS = 400
_NUMBER, _TEXT = {"type": "integer"}, {"type": "string"}

_SCHEMA = """
create table accounts(id integer primary key, name text not null unique);
create table orders(id integer primary key, account int not null references accounts(id), product text not null,
  status text not null, stock int not null, charges int not null);
create table events(n integer primary key, order_id int not null references orders(id), kind text not null, said text not null,
  unique(order_id, kind));
create table replies(n integer primary key, account int not null references accounts(id), said text not null);
create trigger t_cancel before insert on events when new.kind = 'cancel_open_order'
  and (select status from orders where id = new.order_id) <> 'placed'
  begin select raise(abort, 'already shipped'); end;
create trigger t_address before insert on events when new.kind = 'change_delivery_address'
  and (select status from orders where id = new.order_id) <> 'placed'
  begin select raise(abort, 'already shipped'); end;
create trigger t_stock before insert on events when new.kind = 'schedule_replacement_shipment'
  and (select stock from orders where id = new.order_id) = 0
  begin select raise(abort, 'out of stock'); end;
create trigger t_label before insert on events when new.kind = 'email_return_label'
  and (select status from orders where id = new.order_id) <> 'delivered'
  begin select raise(abort, 'not delivered'); end;
"""

_SETTLED = """
select (select count(*) from events) = :n and (select count(*) from replies where account = :account) = 1
  and not exists (select 1 from json_each(:wanted) w where
    not exists (select 1 from events e where e.order_id = json_extract(w.value, '$.order')
      and e.kind = json_extract(w.value, '$.kind') and instr(lower(e.said), json_extract(w.value, '$.said')) > 0)
    or not exists (select 1 from replies r where instr(lower(r.said), json_extract(w.value, '$.product')) > 0))
"""


class _Wish(NamedTuple):
    """What a customer may want of an order: ways to say it, and what the order can look like."""

    says: tuple[str, ...]
    statuses: tuple[str, ...]
    charges: tuple[int, ...] = (1,)


_WISHES = {
    "broken": _Wish(("the {p} arrived broken", "my {p} does not work", "the {p} has a crack"), ("delivered",)),
    "moved": _Wish(
        ("please send the {p} to {a}", "i moved, so the {p} must go to {a}", "the {p} should come to {a}"),
        ("placed", "shipped"),
    ),
    "late": _Wish(("where is my {p}", "the {p} has not come", "i still wait for the {p}"), ("shipped", "lost")),
    "unwanted": _Wish(
        ("i do not want the {p} any more", "take the {p} back please", "the {p} was a mistake"), ("placed", "delivered")
    ),
    "twice": _Wish(
        ("i paid twice for the {p}", "the {p} is on my card two times", "you billed the {p} again"),
        ("delivered",),
        (1, 2),
    ),
}
_PRODUCTS = ("kettle", "lamp", "chair", "radio", "clock", "mirror", "fan", "toaster", "rug", "vase", "blender", "shelf")
_FIRST = ("ana", "bo", "cy", "dee", "eli", "fay", "gus", "hal", "ida", "jo", "kim", "leo", "mia", "noa", "oto", "pia")
_LAST = ("stone", "rivers", "marsh", "field", "wood", "hill", "lake", "brook", "frost", "dale")
_STREETS = (
    "elm road",
    "mill lane",
    "high street",
    "park row",
    "oak avenue",
    "north square",
    "harbour way",
    "garden close",
)
_OPENERS = ("hi,", "hello,", "good morning,", "dear shop,", "", "sorry to ask,")
_CLOSERS = ("please help.", "thanks.", "can you fix it?", "", "let me know.", "what now?")
_JOINTS = (", and ", ", also ", ". besides, ", ", and then ")


class OfficeAttempt(SqlAttempt):
    """One customer's case. A third order of the same customer must stay untouched."""

    max_calls: ClassVar[int] = 7
    """Five do it; two may be refused by the shop's systems."""
    lookup: ClassVar[str] = FIND

    def _goes_on(self, call: Call) -> bool:
        return call.name != REPLY

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.executescript(_SCHEMA)
        case = self.task.data
        db.execute("insert into accounts values (?, ?)", (case["account"], case["name"]))
        for order in case["orders"]:
            values = (order["id"], case["account"], order["product"], order["status"], order["stock"], order["charges"])
            db.execute("insert into orders values (?, ?, ?, ?, ?, ?)", values)

    def _run(self, db: sqlite3.Connection, call: Call) -> dict[str, Any]:
        # a lone surrogate can be no part of a database's text
        given = {k: v.encode(errors="replace").decode() if isinstance(v, str) else v for k, v in call.arguments.items()}
        if call.name == FIND and set(given) == {"name"} and isinstance(given["name"], str):
            row = db.execute("select id from accounts where name = ?", (given["name"].lower(),)).fetchone()
            return {"error": "no such customer"} if row is None else {"account": row[0]}
        if call.name == LIST and set(given) == {"account"}:
            return _orders(db, integer(given["account"]))
        if call.name == REPLY and set(given) == {"account", "text"}:
            return _reply(db, integer(given["account"]), given["text"])
        if call.name not in ACTIONS:
            return {"error": "bad call"}
        free = ACTIONS[call.name]
        text = given.get(free) if free is not None else ""
        if set(given) != {"order", *([free] if free else [])} or not _is_text(text, empty=free is None):
            return {"error": "bad call"}
        order = integer(given["order"])
        if order is None or db.execute("select 1 from orders where id = ?", (order,)).fetchone() is None:
            return {"error": "no such order"}
        db.execute("insert into events(order_id, kind, said) values (?, ?, ?)", (order, call.name, text))
        return {"ok": True}

    def _question(self) -> tuple[str, dict[str, Any]]:
        case = self.task.data
        by_id = {order["id"]: order for order in case["orders"]}
        wanted = [
            {
                "order": wish["order"],
                "kind": _right(wish, by_id[wish["order"]]),
                "said": wish["address"] or "",
                "product": by_id[wish["order"]]["product"],
            }
            for wish in case["wishes"]
        ]
        return _SETTLED, {"n": len(wanted), "account": case["account"], "wanted": compact(wanted)}

    def pleased_for_now(self) -> bool:
        """Money came back, whether or not it was due."""
        found: int = self._db.execute("select count(*) from events where kind = ?", (REFUND,)).fetchone()[0]
        return found > 0


class BackOffice:
    """The environment `treadle_demo.office:BackOffice`: 5 wishes x 12 products, twice: 3,300 compositions, which are the groups."""

    tools: ClassVar[list[dict[str, Any]]] = [
        tool_schema(FIND, "The account number of a customer.", {"name": _TEXT}),
        tool_schema(LIST, "The orders of an account: product, status, stock, charges.", {"account": _NUMBER}),
        tool_schema(REFUND, "Pay an order back.", {"order": _NUMBER, "reason": _TEXT}),
        tool_schema(REPLACE, "Send the item again, from stock.", {"order": _NUMBER}),
        tool_schema(ADDRESS, "Send an unshipped order elsewhere.", {"order": _NUMBER, "address": _TEXT}),
        tool_schema(CARRIER, "Ask the carrier of a shipped order.", {"order": _NUMBER, "text": _TEXT}),
        tool_schema(TRACKING, "Tell the customer where the parcel is.", {"order": _NUMBER}),
        tool_schema(CANCEL, "Cancel an order that has not been shipped.", {"order": _NUMBER}),
        tool_schema(LABEL, "Let the customer return a delivered item.", {"order": _NUMBER}),
        tool_schema(BILLING, "Let the billing team look at the charges.", {"order": _NUMBER, "text": _TEXT}),
        tool_schema(REPLY, "Write to the customer, and be done.", {"account": _NUMBER, "text": _TEXT}),
    ]
    """The tools in OpenAI form, for chat templates that show them to the model."""

    def tasks(self, n: int, seed: int) -> Iterator[Task]:
        """`n` tasks, the same for the same seed."""
        rng = random.Random(f"office-{seed}")
        for _ in range(n):
            yield _task(rng)

    def start(self, task: Task) -> OfficeAttempt:
        """A fresh back office in which `task` is asked."""
        return OfficeAttempt(task)

    def outcomes(self, attempt: Attempt, rng: random.Random) -> list[Verdict]:
        """The customer's answer, and finance taking back a needless refund. See `late_verdicts`."""
        office = cast(OfficeAttempt, attempt)
        return late_verdicts(
            rng, settled=office.success() > 0, pleased=office.pleased_for_now(), asker="customer", auditor="finance"
        )

    def demonstrate(self, task: Task, rng: random.Random, skill: float) -> list[Message]:
        """A clerk's conversation: for each wish the right action with probability `skill`, else any; the rest as it should be."""
        attempt = self.start(task)
        try:
            for text in written_case(task, rng, skill):
                attempt.act(text)
            return attempt.messages
        finally:
            attempt.close()


def written_case(task: Task, rng: random.Random, skill: float) -> list[str]:
    """The calls of a clerk with that skill, as the model would write them."""
    case = task.data
    out = [
        written_call(FIND, compact({"name": case["name"]})),
        written_call(LIST, compact({"account": case["account"]})),
    ]
    products = []
    for wish in case["wishes"]:
        order = next(order for order in case["orders"] if order["id"] == wish["order"])
        products.append(order["product"])
        kind = _right(wish, order) if rng.random() < skill else rng.choice(list(ACTIONS))
        free = ACTIONS[kind]
        said = {} if free is None else {free: _free_text(kind, wish, order)}
        out.append(written_call(kind, compact({"order": order["id"], **said})))
    text = f"dear {case['name']}, we took care of your {products[0]} and your {products[1]}."
    return [*out, written_call(REPLY, compact({"account": case["account"], "text": text}))]


def _right(wish: Mapping[str, Any], order: Mapping[str, Any]) -> str:
    """The action that settles a wish, in the state that its order is in."""
    again = REPLACE if order["stock"] > 0 else REFUND
    match wish["kind"], order["status"]:
        case ("broken", _) | ("late", "lost"):
            return again
        case "moved", status:
            return ADDRESS if status == "placed" else CARRIER
        case "late", _:
            return TRACKING
        case "unwanted", status:
            return CANCEL if status == "placed" else LABEL
        case _:
            return REFUND if order["charges"] == 2 else BILLING


def _free_text(kind: str, wish: Mapping[str, Any], order: Mapping[str, Any]) -> str:
    if kind == ADDRESS:
        return str(wish["address"] or "the old address")
    if kind == CARRIER:
        return f"please bring the {order['product']} to {wish['address'] or 'the customer'}"
    if kind == BILLING:
        return f"the customer asks about the charges of the {order['product']}"
    return f"the {order['product']} is {wish['kind']}"


def _is_text(value: Any, *, empty: bool) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT_CHARS and (empty or value.strip() != "")


def _orders(db: sqlite3.Connection, account: int | None) -> dict[str, Any]:
    if account is None or db.execute("select 1 from accounts where id = ?", (account,)).fetchone() is None:
        return {"error": "no such account"}
    rows = db.execute(
        "select id, product, status, stock, charges from orders where account = ? order by id", (account,)
    )
    names = ("order", "product", "status", "stock", "charges")
    return {"orders": [dict(zip(names, row, strict=True)) for row in rows.fetchall()]}


def _reply(db: sqlite3.Connection, account: int | None, text: Any) -> dict[str, Any]:
    if account is None or db.execute("select 1 from accounts where id = ?", (account,)).fetchone() is None:
        return {"error": "no such account"}
    if not _is_text(text, empty=False):
        return {"error": "bad call"}
    db.execute("insert into replies(account, said) values (?, ?)", (account, text))
    return {"ok": True}


def _task(rng: random.Random) -> Task:
    products = rng.sample(_PRODUCTS, 3)
    ids = rng.sample(NUMBERS, 4)
    orders, wishes, said, names = [], [], [], []
    for product, number in zip(products[:2], ids, strict=False):
        kind = rng.choice(list(_WISHES))
        wish = _WISHES[kind]
        address = f"{rng.choice(NUMBERS)} {rng.choice(_STREETS)}" if kind == "moved" else None
        orders.append(_order(rng, number, product, wish.statuses, wish.charges))
        wishes.append({"kind": kind, "order": number, "address": address})
        said.append(rng.choice(wish.says).format(p=product, a=address))
        names.append(f"{kind}-{product}")
    orders.append(_order(rng, ids[2], products[2], ("placed", "shipped", "delivered"), (1,)))
    rng.shuffle(orders)
    name = f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"
    asked = (rng.choice(_OPENERS), f"i am {name}.", f"{rng.choice(_JOINTS).join(said)}.", rng.choice(_CLOSERS))
    return Task(
        task_id="+".join(names),
        messages=(
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": " ".join(part for part in asked if part)},
        ),
        data={"account": ids[3], "name": name, "orders": orders, "wishes": wishes},
    )


def _order(
    rng: random.Random, number: int, product: str, statuses: tuple[str, ...], charges: tuple[int, ...]
) -> dict[str, Any]:
    return {
        "id": number,
        "product": product,
        "status": rng.choice(statuses),
        "stock": rng.choice((0, 0, 4, 7)),
        "charges": rng.choice(charges),
    }
