"""Filters take any text from anybody: a typed error or an answer, never anything else, and the same answer row by row and in batches."""

from __future__ import annotations

import importlib.util
import platform
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlglot
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlglot import exp
from treadle_corpus.testing import graded
from treadle_schemas.records import GradedRow
from treadle_streams.filter import Filter, FilterError, SqlType, compile
from treadle_streams.filter._grammar import check_syntax, resolve
from treadle_streams.join.reward import compile as compile_reward

_SPEC = importlib.util.spec_from_file_location("fuzz_filters", Path(__file__).parent.parent / "fuzz" / "filters.py")
assert _SPEC is not None
assert _SPEC.loader is not None
filters = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(filters)

METRICS: dict[str, SqlType] = {
    "reward": "DOUBLE",
    "cost": "DOUBLE",
    "resolved": "BOOLEAN",
    "grade": "VARCHAR",
    "a b": "DOUBLE",
}
NOON_MS = 1_715_774_400_000
CHANCE = st.randoms(use_true_random=False)
NUMBER = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, 7.0, -0.0, 1e308, -1e308, 1e-300, 3])
TAG = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | NUMBER | st.text(st.characters(codec=None), max_size=3)
STATE = st.sampled_from(["observed", "observed", "pending", "absent"])


def metric(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Any]]:
    return st.tuples(STATE, values).map(lambda drawn: (drawn[0], drawn[1] if drawn[0] == "observed" else None))


ROW = st.builds(
    lambda reward, metrics, tags, model, step: (
        graded("i", reward=reward, metrics=metrics, tags=tags, model=model, step=step).row
    ),
    st.none() | NUMBER,
    st.fixed_dictionaries(
        {},
        optional={
            "cost": metric(NUMBER | st.just("odd")),
            "resolved": metric(st.booleans()),
            "grade": metric(st.sampled_from(["good", "", "\ud83d"])),
            "a b": metric(NUMBER),
        },
    ),
    st.fixed_dictionaries({}, optional={"n": TAG, "team": TAG}),
    st.none() | st.text(st.characters(codec=None), max_size=3),
    st.integers(0, 3) | st.just(2**70),
)


def compiled(text: str) -> Filter | None:
    """The filter, or None where it is refused, with an error that shows where."""
    try:
        return compile(text, METRICS, NOON_MS)
    except FilterError as err:
        refused = err
    assert str(refused).startswith("filter")
    assert refused.position is None or 0 <= refused.position <= len(text)
    return None


def check(text: str, rows: list[GradedRow]) -> None:
    found = compiled(text)
    if found is None:
        return
    try:
        together = found.matches(rows)
    except FilterError:
        return
    assert all(match is None or match is True or match is False for match in together)
    assert together == [found.matches([row])[0] for row in rows]
    assert [decision == "selected" for decision in found.select(rows)] == [match is True for match in together]


@given(st.text(st.characters(codec=None), max_size=60), st.lists(ROW, max_size=2))
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_filter_or_a_typed_error(text: str, rows: list[GradedRow]) -> None:
    check(text, rows)


@given(CHANCE, st.lists(ROW, max_size=3))
@settings(max_examples=200, deadline=None)
def test_hostile_and_broken_expressions_are_filters_or_typed_errors(
    chance: random.Random, rows: list[GradedRow]
) -> None:
    check(filters.hostile(chance), rows)


@pytest.mark.long
@given(CHANCE, st.lists(ROW, max_size=3))
@settings(max_examples=20_000, deadline=None)
def test_hostile_and_broken_expressions_at_length(chance: random.Random, rows: list[GradedRow]) -> None:
    check(filters.hostile(chance), rows)


