"""The two environments hold the protocol, decide by the state of a real database, and report late, repeated, taken back or never."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from treadle_demo import CustomerDesk, RoomDesk
from treadle_demo._calls import compact, written_call
from treadle_demo.desk import ACTIONS as DESK_ACTIONS
from treadle_demo.rooms import ACTIONS as ROOM_ACTIONS
from treadle_schemas.environment import Attempt, Environment, Task, load_environment
from treadle_schemas.split import Split

_NAMES = ["treadle_demo.desk:CustomerDesk", "treadle_demo.rooms:RoomDesk"]
_LOOKUPS = {CustomerDesk: ("get_order", "order_id"), RoomDesk: ("check_room", "room_id")}
# the salt and share of a new workspace
_SPLIT = Split()


@pytest.fixture(params=_NAMES)
def environment(request: pytest.FixtureRequest) -> Any:
    return load_environment(request.param)


def _right(environment: Any, task: Task) -> list[str]:
    if isinstance(environment, RoomDesk):
        return environment.meeting_calls(task)
    arguments = compact({"order_id": task.data["order_id"]})
    return [written_call(name, arguments) for name in environment.settling_actions(task)]


@pytest.fixture(autouse=True)
def _every_world_is_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python 3.13 complains of databases that nobody closes."""
    opened: list[Attempt] = []
    for kind in (CustomerDesk, RoomDesk):
        monkeypatch.setattr(kind, "start", _tracked(kind.start, opened))
    yield
    for attempt in opened:
        attempt.close()


def _tracked(start: Callable[[Any, Task], Attempt], opened: list[Attempt]) -> Callable[[Any, Task], Attempt]:
    def tracked(self: Any, task: Task) -> Attempt:
        opened.append(start(self, task))
        return opened[-1]

    return tracked


def _look_up(environment: Any, task: Task) -> str:
    name, key = _LOOKUPS[type(environment)]
    return written_call(name, compact({key: task.data[key]}))


def _played(environment: Any, task: Task, *texts: str) -> Attempt:
    attempt: Attempt = environment.start(task)
    for text in texts:
        attempt.act(text)
    return attempt


def _one(environment: Any, **wanted: Any) -> Task:
    return next(t for t in environment.tasks(5_000, 0) if wanted.items() <= t.data.items())


def test_the_same_seed_gives_the_same_tasks(environment: Environment) -> None:
    assert list(environment.tasks(50, 3)) == list(environment.tasks(50, 3))
    assert list(environment.tasks(50, 3)) != list(environment.tasks(50, 4))
    assert list(environment.tasks(20, 3)) == list(environment.tasks(50, 3))[:20]


def test_the_group_of_a_task_fixes_what_is_said_of_which_number(environment: Environment) -> None:
    facts: dict[str, set[tuple[str, Any]]] = {}
    for task in environment.tasks(5_000, 1):
        intent, wording, number = task.task_id.split("-")
        key = _LOOKUPS[type(environment)][1]  # type: ignore[index]
        assert (intent, int(number)) == (task.data["intent"], task.data[key])
        assert number in task.messages[1]["content"]
        facts.setdefault(f"{intent}-{wording}", set()).add((intent, wording))
    assert len(facts) == 30


def test_tasks_of_one_group_differ_in_the_world_behind_them(environment: Environment) -> None:
    worlds: dict[str, set[str]] = {}
    for task in environment.tasks(20_000, 2):
        worlds.setdefault(task.task_id, set()).add(compact(dict(task.data)))
    assert len(worlds) > 2_600
    assert sum(len(w) for w in worlds.values()) > 2 * len(worlds)


def test_no_message_is_on_both_sides_of_the_split(environment: Environment) -> None:
    sides: dict[str, set[str]] = {}
    count: Counter[str] = Counter()
    for task in environment.tasks(5_000, 3):
        side = _SPLIT.side(task.task_id)
        count[side] += 1
        sides.setdefault(compact(list(task.messages)), set()).add(side)
    assert all(len(s) == 1 for s in sides.values())
    assert 300 < count["heldout"] < 700


