"""Filters: three-valued SQL over graded rows, with errors that show where."""

from __future__ import annotations

import pytest
from treadle_corpus.testing import graded
from treadle_schemas.records import GradedRow, Progress
from treadle_schemas.workspace import Metric, WorkspaceSettings
from treadle_streams.filter import (
    COLUMNS,
    PROGRESS_COLUMNS,
    Filter,
    FilterError,
    FilterNameError,
    FilterSyntaxError,
    FilterTypeError,
    SqlType,
    check_syntax,
    compile,
    metric_types,
    progress_row,
)

METRICS: dict[str, SqlType] = {
    "reward": "DOUBLE",
    "cost": "DOUBLE",
    "resolved": "BOOLEAN",
    "grade": "VARCHAR",
    "agent": "VARCHAR",
    "a b": "DOUBLE",
}
NOON_MS = 1_715_774_400_000  # 2024-05-15T12:00:00Z


def compiled(text: str) -> Filter:
    return compile(text, METRICS, NOON_MS)


def row(**fields: object) -> GradedRow:
    return graded("i", **fields).row  # type: ignore[arg-type]


ROW = row(
    reward=0.5,
    episode_id="e",
    model="m-1",
    step=3,
    tags={"team": "red", "n": 7, "flag": True, "none": None},
    metrics={
        "cost": ("observed", 12),
        "resolved": ("observed", True),
        "grade": ("observed", "good"),
        "agent": ("observed", "metric agent"),
        "a b": ("pending", None),
    },
)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("reward > 0", True),
        ("reward > 0.5", False),
        ("REWARD > 0 AND Agent = 'agent'", True),
        ("agent = 'metric agent'", False),
        ("metrics.agent = 'metric agent'", True),
        ("cost = 12 and resolved and grade = 'good'", True),
        ("NOT resolved", False),
        ("resolved IS NOT TRUE", False),
        ('"a b" > 0', None),
        ("state(\"a b\") = 'pending'", True),
        ("state(metrics.cost) IN ('pending', 'absent')", False),
        ('"a b" > 0 OR reward > 0', True),
        ('"a b" > 0 AND reward > 1', False),
        ('coalesce("a b", 1) > 0', True),
        ("tags.team = 'red' AND tags.flag = 'true' AND tags.none IS NULL AND tags.missing IS NULL", True),
        ("CAST(tags.n AS INT) BETWEEN 7 AND 8", True),
        ("tags.n = 7 AND tags.n IN (7, 8) AND tags.n > -1 AND 8 > tags.n AND tags.n + 1 = 8 AND tags.n = '7'", True),
        ("tags.team = 7", None),
        ("tags.flag IS TRUE AND tags.flag = true", True),
        ("tags.flag = 1", None),
        ("tags.n BETWEEN 7 AND 8", True),
        ("tags.team::double > 1", None),
        ("reward / 0 > 1", None),
        ("1 / (reward - reward) > 1", None),
        ("step % 2 = 1 AND step + 1 > 3 AND -step < 0", True),
        ("ended_at > '2024-05-15T22:31:00+02:00'", True),
        ("ended_at - started_at <= INTERVAL '1 minute'", True),
        ("started_at < now", False),
        ("started_at > now() - INTERVAL 7 DAY", True),
        ("current_timestamp = TIMESTAMPTZ '2024-05-15T12:00:00Z'", True),
        ("date_trunc('day', started_at) = '2024-05-15'", True),
        ("extract(hour FROM started_at) = 20", True),
        ("task_id LIKE 'ta%' AND model ILIKE 'M-_' AND regexp_matches(model, '^m-[0-9]$')", True),
        ("contains(agent, 'gen') AND starts_with(agent, 'a') AND length(agent) = 5 AND upper(agent) = 'AGENT'", True),
        ("release IS NULL AND slot = 'main' AND status = 'ok' AND split = 'train' AND subject IS NULL", True),
        ("release = 'x'", None),
        ("CASE WHEN reward > 1 THEN false WHEN cost > 1 THEN true ELSE false END", True),
        ("episode_id = 'e' AND interaction_id = 'i' AND completeness < 1", True),
        ("reward NOT IN (1, 2) -- a comment", True),
        ("greatest(reward, cost) = 12 AND round(reward, 1) = 0.5 AND abs(-1) = 1", True),
        ("agent || '/' || model = 'agent/m-1'", True),
        ("model IS DISTINCT FROM 'x'", True),
        ("true", True),
    ],
)
def test_an_expression_is_true_false_or_unknown(text: str, match: bool | None) -> None:
    assert compiled(text).matches([ROW]) == [match]


