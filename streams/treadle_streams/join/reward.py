"""Reward expressions: SQL arithmetic over metrics, compiled to closures.

The text is parsed by sqlglot, checked against a whitelist and turned into plain Python closures; nothing of it is ever evaluated as code.
NULL behaves as in SQL: it spreads through arithmetic and comparisons, AND and OR are three-valued, COALESCE, CASE and IS NULL see it,
LEAST and GREATEST skip it (as DuckDB does). Booleans count as 0 and 1 where a number is wanted. What has no finite value is NULL: division
by zero and overflow.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Literal, NamedTuple

import sqlglot
from sqlglot import expressions as exp
from sqlglot.errors import SqlglotError

from treadle_streams.join.errors import RewardError

__all__ = ["MAX_EXPRESSION_CHARS", "Kind", "Reward", "Value", "compile"]

MAX_EXPRESSION_CHARS = 4_000
"""Longest expression. A reward is a line or two; the parser recurses, so its input has a bound."""
_MAX_DEPTH = 100

Kind = Literal["bool", "float", "category"]
Value = bool | float | str | None
Row = Mapping[str, Value]
Reward = Callable[[Row], float | None]
"""From the values of the metrics (a name that is missing is NULL) to the reward: a finite float, or None for NULL."""

_Eval = Callable[[Row], Any]
_NodeKind = Literal["number", "text", "null"]
_Tree = Any
"""A node of sqlglot's tree; its base class has another name from one version to the next."""


class _Node(NamedTuple):
    kind: _NodeKind
    run: _Eval


_ARITHMETIC: Final[dict[type, Callable[[float, float], float]]] = {
    exp.Add: operator.add,
    exp.Sub: operator.sub,
    exp.Mul: operator.mul,
    exp.Div: operator.truediv,
    exp.Mod: math.fmod,
}
_COMPARISON: Final[dict[type, Callable[[Any, Any], bool]]] = {
    exp.EQ: operator.eq,
    exp.NEQ: operator.ne,
    exp.LT: operator.lt,
    exp.LTE: operator.le,
    exp.GT: operator.gt,
    exp.GTE: operator.ge,
}
_ALLOWED = "+ - * / %, comparisons, AND, OR, NOT, BETWEEN, IN, IS NULL, CASE, COALESCE, NULLIF, LEAST, GREATEST, ABS, numbers, texts"


def compile(expression: str, names: Mapping[str, Kind] | Collection[str]) -> Reward:
    """`expression` as a function of the metrics `names` (a mapping gives their types; else all are floats).

    Raises RewardError with the position, and the nearest known name for an unknown one.
    """
    kinds: Mapping[str, Kind] = names if isinstance(names, Mapping) else dict.fromkeys(names, "float")
    node = _Compiler(expression, kinds).compile()
    run = node.run

    def reward(row: Row) -> float | None:
        value = run(row)
        return None if value is None else float(value) + 0.0  # -0.0 is 0.0, as in canonical JSON

    return reward