def test_every_number_and_every_wording_alone_is_seen_in_training(environment: Environment) -> None:
    train = [t.task_id.split("-") for t in environment.tasks(5_000, 4) if _SPLIT.side(t.task_id) == "train"]
    assert len({(intent, wording) for intent, wording, _ in train}) == 30
    assert len({number for _, _, number in train}) == 90


def test_every_task_has_exactly_one_right_action(environment: Any) -> None:
    assert {len(_right(environment, task)) for task in environment.tasks(300, 5)} == {1}


def test_every_action_is_right_in_some_situation_and_none_in_most(environment: Any) -> None:
    right = Counter(_right(environment, task)[0].split('"')[3] for task in environment.tasks(600, 6))
    assert set(right) == set(DESK_ACTIONS if isinstance(environment, CustomerDesk) else ROOM_ACTIONS)
    assert max(right.values()) < 0.4 * 600


def test_a_look_up_and_the_right_action_succeed_and_nothing_else_does(environment: Any) -> None:
    for task in environment.tasks(40, 7):
        right = _right(environment, task)[0]
        attempt = environment.start(task)
        assert attempt.success() == 0.0
        assert attempt.act(_look_up(environment, task)) is True
        assert attempt.success() == 0.0
        assert attempt.act(right) is False
        assert attempt.success() == 1.0
        roles = [message["role"] for message in attempt.messages]
        assert roles == ["system", "user", "assistant", "tool", "assistant", "tool"]
        assert [m["tool_calls"][0]["id"] for m in attempt.messages if m["role"] == "assistant"] == [
            m["tool_call_id"] for m in attempt.messages if m["role"] == "tool"
        ]
        attempt.close()


def test_the_right_action_on_the_neighbour_fails(environment: Any) -> None:
    key = _LOOKUPS[type(environment)][1]
    for task in environment.tasks(40, 8):
        wrong = _right(environment, task)[0].replace(f'"{key}":{task.data[key]}', f'"{key}":{task.data["other_id"]}')
        assert _played(environment, task, wrong).success() == 0.0


def test_prose_ends_the_attempt_without_success(environment: Any) -> None:
    task = next(environment.tasks(1, 9))
    attempt = environment.start(task)
    assert attempt.act("how can i help?") is False
    assert attempt.success() == 0.0
    assert attempt.messages[-1] == {"role": "assistant", "content": "how can i help?"}
    with pytest.raises(ValueError, match="is over"):
        attempt.act("hello?")


def test_the_second_look_up_is_the_last_call(environment: Any) -> None:
    task = next(environment.tasks(1, 10))
    attempt = environment.start(task)
    assert attempt.act(_look_up(environment, task)) is True
    assert attempt.act(_look_up(environment, task)) is False


@pytest.mark.parametrize(
    "arguments",
    [{}, {"order_id": "47"}, {"order_id": True}, {"order_id": 10**30}, {"order_id": None}, {"room_id": [4]}, {"x": 1}],
)
def test_bad_arguments_are_answered_with_an_error(environment: Any, arguments: dict[str, Any]) -> None:
    task = next(environment.tasks(1, 11))
    name = _LOOKUPS[type(environment)][0]
    attempt = _played(environment, task, written_call(name, compact(arguments)))
    assert attempt.messages[-1]["content"] == '{"error":"bad call"}'


def test_the_attempt_leaves_the_task_as_it_was(environment: Any) -> None:
    task = next(environment.tasks(1, 12))
    before = compact([list(task.messages), dict(task.data)])
    _played(environment, task, _look_up(environment, task), "prose")
    assert compact([list(task.messages), dict(task.data)]) == before


@given(
    st.text(max_size=40),
    st.dictionaries(st.sampled_from(["order_id", "room_id", "slot"]), st.integers() | st.text(max_size=40)),
)
# each example opens two databases: how long that takes is a matter of what else the machine does
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_call_raises(name: str, arguments: dict[str, Any]) -> None:
    for environment in (CustomerDesk(), RoomDesk()):
        task = next(environment.tasks(1, 13))
        attempt = environment.start(task)
        attempt.act(written_call(name, compact(arguments)))
        assert attempt.success() == 0.0
        attempt.close()


