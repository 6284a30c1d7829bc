"""Reward expressions: values, NULL, and errors that say where and what was meant."""

from __future__ import annotations

from typing import Any

import pytest
from treadle_streams.join import RewardError
from treadle_streams.join.reward import compile as compile_reward

NAMES = {"a": "float", "b": "float", "ok": "bool", "label": "category", "my metric": "float"}
ROW: dict[str, Any] = {"a": 2.0, "b": -1.5, "ok": True, "label": "x", "my metric": 4.0}
NULL: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("expression", "row", "expected"),
    [
        ("a", ROW, 2.0),
        ("a + b * 2 - 1", ROW, -2.0),
        ("(a + b) * 2", ROW, 1.0),
        ("-a", ROW, -2.0),
        ("a / 4", ROW, 0.5),
        ("7 % 4", ROW, 3.0),
        ("ok", ROW, 1.0),
        ("ok * 0.5", ROW, 0.5),
        ("NOT ok", ROW, 0.0),
        ("a > 1 AND b < 0", ROW, 1.0),
        ("a = 2 OR a = 3", ROW, 1.0),
        ("a <> 2", ROW, 0.0),
        ("a BETWEEN 1 AND 2", ROW, 1.0),
        ("a IN (1, 2)", ROW, 1.0),
        ("label = 'x'", ROW, 1.0),
        ("label IN ('y', 'z')", ROW, 0.0),
        ("CASE WHEN ok THEN a ELSE b END", ROW, 2.0),
        ("CASE label WHEN 'y' THEN 1 WHEN 'x' THEN 3 END", ROW, 3.0),
        ("LEAST(a, b, 0)", ROW, -1.5),
        ("GREATEST(a, b)", ROW, 2.0),
        ("ABS(b)", ROW, 1.5),
        ("NULLIF(a, 2)", ROW, None),
        ('"my metric" / 2', ROW, 2.0),
        ("-0.0 * a", ROW, 0.0),
        # NULL: a metric without value
        ("a", NULL, None),
        ("a + 1", NULL, None),
        ("a = a", NULL, None),
        ("a IS NULL", NULL, 1.0),
        ("a IS NOT NULL", NULL, 0.0),
        ("ok IS TRUE", NULL, 0.0),
        ("COALESCE(a, b, 7)", NULL, 7.0),
        ("a = 1 AND FALSE", NULL, 0.0),
        ("a = 1 AND TRUE", NULL, None),
        ("a = 1 OR TRUE", NULL, 1.0),
        ("a = 1 OR FALSE", NULL, None),
        ("NOT ok", NULL, None),
        ("CASE WHEN ok THEN 1 ELSE 2 END", NULL, 2.0),
        ("CASE WHEN ok THEN 1 END", NULL, None),
        ("LEAST(a, 3)", NULL, 3.0),
        ("GREATEST(a, b)", NULL, None),
        ("a IN (1, 2)", NULL, None),
        # what has no finite value is NULL
        ("a / 0", ROW, None),
        ("a % 0", ROW, None),
        ("1e308 * 1e308", ROW, None),
        ("1e308 + 1e308 > 0", ROW, None),
    ],
)
def test_an_expression_has_the_value_that_sql_gives_it(
    expression: str, row: dict[str, Any], expected: float | None
) -> None:
    value = compile_reward(expression, NAMES)(row)  # type: ignore[arg-type]
    assert value == expected
    assert str(value) == str(expected), "-0.0 is 0.0"


@pytest.mark.parametrize(
    ("expression", "position", "says"),
    [
        ("", None, "is empty"),
        ("a +", 2, "missing or wrong"),
        ("a b c", 4, "'c'"),
        ("a b", 0, "not allowed"),
        ("a + nope", 4, "no metric 'nope'"),
        ("1 + foo(a)", 4, "not allowed"),
        ("SELECT 1", None, "not allowed"),
        ("a IN (SELECT 1)", 0, "not allowed"),
        ("a; b", 0, "not allowed"),
        ("t.a", 0, "no table"),
        ("SUM(a)", None, "not allowed"),
        ("label + 1", 0, "text"),
        ("label", 0, "text"),
        ("label = 1", 0, "mixes"),
        ("CASE WHEN label THEN 1 END", None, "text"),
        ("1e999", None, "beyond float64"),
        ("a" + "+1" * 2500, None, "longer than"),
        ("(" * 200 + "a" + ")" * 200, None, ""),
        ("__import__('os')", 0, "not allowed"),
    ],
)
def test_what_is_no_reward_is_refused_with_its_place(expression: str, position: int | None, says: str) -> None:
    with pytest.raises(RewardError) as caught:
        compile_reward(expression, NAMES)  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert caught.value.exit_code == 2
    if position is not None:
        assert caught.value.position == position


def test_an_unknown_name_suggests_the_nearest_metric() -> None:
    with pytest.raises(RewardError) as caught:
        compile_reward("reward + latncy", {"reward": "float", "latency": "float"})
    assert caught.value.suggestion == "latency"
    assert "Did you mean 'latency'?" in str(caught.value)
    assert caught.value.position == 9
