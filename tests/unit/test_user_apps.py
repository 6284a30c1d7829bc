"""What apps beside the join lean on, without a broker."""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from treadle_schemas import Progress
from treadle_schemas.codec import CLOCK, PROGRESS, make_headers
from treadle_streams.apps import once, read
from treadle_streams.apps._run import app_name
from treadle_streams.apps.errors import AppInvalid

PROGRESS_VALUE = (
    b'{"episode_id":"e","interaction_id":"i","task_id":null,"agent":"a","slot":"main","release":null,"split":"train",'
    b'"grade":{"metrics":{},"reward":1.0,"completeness":1.0,"settled":true,"grading_version":1},'
    b'"revision":1,"append_ms":0,"ended_at":"2026-01-01T00:00:00Z"}'
)


def event(kind: str, value: bytes) -> Any:
    return SimpleNamespace(message=SimpleNamespace(value=value, headers=make_headers(kind, "ws", source="test")))


@given(st.lists(st.integers(-5, 5), max_size=20), st.data())
def test_repeating_a_stretch_of_changes_leaves_the_sum(changes: list[int], data: st.DataObject) -> None:
    apply, cell = once(operator.add), [-1, 0]
    for offset, change in enumerate(changes):
        cell = apply(cell, (offset, change))
        again = data.draw(st.integers(0, offset + 1))  # a restart goes back to here
        for earlier in range(again, offset + 1):
            cell = apply(cell, (earlier, changes[earlier]))
    assert cell[1] == sum(changes)


def test_read_gives_what_is_typed_and_none_for_the_rest() -> None:
    assert read(event(PROGRESS, PROGRESS_VALUE)) == msgspec.json.decode(PROGRESS_VALUE, type=Progress)
    assert read(event(CLOCK, b"{}")) is None
    assert read(event(PROGRESS, b"{")) is None
    assert read(event("com.example.other", b"{}")) is None


def test_a_module_s_name_becomes_the_app_s() -> None:
    assert app_name("pkg.success_rates") == "pkg-success_rates"
    with pytest.raises(AppInvalid):
        app_name("pkg/mod")
