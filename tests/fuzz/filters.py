"""Expressions to try filters with: correct ones, broken ones, hostile ones, from one source of chance."""

from __future__ import annotations

import random
from typing import Final

__all__ = ["ATTACKS", "SEEDS", "correct", "hostile", "mutated", "nested", "soup"]

SEEDS: Final = (
    "reward > 0",
    "reward >= 0.5 AND agent = 'desk' OR NOT resolved",
    "state(cost) IN ('pending', 'absent') AND metrics.cost IS NULL",
    "tags.team = 'red' AND tags.n BETWEEN 1 AND 7",
    "ended_at > now - INTERVAL '30 days'",
    "date_trunc('day', started_at) = TIMESTAMPTZ '2024-05-15'",
    "extract(hour FROM started_at) % 2 = 0",
    "CASE WHEN reward > 1 THEN false WHEN cost > 1 THEN true ELSE false END",
    "regexp_matches(model, '^m-[0-9]+$') AND model ILIKE 'M-_' ESCAPE '!'",
    "coalesce(cost, 1) / nullif(reward, 0) < greatest(1, least(2, 3))",
    "tags.n::int > 2 AND TRY_CAST(tags.n AS DOUBLE) < 1e308",
    '"a b" IS NOT DISTINCT FROM -1',
    "lower(trim(agent)) || '/' || upper(model) = 'agent/M-1'",
    "contains(agent, 'gen') AND starts_with(agent, 'a') AND ends_with(agent, 't') AND length(agent) = 5",
)
ATTACKS: Final = (
    "read_text('/etc/passwd') = 'x'",
    "agent IN (SELECT content FROM read_text('/etc/passwd'))",
    "EXISTS(FROM read_csv('http://localhost:1/x'))",
    "(SELECT count(*) FROM glob('/*')) > 0",
    "getenv('HOME') = 'x'",
    "true; COPY (SELECT 1) TO '/tmp/x'",
    "true; ATTACH '/tmp/x.db'",
    "true; INSTALL httpfs; LOAD httpfs",
    "true; SET enable_external_access=true",
    "current_setting('home_directory') = ''",
    "agent = (TABLE duckdb_settings())",
    "query('SELECT 1') = 1",
    "reward > (VALUES (1))",
    "list_transform([1], x -> x)[1] = 1",
    "unnest([true])",
    "'/etc/passwd'::json IS NULL",
    "parse_path('/etc/passwd')[1] = ''",
    "agent = ANY(SELECT 1)",
    "sum(reward) OVER () > 0",
    "random() > 0.5",
    "nextval('x') > 0",
    "pg_sleep(10) IS NULL",
    "$1 = 1",
    "? = 1",
    "#1 = 1",
    "COLUMNS('.*') = 1",
    "* = 1",
    "rows_.c0 = 1",
    "agent SIMILAR TO '(a|b)*'",
    "agent GLOB '*'",
    "agent COLLATE nocase = 'A'",
    "{'a': reward}.a > 0",
    "ARRAY[reward][1] > 0",
    "MAP {'a': 1}['a'] = 1",
    "reward > 0 QUALIFY true",
    "reward > 0 UNION SELECT 1",
    "reward > 0 /* */ -- */",
    "'it''s' = agent",
    "E'\\x41' = agent",
    "x'41' = agent",
    "$$a$$ = agent",
    'U&"\\0061" = 1',
    "reward = 0x1F OR reward = 1_000 OR reward = 1e400 OR reward = .5e-9",
    "'nan'::double > reward OR 'inf'::double > reward",
    "repeat('x', 1000000000) = agent",
    "agent LIKE '%' || '%' || '%a%a%a%a%a%a%a%'",
    "regexp_matches(agent, '(a*)*$')",
    "regexp_matches(agent, '[')",
    "INTERVAL (reward) DAY > INTERVAL '1 day'",
    "ended_at AT TIME ZONE 'Europe/Berlin' > now",
    "9223372036854775807 + step > 0",
    "step * 9223372036854775807 > 0",
    "-(-9223372036854775808) > step",
    "99999999999999999999999999999999999999999999 > step",
    "CAST('x' AS INT) > 1",
    "TIMESTAMPTZ '294247-01-10' + INTERVAL '1000000 years' > now",
    "\u0000",
    "reward\u00a0> 0",
    "r\u0435ward > 0",
    "\ud83d = 1",
    "\u202e reward > 0",
    "'\ud83d' = agent",
)
_NAMES: Final = (
    "reward",
    "cost",
    "resolved",
    "agent",
    "model",
    "step",
    "ended_at",
    "now",
    "tags.n",
    "metrics.cost",
    '"a b"',
)
_VALUES: Final = ("0", "1", "-1", "2.5", "1e9", "'x'", "'5'", "''", "NULL", "true", "false", "INTERVAL '1 day'")
_BINARY: Final = (
    "=",
    "<>",
    "<",
    "<=",
    ">",
    ">=",
    "+",
    "-",
    "*",
    "/",
    "%",
    "//",
    "||",
    "AND",
    "OR",
    "LIKE",
    "ILIKE",
    "IS NOT DISTINCT FROM",
)
_WRAPS: Final = (
    "({})",
    "NOT {}",
    "-{}",
    "abs({})",
    "lower({})",
    "length({})",
    "coalesce({}, 1)",
    "CAST({} AS DOUBLE)",
    "{}::varchar",
    "{} IS NULL",
    "{} IN (1, 2)",
    "{} BETWEEN 0 AND 5",
    "CASE WHEN {} THEN 1 END",
    "round({}, 1)",
    "date_trunc('day', {})",
    "extract(year FROM {})",
    "nullif({}, 0)",
    "greatest({}, 1)",
    "trim({})",
    "state({})",
    "TRY_CAST({} AS INT)",
    "floor({})",
)
_TOKENS: Final = (
    *_NAMES, *_VALUES, *_BINARY, "(", ")", ",", ".", ";", "[", "]", "{", "}", "::", "'", '"', "--", "/*", "*/", "$", "@", "?", ":", "->",
    "SELECT", "FROM", "WHERE", "CASE", "WHEN", "THEN", "ELSE", "END", "CAST", "AS", "INT", "IN", "BETWEEN", "NOT", "IS", "NULL",
    "INTERVAL", "OVER", "FILTER", "WITHIN", "GROUP", "ORDER", "BY", "LATERAL", "UNNEST", "EXISTS", "ANY", "ALL", "VALUES", "TABLE",
    "read_text", "getenv", "state", "now", "extract", "x", "ESCAPE", "COLLATE", "AT TIME ZONE", "\n", "\t", "\u00e9",
)  # fmt: skip