def test_the_shops_systems_refuse_what_is_too_late() -> None:
    desk = CustomerDesk()
    task = _one(desk, intent="mind", status="shipped")
    attempt = _played(desk, task, written_call("cancel_order", compact({"order_id": task.data["order_id"]})))
    assert attempt.messages[-1]["content"] == '{"error":"already shipped"}'


def test_a_taken_slot_is_refused_by_the_database() -> None:
    rooms = RoomDesk()
    task = _one(rooms, intent="book", slot="am", am="taken")
    call = written_call("book_room", compact({"room_id": task.data["room_id"], "slot": "am"}))
    assert "UNIQUE" in _played(rooms, task, call).messages[-1]["content"]


def _needless(environment: Any) -> Attempt:
    """An attempt that pleases for now although the case is not settled."""
    if isinstance(environment, CustomerDesk):
        task = _one(environment, intent="twice", charges=1)
        return _played(environment, task, written_call("refund_order", compact({"order_id": task.data["order_id"]})))
    task = _one(environment, intent="book", slot="am", am="free", held=1)
    call = written_call("book_room", compact({"room_id": task.data["room_id"], "slot": "am"}))
    return _played(environment, task, call)


def test_a_needless_favour_reads_as_success_until_the_audit_takes_it_back(environment: Any) -> None:
    attempt = _needless(environment)
    assert attempt.success() == 0.0
    reports = [environment.outcomes(attempt, random.Random(i)) for i in range(1_000)]
    answered = [report for report in reports if report]
    assert 60 < len(reports) - len(answered) < 140  # 10 % never come
    for report in answered:
        first, *_, retraction, audit = report
        assert (first.op, first.value, first.ref) == ("set", 1.0, "answer")
        assert (retraction.op, retraction.ref) == ("retract", "answer")
        assert (audit.op, audit.value) == ("set", 0.0)
        assert first.after_s < retraction.after_s == audit.after_s
    repeated = [report for report in answered if len(report) == 4]
    assert 20 < len(repeated) < 80
    assert all(report[0] == report[1] for report in repeated)
    delays_h = sorted((report[-1].after_s - report[0].after_s) / 3600 for report in answered)
    assert 4 < delays_h[len(delays_h) // 2] < 6


def test_a_settled_case_is_answered_with_success_and_never_taken_back(environment: Any) -> None:
    task = next(environment.tasks(1, 14))
    attempt = _played(environment, task, _right(environment, task)[0])
    verdicts = [v for i in range(500) for v in environment.outcomes(attempt, random.Random(i))]
    assert {(v.op, v.value) for v in verdicts} == {("set", 1.0)}
    hours = sorted(v.after_s / 3600 for v in verdicts)
    assert 2.2 < hours[len(hours) // 2] < 3.3


def test_an_unsettled_case_is_answered_with_failure(environment: Any) -> None:
    attempt = _played(environment, next(environment.tasks(1, 15)), "i can not help")
    verdicts = [v for i in range(100) for v in environment.outcomes(attempt, random.Random(i))]
    assert {(v.op, v.value) for v in verdicts} == {("set", 0.0)}


@pytest.mark.parametrize(("skill", "low", "high"), [(0.0, 0.05, 0.25), (1.0, 1.0, 1.0)])
def test_a_demonstration_succeeds_as_often_as_its_skill_says(
    environment: Any, skill: float, low: float, high: float
) -> None:
    rng = random.Random(0)
    wins = 0
    for task in environment.tasks(200, 16):
        last = environment.demonstrate(task, rng, skill)[-2]["tool_calls"][0]["function"]
        wins += written_call(last["name"], last["arguments"]) in _right(environment, task)
    assert low <= wins / 200 <= high


def test_the_environments_load_without_torch() -> None:
    code = "import sys, treadle_demo; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