def test_an_absent_metric_is_unknown_and_never_zero() -> None:
    rows = [row(reward=None), row(reward=0.0), row(reward=1.0)]
    assert compiled("reward >= 0").matches(rows) == [None, True, True]
    assert compiled("reward IS NULL").matches(rows) == [True, False, False]


def test_unknown_rows_say_whether_they_wait_for_a_metric() -> None:
    rows = [
        row(metrics={"cost": ("pending", None)}),
        row(metrics={"cost": ("absent", None)}),
        row(),
        row(metrics={"cost": ("observed", 2.0)}),
        row(metrics={"cost": ("observed", 0.0)}),
    ]
    assert compiled("cost > 1").select(rows) == ["pending", "absent", "absent", "selected", "rejected"]
    late = row(reward=None, metrics={"cost": ("pending", None)})
    assert compiled("reward > 0").select([late]) == ["pending"]
    assert compiled("grade = 'x'").select([late]) == ["absent"]


def test_one_row_that_cannot_be_computed_leaves_the_others_alone() -> None:
    rows = [row(tags={"n": n}) for n in ("1", "x", "3", "", "5")]
    assert compiled("tags.n::int > 2").matches(rows) == [False, None, True, None, True]


def test_no_filter_selects_everything() -> None:
    assert compile(None, {}, 0).select([ROW, ROW]) == ["selected", "selected"]
    assert compiled("reward > 0").select([]) == []


@pytest.mark.parametrize(
    ("text", "error", "position", "words"),
    [
        ("rewrd > 0", FilterNameError, 0, "did you mean 'reward'?"),
        ("reward > 0 AND metrics.cots < 1", FilterNameError, 23, "did you mean 'cost'?"),
        ("state(split) = 'x'", FilterNameError, 6, "no metric 'split'"),
        ("other.x = 1", FilterNameError, 0, "metrics. and tags."),
        ("zzzz = 1", FilterNameError, 0, "there are"),
        ("reward > ", FilterSyntaxError, 7, "cannot be read"),
        ("reward > 0)", FilterSyntaxError, 10, "cannot be read"),
        ("reward = 'open", FilterSyntaxError, None, ""),
        ("", FilterSyntaxError, None, "empty"),
        ("  ", FilterSyntaxError, None, "empty"),
        ("reward > 0; DROP TABLE x", FilterSyntaxError, None, "not one expression"),
        ("SELECT 1", FilterSyntaxError, 7, "Select"),
        ("reward > (SELECT 1)", FilterSyntaxError, 17, ""),
        ("agent IN (SELECT 1)", FilterSyntaxError, None, ""),
        ("agent IN (FROM read_csv('/etc/passwd'))", FilterSyntaxError, None, ""),
        ("EXISTS(SELECT 1)", FilterSyntaxError, None, ""),
        ("read_text('/etc/passwd') = 'x'", FilterSyntaxError, 0, "read_text()"),
        ("getenv('HOME') = 'x'", FilterSyntaxError, 0, "getenv()"),
        ("random() > 0.5", FilterSyntaxError, None, ""),
        ("state() = 'x'", FilterSyntaxError, 0, "state(METRIC)"),
        ("count(*) > 1", FilterSyntaxError, None, ""),
        ("sum(reward) OVER () > 1", FilterSyntaxError, None, ""),
        ("$1 > 0", FilterSyntaxError, None, ""),
        ("tags.x::json = '1'", FilterSyntaxError, None, "cast"),
        ("reward", FilterTypeError, None, "not a condition"),
        ("agent > 5", FilterTypeError, None, "VARCHAR"),
        ("reward = 'x'", FilterTypeError, None, "Could not convert"),
        ("started_at > 'yesterday'", FilterTypeError, None, "timestamp"),
        ("TIMESTAMPTZ 'garbage' < now", FilterTypeError, None, "timestamp"),
    ],
)
def test_what_is_no_filter_says_why_and_where(
    text: str, error: type[FilterError], position: int | None, words: str
) -> None:
    with pytest.raises(error) as caught:
        compiled(text)
    assert words in str(caught.value)
    if position is not None:
        assert caught.value.position == position
        assert "^" in str(caught.value)