def correct(chance: random.Random, depth: int = 4) -> str:
    """Something of the grammar, mostly of matching types."""
    if depth == 0 or chance.random() < 0.2:
        return chance.choice(_NAMES if chance.random() < 0.6 else _VALUES)
    if chance.random() < 0.5:
        left, right = correct(chance, depth - 1), correct(chance, depth - 1)
        return f"({left} {chance.choice(_BINARY)} {right})"
    return chance.choice(_WRAPS).format(correct(chance, depth - 1))


def soup(chance: random.Random) -> str:
    """Tokens in any order."""
    return " ".join(chance.choice(_TOKENS) for _ in range(chance.randrange(1, 14)))


def mutated(chance: random.Random) -> str:
    """A correct or hostile expression with characters and words cut, doubled, swapped or put in."""
    text = chance.choice((*SEEDS, *ATTACKS)) if chance.random() < 0.7 else correct(chance)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(text) + 1)
        end = min(len(text), at + chance.randrange(1, 8))
        match chance.randrange(5):
            case 0:
                text = text[:at] + text[end:]
            case 1:
                text = text[:end] + text[at:end] + text[end:]
            case 2:
                text = text[:at] + chance.choice(_TOKENS) + text[at:]
            case 3:
                text = (
                    text[:at]
                    + chr(chance.choice((0, 10, 39, 34, 59, 92, 0x2028, 0xFF07, chance.randrange(0x3000))))
                    + text[at:]
                )
            case _:
                other = chance.choice((*SEEDS, *ATTACKS))
                text = text[:at] + other[chance.randrange(len(other)) :]
    return text


def nested(chance: random.Random) -> str:
    """Deep, in one of many ways."""
    count = chance.choice((5, 20, 60, 70, 200, 1000, 3000))
    inner = chance.choice(SEEDS)
    match chance.randrange(6):
        case 0:
            return "(" * count + inner + ")" * chance.choice((count, count - 1, count + 1))
        case 1:
            return (
                chance.choice(("NOT ", "- ", "abs(", "CASE WHEN ", "coalesce(", "CAST(", "((", "[", "{", "-- ")) * count
                + inner
            )
        case 2:
            return f" {chance.choice(_BINARY)} ".join([chance.choice(_NAMES)] * count)
        case 3:
            return (
                inner + chance.choice((" AND (", " OR NOT (", "::int", " IS NULL", "[1]", ".x", " COLLATE x")) * count
            )
        case 4:
            wrap = chance.choice(_WRAPS)
            for _ in range(min(count, 80)):
                inner = wrap.format(inner) if len(inner) < 5000 else inner
            return inner
        case _:
            return f"step IN ({', '.join(map(str, range(count)))})"


def hostile(chance: random.Random) -> str:
    """Any of the above."""
    match chance.randrange(8):
        case 0:
            return correct(chance)
        case 1:
            return soup(chance)
        case 2:
            return nested(chance)
        case 3:
            return chance.choice(ATTACKS)
        case _:
            return mutated(chance)