@given(CHANCE, st.lists(ROW, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_correct_expressions_mean_the_same_row_by_row_and_in_batches(
    chance: random.Random, rows: list[GradedRow]
) -> None:
    check(filters.correct(chance), rows)


@pytest.mark.parametrize("text", filters.SEEDS)
def test_the_seeds_are_filters(text: str) -> None:
    assert compiled(text) is not None


@given(CHANCE)
@settings(max_examples=150, deadline=None)
def test_what_reaches_the_engine_names_numbered_columns_and_nothing_else(chance: random.Random) -> None:
    text = filters.hostile(chance)
    try:
        checked = resolve(text, check_syntax(text), METRICS)
    except FilterError:
        return
    tree = sqlglot.parse_one(checked.sql, read="duckdb")
    forbidden = (
        exp.Query,
        exp.Table,
        exp.Command,
        exp.DDL,
        exp.DML,
        exp.Anonymous,
        exp.Placeholder,
        exp.Star,
        exp.Window,
    )
    assert not list(tree.find_all(*forbidden)), checked.sql
    for column in tree.find_all(exp.Column):
        assert re.fullmatch(r"c\d+|now", column.name), checked.sql
        assert not column.table, checked.sql


@pytest.mark.parametrize(
    "text", [a for a in filters.ATTACKS if "SELECT" in a or "FROM" in a or ";" in a or "getenv" in a]
)
def test_attacks_are_refused_before_the_engine_sees_them(text: str) -> None:
    with pytest.raises(FilterError):
        check_syntax(text)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"), reason="needs seccomp"
)
def test_no_expression_opens_a_file_or_a_socket_or_starts_a_program() -> None:
    script = Path(__file__).parent.parent / "fuzz" / "caged.py"

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(script), *args], capture_output=True, text=True, timeout=280)

    escaped = run("escape")
    if escaped.returncode == 77:
        pytest.skip(escaped.stdout)
    assert escaped.returncode == -31, escaped.stderr  # SIGSYS: the cage is closed
    done = run("20240515", "60")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 10


# --- rewards: the same language over metrics alone, evaluated in Python while the join grades --------------------------------------

VALUES = st.sampled_from([None, None, 0.0, 1.0, 2.0, 0.5, 7.0, 100.0])
METRIC_VALUES = st.fixed_dictionaries(
    {"cost": VALUES, "reward": VALUES, "a b": VALUES, "resolved": st.none() | st.booleans()}
)


def amount(chance: random.Random, depth: int) -> str:
    """A number, of what both languages have."""
    if depth == 0:
        return chance.choice(("cost", "reward", '"a b"', "NULL", "0", "1", "2", "0.5", "7"))
    one, other = amount(chance, depth - 1), amount(chance, depth - 1)
    match chance.randrange(6):
        case 0 | 1:
            return f"({one} {chance.choice('+-*/')} {other})"
        case 2:
            return f"(-{one})" if chance.random() < 0.5 else f"abs({one})"
        case 3 | 4:
            return f"{chance.choice(('coalesce', 'least', 'greatest', 'nullif'))}({one}, {other})"
        case _:
            return f"(CASE WHEN {condition(chance, depth - 1)} THEN {one} ELSE {other} END)"


def condition(chance: random.Random, depth: int) -> str:
    """A condition, of what both languages have."""
    one, other = amount(chance, max(0, depth - 1)), amount(chance, max(0, depth - 1))
    match chance.randrange(8 if depth else 5):
        case 0:
            return chance.choice(("resolved", "true", "false", "(resolved IS NULL)", "(resolved IS NOT TRUE)"))
        case 1 | 2:
            return f"({one} {chance.choice(('=', '<>', '<', '<=', '>', '>='))} {other})"
        case 3:
            return f"({one} BETWEEN {other} AND {amount(chance, 0)})"
        case 4:
            return f"({one} IN ({other}, {amount(chance, 0)}))" if chance.random() < 0.5 else f"({one} IS NULL)"
        case 5:
            return f"(NOT {condition(chance, depth - 1)})"
        case _:
            return f"({condition(chance, depth - 1)} {chance.choice(('AND', 'OR'))} {condition(chance, depth - 1)})"


@given(CHANCE, st.integers(0, 4), st.lists(METRIC_VALUES, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_a_reward_in_python_and_a_filter_in_duckdb_mean_the_same(
    chance: random.Random, depth: int, values: list[dict[str, Any]]
) -> None:
    text = condition(chance, depth)
    kinds: Any = {"cost": "float", "reward": "float", "a b": "float", "resolved": "bool"}
    rows = [
        graded("i", metrics={n: ("absent", None) if v is None else ("observed", v) for n, v in one.items()}).row
        for one in values
    ]
    reward = compile_reward(f"CASE WHEN {text} THEN 1 WHEN NOT {text} THEN 0 END", kinds)
    expected = [None if (found := reward(one)) is None else found == 1.0 for one in values]
    # in a filter `reward` is the row's column, and `metrics.reward` the metric
    found = compile(text.replace("reward", "metrics.reward"), METRICS, NOON_MS).matches(rows)
    assert found == expected, text
