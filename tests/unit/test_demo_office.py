"""The back office: five calls settle a case, the database decides, and compositions of wishes are what the split holds out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treadle_demo import BackOffice
from treadle_demo._calls import compact, written_call
from treadle_demo.office import ACTIONS, OfficeAttempt, written_case
from treadle_schemas.environment import Attempt, Environment, Task, load_environment
from treadle_schemas.split import Split

OFFICE = BackOffice()


@pytest.fixture(autouse=True)
def _every_world_is_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    opened: list[Attempt] = []
    really = BackOffice.start

    def start(self: BackOffice, task: Task) -> OfficeAttempt:
        opened.append(made := really(self, task))
        return made

    monkeypatch.setattr(BackOffice, "start", start)
    yield
    for attempt in opened:
        attempt.close()


def played(task: Task, texts: list[str]) -> OfficeAttempt:
    attempt = OFFICE.start(task)
    for text in texts:
        if not attempt.act(text):
            break
    return attempt


def right(task: Task) -> list[str]:
    return written_case(task, random.Random(0), 1.0)


def test_it_is_an_environment_and_the_same_seed_gives_the_same_tasks() -> None:
    loaded = load_environment("treadle_demo:BackOffice")
    assert isinstance(loaded, Environment)
    assert list(loaded.tasks(40, 3)) == list(OFFICE.tasks(40, 3))
    assert list(OFFICE.tasks(40, 3)) != list(OFFICE.tasks(40, 4))


def test_five_calls_settle_any_case() -> None:
    for task in OFFICE.tasks(300, 1):
        attempt = played(task, right(task))
        assert attempt.success() == 1.0
        assert sum(message["role"] == "assistant" for message in attempt.messages) == 5
        assert all("error" not in message["content"] for message in attempt.messages if message["role"] == "tool")


def test_held_out_compositions_are_made_of_wishes_that_were_seen() -> None:
    split = Split(share=0.2)
    sides: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for task in OFFICE.tasks(8_000, 2):
        assert task.task_id == "+".join(
            f"{wish['kind']}-{order['product']}"
            for wish in task.data["wishes"]
            for order in task.data["orders"]
            if order["id"] == wish["order"]
        )
        sides[split.side(task.task_id)].add(task.task_id)
    assert len(sides["heldout"]) > 400
    assert not sides["train"] & sides["heldout"]
    seen = {wish for name in sides["train"] for wish in name.split("+")}
    assert {wish for name in sides["heldout"] for wish in name.split("+")} <= seen
    assert len(seen) == 60


def test_only_exactly_what_was_wished_is_a_success() -> None:
    rng = random.Random(3)
    for task in OFFICE.tasks(100, 4):
        calls = right(task)
        other = next(o for o in task.data["orders"] if o["id"] not in {w["order"] for w in task.data["wishes"]})
        account = task.data["account"]
        wrongs = {
            "one wish left": [*calls[:2], calls[3], calls[4]],
            "no reply": calls[:4],
            "reply about one only": [
                *calls[:4],
                written_call("send_customer_reply", compact({"account": account, "text": "the"})),
            ],
            "third order touched": [
                *calls[:4],
                written_call("send_tracking_update", compact({"order": other["id"]})),
                calls[4],
            ],
        }
        for name, texts in wrongs.items():
            assert played(task, texts).success() == 0.0, name
        swapped = rng.choice([2, 3])
        order = json.loads(calls[swapped])["arguments"]["order"]
        used = json.loads(calls[swapped])["name"]
        wrong = rng.choice([name for name in ACTIONS if name != used])
        free = {ACTIONS[wrong]: "text"} if ACTIONS[wrong] else {}
        calls[swapped] = written_call(wrong, compact({"order": order, **free}))
        assert played(task, calls).success() == 0.0


def test_an_address_must_be_the_one_that_was_written() -> None:
    task = next(t for t in OFFICE.tasks(500, 5) if t.data["wishes"][0]["kind"] == "moved")
    calls = right(task)
    address = task.data["wishes"][0]["address"]
    assert address in task.messages[1]["content"]
    assert played(task, calls).success() == 1.0
    calls[2] = calls[2].replace(address, "1 nowhere")
    assert played(task, calls).success() == 0.0


@pytest.mark.parametrize(("skill", "low", "high"), [(0.0, 0.0, 0.1), (0.35, 0.1, 0.3), (1.0, 1.0, 1.0)])
def test_a_demonstration_succeeds_as_its_skill_says(skill: float, low: float, high: float) -> None:
    rng = random.Random(0)
    wins = sum(played(task, written_case(task, rng, skill)).success() for task in OFFICE.tasks(300, 6))
    assert low <= wins / 300 <= high
    told = OFFICE.demonstrate(next(OFFICE.tasks(1, 7)), rng, skill)
    assert sum(message["role"] == "assistant" for message in told) == 5


_VALUES: Any = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text("ab1 é\ud800\x00", max_size=9),
    st.lists(st.integers()),
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([*ACTIONS, "find_customer_account", "list_customer_orders", "send_customer_reply", "no_tool"]),
    st.dictionaries(st.sampled_from(["order", "account", "name", "text", "reason", "address"]), _VALUES, max_size=3),
)
def test_whatever_a_model_writes_is_answered_and_never_raises(name: str, arguments: dict[str, Any]) -> None:
    attempt = OfficeAttempt(next(OFFICE.tasks(1, 8)))
    try:
        attempt.act(written_call(name, compact(arguments)))
        assert attempt.messages[-1]["role"] == "tool"
        assert attempt.success() in (0.0, 1.0)
    finally:
        attempt.close()


def test_outcomes_are_those_of_the_other_worlds() -> None:
    task = next(OFFICE.tasks(1, 9))
    settled = [v for n in range(200) for v in OFFICE.outcomes(played(task, right(task)), random.Random(n))]
    assert {(v.op, v.value) for v in settled} == {("set", 1.0)}
    failed = [v for n in range(200) for v in OFFICE.outcomes(played(task, ["i can not"]), random.Random(n))]
    assert {(v.op, v.value) for v in failed} == {("set", 0.0)}
