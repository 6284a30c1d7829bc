"""From text to a checked expression: sqlglot parses, a whitelist decides what may be said, names become numbered columns.

What reaches DuckDB is generated anew from the checked tree: nothing of the text goes through but literals, which sqlglot quotes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from treadle_streams.filter._columns import COLUMNS, Column, SqlType, metric_column, state_column, tag_column
from treadle_streams.filter.errors import FilterNameError, FilterSyntaxError

__all__ = ["ANY_COLUMN", "MAX_DEPTH", "MAX_LENGTH", "NOW", "Checked", "check_syntax", "resolve"]

MAX_LENGTH: Final = 4096
"""Longest expression, in characters."""
MAX_DEPTH: Final = 64
"""Deepest nesting: sqlglot and DuckDB recurse. A chain of AND, OR or one arithmetic operator counts once."""
NOW: Final = "now"
"""Name of the column that holds the watermark."""

ANY_COLUMN: Final = frozenset({*COLUMNS, "tags"})
"""Of whole rows everything can be named."""

_DIALECT = "duckdb"
_CHAINS = (exp.And, exp.Or, exp.Add, exp.Sub, exp.Mul, exp.Div, exp.DPipe)
_ALLOWED: Final[tuple[type[exp.Expr], ...]] = (
    *_CHAINS,
    *(exp.Not, exp.Paren, exp.Neg, exp.IntDiv, exp.Mod),
    *(exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ, exp.NullSafeNEQ),
    *(exp.Is, exp.In, exp.Between, exp.Like, exp.ILike, exp.Escape, exp.RegexpLike),
    *(exp.Literal, exp.Boolean, exp.Null, exp.Interval, exp.Var, exp.Column, exp.Identifier),
    *(exp.Case, exp.If, exp.Coalesce, exp.Nullif, exp.Greatest, exp.Least),
    *(exp.Abs, exp.Round, exp.Floor, exp.Ceil),
    *(exp.Lower, exp.Upper, exp.Length, exp.Trim, exp.Contains, exp.StartsWith, exp.EndsWith),
    *(exp.TimestampTrunc, exp.DateTrunc, exp.Extract, exp.CurrentTimestamp),
    *(exp.Cast, exp.TryCast, exp.DataType),
)
_CAST_TYPES: Final = frozenset(
    f"{t}"
    for t in (
        "DOUBLE",
        "FLOAT",
        "INT",
        "BIGINT",
        "BOOLEAN",
        "VARCHAR",
        "TEXT",
        "TIMESTAMP",
        "TIMESTAMPTZ",
        "DATE",
        "INTERVAL",
    )
)
_FORBIDDEN_ARGS: Final = ("query", "unnest", "field", "format", "db", "catalog")
"""Arguments by which an allowed node carries what is not: subqueries, foreign tables."""


@dataclass(frozen=True)
class Checked:
    """An expression ready for DuckDB: `sql` over columns c0, c1, ..., what each reads, and whether it asks for the time."""

    sql: str
    columns: tuple[Column, ...]
    uses_now: bool


def check_syntax(text: str) -> exp.Expr:
    """Parse and check everything but names. Raises FilterSyntaxError."""
    if len(text) > MAX_LENGTH:
        raise FilterSyntaxError(text, f"it has {len(text)} characters; at most {MAX_LENGTH}")
    lone = next((n for n, char in enumerate(text) if "\ud800" <= char <= "\udfff"), None)
    if lone is not None:
        raise FilterSyntaxError(text, "half of a surrogate pair is no character", lone)
    if not text.strip():
        raise FilterSyntaxError(text, "it is empty; leave the filter out to select every settled row")
    try:
        found = [tree for tree in sqlglot.parse(text, read=_DIALECT) if tree is not None]
    except SqlglotError as err:
        raise _syntax_error(text, err) from None
    except RecursionError:
        raise FilterSyntaxError(text, f"it is nested deeper than {MAX_DEPTH}") from None
    if len(found) != 1:
        raise FilterSyntaxError(text, "it is not one expression")
    (tree,) = found
    if _depth(tree) > MAX_DEPTH:
        raise FilterSyntaxError(text, f"it is nested deeper than {MAX_DEPTH}")
    for node in tree.walk():
        _check_node(text, node)
    return tree


def resolve(
    text: str, tree: exp.Expr, metrics: Mapping[str, SqlType], columns_there: Collection[str] = ANY_COLUMN
) -> Checked:
    """Replace names by numbered columns. `metrics` are those that are declared or were seen; of the columns, and tags, only
    `columns_there` may be named. Raises FilterNameError.
    """
    columns: dict[str, tuple[str, Column]] = {}
    uses_now = False

    def number(what: str, column: Column) -> exp.Expr:
        name, _ = columns.setdefault(what, (f"c{len(columns)}", column))
        return exp.column(name, quoted=True)

    def replace(node: Any) -> Any:
        nonlocal uses_now
        match node:
            case exp.CurrentTimestamp():
                uses_now = True
                return exp.column(NOW, quoted=True)
            case exp.Anonymous() if node.name.lower() == "now":
                uses_now = True
                return exp.column(NOW, quoted=True)
            case exp.Anonymous():
                metric = node.expressions[0]
                name = _metric_name(text, metric, metrics)
                return number(f"state {name}", state_column(name))
            case exp.Column() if not node.table and not node.this.quoted and node.name.lower() == "now":
                uses_now = True
                return exp.column(NOW, quoted=True)
            case exp.Column():
                return number(*_column(text, node, metrics, columns_there))
            case exp.Cast() if not isinstance(node, exp.TryCast) and not isinstance(node.this, exp.Literal):
                # what does not convert is unknown, it must not stop a snapshot
                return exp.TryCast(this=_rewritten(node.this, replace), to=node.to)
        return node

    rewritten = _rewritten(tree.copy(), replace)
    return Checked(rewritten.sql(dialect=_DIALECT, comments=False), tuple(c for _, c in columns.values()), uses_now)


def _rewritten(tree: exp.Expr, replace: Callable[[Any], Any]) -> exp.Expr:
    done: exp.Expr = tree.transform(replace, copy=False)
    return done


def _check_node(text: str, node: exp.Expr) -> None:
    if isinstance(node, exp.Anonymous):
        name = node.name.lower()
        if name == "now" and not node.expressions:
            return
        if name == "state" and len(node.expressions) == 1 and isinstance(node.expressions[0], exp.Column):
            return
        hint = "; write state(METRIC)" if name == "state" else ""
        raise FilterSyntaxError(text, f"the function {name}() may not be used here{hint}", *_place(text, node))
    if not isinstance(node, _ALLOWED):
        raise FilterSyntaxError(text, f"{type(node).__name__} may not be used in a filter", *_place(text, node))
    if any(node.args.get(arg) for arg in _FORBIDDEN_ARGS):
        raise FilterSyntaxError(text, "only columns, metrics and values may stand here", *_place(text, node))
    if isinstance(node, exp.DataType) and node.this.name not in _CAST_TYPES:
        raise FilterSyntaxError(text, f"nothing can be cast to {node.sql(dialect=_DIALECT)}", *_place(text, node))
    if isinstance(node, exp.Interval) and not isinstance(node.this, exp.Literal):
        raise FilterSyntaxError(text, "an interval is written as INTERVAL '7 days'", *_place(text, node))


def _column(text: str, node: exp.Column, metrics: Mapping[str, SqlType], there: Collection[str]) -> tuple[str, Column]:
    name = node.name
    table = node.table.lower()
    if table == "tags":
        _check_there(text, node, "tags", there)
        kind = _compared_with(node)
        return f"tag {kind} {name}", tag_column(name, kind)
    if table == "metrics":
        known = _metric_name(text, node, metrics)
        return f"metric {known}", metric_column(known, metrics[known])
    if table:
        raise FilterNameError(
            text, f"{table}. is unknown here; there are metrics. and tags.", *_place(text, node.args["table"])
        )
    plain = name if node.this.quoted else name.lower()
    if plain in COLUMNS:
        _check_there(text, node, plain, there)
        return f"column {plain}", COLUMNS[plain]
    if name in metrics:
        return f"metric {name}", metric_column(name, metrics[name])
    raise FilterNameError(
        text,
        f"no column or metric is called {name!r}{_suggestion(name, [*COLUMNS, *metrics])}",
        *_place(text, node),
    )


def _check_there(text: str, node: exp.Column, name: str, there: Collection[str]) -> None:
    if name not in there:
        raise FilterNameError(
            text, f"{name} is not known of these rows; {', '.join(sorted(there))} are", *_place(text, node)
        )


def _compared_with(node: exp.Expr) -> SqlType:
    """What stands beside a tag, which has no type of its own."""
    beside = [n for n in node.parent.iter_expressions() if n is not node] if node.parent else []
    beside = [n.this if isinstance(n, exp.Neg) else n for n in beside]
    if any(isinstance(n, exp.Literal) and not n.is_string for n in beside):
        return "DOUBLE"
    return "BOOLEAN" if any(isinstance(n, exp.Boolean) for n in beside) else "VARCHAR"


def _metric_name(text: str, node: exp.Column, metrics: Mapping[str, SqlType]) -> str:
    name = str(node.name)
    if node.table.lower() in ("", "metrics") and name in metrics:
        return name
    raise FilterNameError(
        text,
        f"no metric {node.name!r} is declared or was seen{_suggestion(node.name, list(metrics))}",
        *_place(text, node),
    )


def _suggestion(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.6) or [k for k in known if k.lower() == name.lower()]
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(set(known)))}"


def _place(text: str, node: exp.Expr) -> tuple[int | None, int]:
    for part in node.walk():
        start, end = part.meta.get("start"), part.meta.get("end")
        if isinstance(start, int) and isinstance(end, int):
            return start, end - start + 1
    for word in (node.name, node.sql(dialect=_DIALECT)):
        at = text.lower().find(word.lower()) if word else -1
        if at >= 0:
            return at, len(word)
    return None, 1


def _syntax_error(text: str, err: SqlglotError) -> FilterSyntaxError:
    details = getattr(err, "errors", None) or [{}]
    start, word = details[0].get("start_context"), details[0].get("highlight") or ""
    problem = str(details[0].get("description") or str(err).splitlines()[0])
    if start is None:
        return FilterSyntaxError(text, problem)
    at = text.find(start + word) + len(start)
    return FilterSyntaxError(text, f"cannot be read here ({problem.split('<')[0].strip()})", at, max(1, len(word)))


def _depth(tree: exp.Expr) -> int:
    """Nesting, where a chain of one operator counts once."""
    deepest, stack = 0, [(tree, 1)]
    while stack:
        node, depth = stack.pop()
        deepest = max(deepest, depth)
        for child in node.iter_expressions():
            chained = type(child) is type(node) and isinstance(node, _CHAINS)
            stack.append((child, depth if chained else depth + 1))
    return deepest