class _Compiler:
    def __init__(self, expression: str, kinds: Mapping[str, Kind]) -> None:
        self._text = expression
        self._kinds = kinds

    def compile(self) -> _Node:
        if len(self._text) > MAX_EXPRESSION_CHARS:
            raise self._error(f"is longer than {MAX_EXPRESSION_CHARS} characters")
        if not self._text.strip():
            raise self._error("is empty; name a metric, for example reward")
        try:
            tree = sqlglot.parse_one(self._text, dialect="duckdb")
        except (SqlglotError, RecursionError) as err:
            raise self._syntax_error(err) from None
        node = self._visit(tree, 0)
        if node.kind == "text":
            raise self._error("gives a text; a reward is a number", tree)
        return node

    def _visit(self, e: _Tree, depth: int) -> _Node:
        if depth > _MAX_DEPTH:
            raise self._error(f"is nested deeper than {_MAX_DEPTH}", e)

        def visit(child: Any) -> _Node:
            return self._visit(child, depth + 1)

        match e:
            case exp.Paren():
                return visit(e.this)
            case exp.Column() | exp.Identifier():
                return self._name(e)
            case exp.Null():
                return _Node("null", lambda row: None)
            case exp.Boolean():
                flag = bool(e.this)
                return _Node("number", lambda row: flag)
            case exp.Literal():
                return self._literal(e)
            case exp.Neg():
                inner = self._number(visit(e.this), e).run
                return _Node("number", lambda row: None if (v := inner(row)) is None else -v)
            case exp.Abs():
                inner = self._number(visit(e.this), e).run
                return _Node("number", lambda row: None if (v := inner(row)) is None else abs(v))
            case exp.Not():
                inner = self._number(visit(e.this), e).run
                return _Node("number", lambda row: None if (v := inner(row)) is None else not v)
            case exp.And() | exp.Or():
                return self._connect(e, visit(e.this), visit(e.expression))
            case exp.Is():
                return self._is(e, visit)
            case exp.Between():
                low = self._compare(operator.ge, visit(e.this), visit(e.args["low"]), e)
                high = self._compare(operator.le, visit(e.this), visit(e.args["high"]), e)
                return self._connect(exp.And(), low, high)
            case exp.In() if not e.args.get("query") and not e.args.get("unnest") and e.expressions:
                node = visit(e.this)
                out = self._compare(operator.eq, node, visit(e.expressions[0]), e)
                for item in e.expressions[1:]:
                    out = self._connect(exp.Or(), out, self._compare(operator.eq, node, visit(item), e))
                return out
            case exp.Case():
                return self._case(e, visit)
            case exp.If():
                return self._branches([(visit(e.this), visit(e.args["true"]))], self._default(e, "false", visit), e)
            case exp.Coalesce():
                return self._coalesce([visit(e.this), *map(visit, e.expressions)], e)
            case exp.Nullif():
                left, equal = visit(e.this), self._compare(operator.eq, visit(e.this), visit(e.expression), e).run
                return _Node(left.kind, lambda row: None if equal(row) else left.run(row))
            case exp.Least() | exp.Greatest():
                return self._extreme(e, [visit(e.this), *map(visit, e.expressions)])
        if type(e) in _ARITHMETIC:
            return self._arithmetic(_ARITHMETIC[type(e)], visit(e.this), visit(e.expression), e)
        if type(e) in _COMPARISON:
            return self._compare(_COMPARISON[type(e)], visit(e.this), visit(e.expression), e)
        raise self._error(
            f"{e.sql(dialect='duckdb')!r} is not allowed here; a reward is made of metrics, {_ALLOWED}", e
        )

    def _name(self, e: _Tree) -> _Node:
        if isinstance(e, exp.Column) and e.table:
            raise self._error(f"{e.sql()!r}: a metric has no table; quote a name with dots", e)
        name = e.name
        if name not in self._kinds:
            near = difflib.get_close_matches(name, self._kinds, n=1, cutoff=0.5)
            known = ", ".join(sorted(self._kinds)) or "none"
            raise self._error(f"no metric {name!r}; declared are {known}", e, near[0] if near else None)
        return _Node("text" if self._kinds[name] == "category" else "number", lambda row: row.get(name))

    def _literal(self, e: exp.Literal) -> _Node:
        if e.is_string:
            text = str(e.this)
            return _Node("text", lambda row: text)
        try:
            number = float(e.this)
        except ValueError:
            raise self._error(f"{e.this!r} is no number", e) from None
        if not math.isfinite(number):
            raise self._error(f"{e.this} is beyond float64", e)
        return _Node("number", lambda row: number)

    def _arithmetic(self, op: Callable[[float, float], float], a: _Node, b: _Node, e: _Tree) -> _Node:
        left, right = self._number(a, e).run, self._number(b, e).run

        def run(row: Row) -> float | None:
            x, y = left(row), right(row)
            if x is None or y is None:
                return None
            try:
                value = op(float(x), float(y))
            except (ZeroDivisionError, ValueError, OverflowError):
                return None
            return value if math.isfinite(value) else None

        return _Node("number", run)

    def _compare(self, op: Callable[[Any, Any], bool], a: _Node, b: _Node, e: _Tree) -> _Node:
        self._same([a, b], e)
        left, right = a.run, b.run

        def run(row: Row) -> bool | None:
            x, y = left(row), right(row)
            return None if x is None or y is None else op(x, y)

        return _Node("number", run)

    def _connect(self, e: _Tree, a: _Node, b: _Node) -> _Node:
        left, right = self._number(a, e).run, self._number(b, e).run
        # the value that decides alone: FALSE for AND, TRUE for OR
        decides = isinstance(e, exp.Or)

        def run(row: Row) -> bool | None:
            x, y = left(row), right(row)
            if (x is not None and bool(x) is decides) or (y is not None and bool(y) is decides):
                return decides
            return None if x is None or y is None else not decides

        return _Node("number", run)

    def _is(self, e: exp.Is, visit: Callable[[Any], _Node]) -> _Node:
        inner = visit(e.this)
        match e.expression:
            case exp.Null():
                return _Node("number", lambda row: inner.run(row) is None)
            case exp.Boolean() as wanted:
                run, flag = self._number(inner, e).run, bool(wanted.this)
                return _Node("number", lambda row: (v := run(row)) is not None and bool(v) is flag)
        raise self._error("IS takes NULL, TRUE or FALSE", e)

    def _case(self, e: exp.Case, visit: Callable[[Any], _Node]) -> _Node:
        branches = []
        for branch in e.args["ifs"]:
            when = visit(branch.this)
            if e.this is not None:
                when = self._compare(operator.eq, visit(e.this), when, branch)
            branches.append((when, visit(branch.args["true"])))
        return self._branches(branches, self._default(e, "default", visit), e)

    def _default(self, e: _Tree, arg: str, visit: Callable[[Any], _Node]) -> _Node:
        child = e.args.get(arg)
        return _Node("null", lambda row: None) if child is None else visit(child)

    def _branches(self, branches: list[tuple[_Node, _Node]], otherwise: _Node, e: _Tree) -> _Node:
        kind = self._same([then for _, then in branches] + [otherwise], e)
        steps = [(self._number(when, e).run, then.run) for when, then in branches]

        def run(row: Row) -> Any:
            for when, then in steps:
                if when(row):
                    return then(row)
            return otherwise.run(row)

        return _Node(kind, run)

    def _coalesce(self, nodes: list[_Node], e: _Tree) -> _Node:
        runs = [node.run for node in nodes]
        return _Node(self._same(nodes, e), lambda row: next((v for run in runs if (v := run(row)) is not None), None))

    def _extreme(self, e: _Tree, nodes: list[_Node]) -> _Node:
        runs = [self._number(node, e).run for node in nodes]
        pick = min if isinstance(e, exp.Least) else max

        def run(row: Row) -> Any:
            present = [v for r in runs if (v := r(row)) is not None]
            return pick(present) if present else None

        return _Node("number", run)

    def _number(self, node: _Node, e: _Tree) -> _Node:
        if node.kind == "text":
            raise self._error("a text stands where a number or a condition is needed", e)
        return node

    def _same(self, nodes: list[_Node], e: _Tree) -> _NodeKind:
        kinds: set[_NodeKind] = {node.kind for node in nodes if node.kind != "null"}
        if len(kinds) > 1:
            raise self._error("mixes a text with a number", e)
        return kinds.pop() if kinds else "null"

    def _error(self, problem: str, e: _Tree | None = None, suggestion: str | None = None) -> RewardError:
        return RewardError(self._text, problem, position=_position(e), suggestion=suggestion)

    def _syntax_error(self, err: Exception) -> RewardError:
        details = getattr(err, "errors", None)
        if not details:
            return self._error(
                "is not an expression" if not isinstance(err, RecursionError) else "is nested too deeply"
            )
        first = details[0]
        lines = self._text.split("\n")
        line, end = int(first.get("line") or 1), int(first.get("col") or 1)
        word = str(first.get("highlight") or "")
        before = sum(len(text) + 1 for text in lines[: line - 1])
        return self._error_at(max(0, before + end - max(len(word), 1)), word)

    def _error_at(self, position: int, word: str) -> RewardError:
        at_end = position + len(word) >= len(self._text.rstrip())
        shown = f"something is missing or wrong at {word!r}" if at_end else f"{word!r} is not expected here"
        return RewardError(self._text, shown, position=position)


def _position(e: _Tree | None) -> int | None:
    if e is None:
        return None
    starts = [node.meta["start"] for node in e.walk() if isinstance(node.meta.get("start"), int)]
    return min(starts, default=None)
