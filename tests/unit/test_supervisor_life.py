"""The life of a supervised process: pure, with time passed in."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from treadle_streams.supervisor import Life, Restarts, State

RULE = Restarts()
Step = Literal["poll", "end", "refuse", "stop"]


def test_the_pause_doubles_from_half_a_second_to_ten() -> None:
    life, now, pauses = Life(), 100.0, []
    for _ in range(8):
        life = life.started(now).ended(now + 0.1, RULE, 1, "no")
        pauses.append(round(life.due - (now + 0.1), 6))
        now = life.due
    assert pauses == [0.5, 1, 2, 4, 8, 10, 10, 10]
    assert RULE.delay_s(1_000_000) == RULE.most_delay_s


def test_a_life_of_thirty_seconds_ends_the_row_of_failures() -> None:
    life = Life()
    for n in range(4):
        life = life.started(n * 20.0).ended(n * 20.0 + 1, RULE, 1, "no")
    assert life.ends == 4
    assert life.started(100.0).ended(129.9, RULE, 1, "no").ends == 5
    recovered = life.started(100.0).ended(130.0, RULE, 1, "no")
    assert (recovered.ends, recovered.due) == (1, 130.5)
    assert recovered.restarts == 4


def test_it_is_due_at_once_then_only_after_its_pause_and_never_while_it_lives_or_is_stopped() -> None:
    life = Life()
    assert life.is_due(0.0)
    alive = life.started(5.0)
    assert not alive.is_due(1e9)
    ended = alive.ended(6.0, RULE, 0, "")
    assert not ended.is_due(6.49)
    assert ended.is_due(6.5)
    assert not ended.stopping(6.2).is_due(1e9)
    assert not alive.stopping(6.0).is_due(1e9)
    assert not alive.stopping(6.0).ended(6.1, RULE, -15, "").is_due(1e9)


@pytest.mark.parametrize(
    ("life", "now", "state"),
    [
        (Life(), 0.0, "waiting"),
        (Life().started(0.0), 0.0, "running"),
        (Life().started(0.0).ended(1.0, RULE, 1, "no"), 1.1, "restarting"),
        (Life().started(0.0).ended(1.0, RULE, 1, "no").started(1.5), 1.6, "running"),
        (Life(ends=2, starts=2).started(0.0).ended(1.0, RULE, 1, "no"), 1.1, "failing"),
        (Life(ends=3, starts=3).started(0.0), 29.0, "failing"),
        (Life(ends=3, starts=3).started(0.0), 30.0, "running"),
        (Life(ends=2).not_started(0.0, RULE, "no memory"), 0.1, "failing"),
        (Life().started(0.0).stopping(1.0), 1.0, "stopping"),
        (Life().started(0.0).stopping(1.0).ended(2.0, RULE, -15, ""), 2.0, "stopped"),
        (Life().started(0.0).ended(1.0, RULE, 1, "no").stopping(2.0), 2.0, "stopped"),
    ],
)
def test_one_word_says_how_it_is(life: Life, now: float, state: State) -> None:
    assert life.state(now, RULE) == state


def test_the_last_end_keeps_code_and_words_until_the_next() -> None:
    life = Life().started(0.0).ended(1.0, RULE, 3, "port taken").started(2.0)
    assert (life.exit_code, life.last_line) == (3, "port taken")
    assert life.ended(3.0, RULE, -9, "").exit_code == -9
    refused = life.not_started(3.0, RULE, "no such folder")
    assert (refused.exit_code, refused.last_line) == (None, "no such folder")


def test_an_end_that_was_asked_for_is_no_failure() -> None:
    life = Life().started(0.0).ended(1.0, RULE, 3, "port taken").started(2.0).stopping(3.0).ended(3.5, RULE, 0, "bye")
    assert (life.phase, life.ends, life.last_line) == ("stopped", 1, "port taken")


@given(st.lists(st.tuples(st.sampled_from(["poll", "end", "refuse", "stop"]), st.floats(0.0, 60.0)), max_size=60))
def test_whatever_happens_it_is_never_given_up_and_never_started_too_early(steps: list[tuple[Step, float]]) -> None:
    life, now, alive, last_end, stopped = Life(), 0.0, False, None, False
    for step, later in steps:
        now += later
        if step == "end" and alive:
            life, alive, last_end = life.ended(now, RULE, 1, "no"), False, now
        elif step == "stop":
            life, stopped = life.stopping(now), True
        elif step in ("poll", "refuse") and life.is_due(now):
            assert not alive
            assert not stopped
            assert last_end is None or now - last_end >= RULE.first_delay_s
            if step == "poll":
                life, alive = life.started(now), True
            else:
                life, last_end = life.not_started(now, RULE, "no"), now
        if not alive and not stopped:
            assert life.is_due(now + RULE.most_delay_s)
        if not alive and life.ends >= RULE.failing_after and not stopped:
            assert life.state(now, RULE) == "failing"
