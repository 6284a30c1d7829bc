"""When the snapshotter runs: pure, time passed in."""

from __future__ import annotations

from treadle_streams import snapshot
from treadle_streams.snapshot import Trigger


def test_enough_new_rows_start_a_run() -> None:
    trigger = Trigger(3, 600.0, 0.0)
    trigger.saw(0, 0, "a")
    trigger.saw(0, 1, "a")
    trigger.saw(1, 0, "b")
    assert not trigger.due(1.0)
    trigger.saw(1, 1, "c")
    assert trigger.due(1.0)


def test_corrections_start_a_run_only_after_the_interval() -> None:
    trigger = Trigger(1, 600.0, 0.0)
    for offset in range(50):
        trigger.saw(0, offset, None)
    assert not trigger.due(599.0)
    assert trigger.due(600.0)


def test_time_alone_starts_no_run() -> None:
    assert not Trigger(1, 600.0, 0.0).due(1e9)


def test_what_is_unfinished_is_run_at_once_and_once() -> None:
    trigger = Trigger(10, 600.0, 0.0, unfinished=True)
    assert trigger.due(0.0)
    trigger.ran({0: 5}, 1.0)
    assert not trigger.due(700.0)


def test_what_a_process_before_folded_counts_and_is_no_run_by_itself() -> None:
    trigger = Trigger(10, 600.0, 0.0, held=8)
    trigger.saw(0, 0, "a")
    assert not trigger.due(599.0)
    trigger.saw(0, 1, "b")
    assert trigger.due(1.0)
    trigger.ran({0: 2}, 1.0)
    assert not trigger.due(1e9)


def test_what_a_process_before_folded_is_due_after_the_interval_whether_its_rows_were_new_or_not() -> None:
    trigger = Trigger(10, 600.0, -500.0, held=0)
    assert not trigger.due(99.0)
    assert trigger.due(100.0)


def test_what_came_after_the_ends_of_a_run_counts_for_the_next() -> None:
    trigger = Trigger(2, 600.0, 0.0)
    trigger.saw(0, 4, "a")
    trigger.saw(0, 5, "b")
    trigger.saw(1, 9, "c")
    assert trigger.due(0.0)
    trigger.ran({0: 5, 1: 10}, 10.0)
    assert not trigger.due(600.0)
    assert trigger.due(610.0)


def test_everything_public_is_exported() -> None:
    assert sorted(snapshot.__all__) == snapshot.__all__
    assert all(getattr(snapshot, name) is not None for name in snapshot.__all__)