def test_a_pointer_stands_under_the_word_in_its_line() -> None:
    with pytest.raises(FilterNameError) as caught:
        compiled("reward > 0\n  AND rewrd > 1")
    assert str(caught.value).splitlines()[-2:] == ["    AND rewrd > 1", "        ^^^^^"]


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100 + "true" + ")" * 100,
        "not " * 1000 + "true",
        "-" + " -" * 1900 + "1 > 0",
        "true AND (" * 80 + "true" + ")" * 80,
        "a" * 5000,
    ],
)
def test_too_long_or_too_deep_is_refused(text: str) -> None:
    with pytest.raises(FilterSyntaxError, match=r"deeper than 64|at most 4096"):
        check_syntax(text)


def test_a_long_chain_is_not_deep() -> None:
    text = " OR ".join(f"step = {n}" for n in range(250))
    assert compiled(text).matches([ROW]) == [True]


def test_a_declared_type_wins_and_one_stray_value_stops_nothing() -> None:
    settings = WorkspaceSettings(
        workspace="w", metrics=(Metric(name="reward", required=True), Metric(name="ok", type="bool"))
    )
    seen = {
        "ok": frozenset({"text"}),
        "n": frozenset({"number", "text"}),
        "t": frozenset({"text", "bool"}),
        "b": frozenset({"bool"}),
        "z": frozenset[str](),
    }
    types = metric_types(settings, seen)
    assert types == {"reward": "DOUBLE", "ok": "BOOLEAN", "n": "DOUBLE", "t": "VARCHAR", "b": "BOOLEAN", "z": "DOUBLE"}
    rows = [row(metrics={"n": ("observed", v)}) for v in (2, "two", True, 10**400)]
    assert compile("n >= 1", types, 0).matches(rows) == [True, None, True, None]


def test_the_identity_names_all_that_a_decision_depends_on() -> None:
    base = compile("cost > 1", {"cost": "DOUBLE"}, 1).identity
    assert compile("cost > 1  ", {"cost": "DOUBLE", "x": "DOUBLE"}, 2).identity == base
    assert compile("cost > 2", {"cost": "DOUBLE"}, 1).identity != base
    assert (
        compile("cost IS NULL", {"cost": "DOUBLE"}, 1).identity
        != compile("cost IS NULL", {"cost": "VARCHAR"}, 1).identity
    )
    assert compile("ended_at < now", {}, 1).identity != compile("ended_at < now", {}, 2).identity


def test_now_can_be_moved_without_compiling_anew() -> None:
    found = compiled("ended_at > now - INTERVAL '1 day'")
    assert found.matches([ROW]) == [True]
    later = found.at(NOON_MS + 2 * 86_400_000)
    assert (later.matches([ROW]), found.matches([ROW])) == ([False], [True])
    assert later.identity != found.identity
    plain = compiled("reward > 0")
    assert plain.at(0) is plain


def test_a_row_that_is_not_whole_is_asked_only_about_what_it_has() -> None:
    change = Progress(
        episode_id="e",
        interaction_id="i",
        task_id="t",
        agent="desk",
        slot="main",
        release=None,
        grade=ROW.grade,
        split="train",
        revision=2,
        append_ms=5,
        ended_at="2024-05-15T20:32:00Z",
    )
    text = "agent = 'desk' AND task_id = 't' AND cost = 12 AND state(\"a b\") = 'pending' AND release IS NULL"
    found = compile(text + " AND ended_at < now + INTERVAL '1 day'", METRICS, NOON_MS, PROGRESS_COLUMNS)
    assert found.matches([progress_row(change)]) == [True]
    for column in sorted({*COLUMNS, "tags.x"} - PROGRESS_COLUMNS):
        with pytest.raises(FilterNameError, match="is not known of these rows"):
            compile(f"{column} IS NULL", METRICS, NOON_MS, PROGRESS_COLUMNS)
        assert compile(f"{column} IS NULL", METRICS, NOON_MS).matches([ROW]) != [None]


def test_half_a_surrogate_pair_is_no_text_and_stops_nothing() -> None:
    with pytest.raises(FilterSyntaxError, match="surrogate") as caught:
        compiled("agent = '\ud83d'")
    assert caught.value.position == 9
    rows = [row(model="\ud83dx"), row(model="m"), row(model=None), row(step=2**70)]
    assert compiled("model = '\ufffdx'").matches(rows) == [True, False, None, None]
    assert compiled("step IS NULL").matches(rows) == [False, False, False, True]
