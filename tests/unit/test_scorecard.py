"""Scorecards: calls in what models write, slices, verdicts, and pages that no text can break."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from treadle_schemas.errors import SettingError
from treadle_schemas.verdicts import find_verdict
from treadle_trainer.errors import EvaluationFailed
from treadle_trainer.gate import Check, Paired, judge
from treadle_trainer.scorecard import EvalRow, make_card, read_anchor, to_html, to_markdown
from treadle_trainer.scorecard.calls import Call, calls_of, read_text
from treadle_trainer.scorecard.card import Metric, Played, Scorecard, brief
from treadle_trainer.scorecard.evaluators import check_evaluator, run_evaluator
from treadle_trainer.scorecard.metrics import for_gate
from treadle_trainer.scorecard.plots import interval_text
from treadle_trainer.scorecard.rows import Measured, _with_big_slices
from treadle_trainer.scorecard.spend import Spend

FIND = (Call("find", {"id": 7}),)


@pytest.mark.parametrize(
    ("text", "calls", "broken"),
    [
        ('<tool_call>\n{"name": "find", "arguments": {"id": 7}}\n</tool_call>', FIND, False),
        ('{"name": "find", "parameters": {"id": 7}}', FIND, False),
        ('[TOOL_CALLS] [{"name": "find", "arguments": "{\\"id\\": 7}"}]', FIND, False),
        ('<call>find {"id": 7}</call>', FIND, False),
        ('Let me see: find({"id": 7})', FIND, False),
        ('<tool_call>{"name": "find", "arguments": {"id": 7}</tool_call>', (), True),
        ("<call>find</call>", (), True),
        ('{"name": ', (), True),
        ("It is {not} a call [1], nor {that", (), False),
        ('{"answer": 7}', (), False),
        ("[" * 100_000, (), True),
        ("", (), False),
    ],
)
def test_calls_are_found_in_what_models_write(text: str, calls: tuple[Call, ...], broken: bool) -> None:
    assert tuple(read_text(text)) == (calls, broken)


def test_calls_of_logged_messages() -> None:
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": '{"id": 7}'}}]}
    assert calls_of([message, {"role": "assistant", "content": "x", "tool_calls": None}]) == FIND
    message["tool_calls"][0]["function"]["arguments"] = "{oops"  # type: ignore[index]
    assert calls_of([message]) == (Call("find", "{oops"),)
    assert find_verdict('first {"a": 1} then {"value": 0.5} {') == {"value": 0.5}
    assert find_verdict("{" * 100_000) is None


def rows(n: int, **more: Any) -> list[EvalRow]:
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    return [EvalRow(messages=said, response=[1], group=f"g{i // 2}", reward=float(i % 4 > 0), **more) for i in range(n)]


ABOUT = {
    "candidate": "shop/main/r1",
    "champion": "shop/main/r0",
    "corpus": "<b>c",
    "version": 3,
    "content_hash": "ab" * 32,
    "created_at": "2026-11-30T00:00:00Z",
}


def test_verdicts_say_which_way_is_better_and_only_where_the_interval_says_so() -> None:
    measured = Measured(rows=rows(80), pairs=[])
    down = {str(n): -1.0 - n % 2 for n in range(80)}
    up = {str(n): -0.5 - n % 2 for n in range(80)}
    length = {str(n): 10.0 for n in range(80)}
    longer = {str(n): 20.0 for n in range(80)}
    noise = {str(n): float(n % 3 == 0) for n in range(80)}
    other = {str(n): float(n % 3 == 1) for n in range(80)}
    values = {
        "champion": {"log_likelihood": down, "length": length, "format": noise},
        "candidate": {"log_likelihood": up, "length": longer, "format": other, "kl": length},
    }
    card = make_card(measured, values, **ABOUT)
    (whole,) = card.slices
    found = {metric.name: metric for metric in whole.metrics}
    likelihood = found["log_likelihood"]
    # of successful rows alone, clustered by group
    assert (likelihood.n, likelihood.groups, likelihood.verdict, likelihood.effect) == (60, 40, "improved", 0.5)
    assert (found["length"].verdict, found["format"].verdict) == ("unclear", "unclear")
    assert (found["kl"].candidate, found["kl"].effect) == (10.0, None)
    backwards = make_card(measured, {"champion": values["candidate"], "candidate": values["champion"]}, **ABOUT)
    assert [name for _, m in backwards.regressions for name in [m.name]] == ["log_likelihood"]


def test_only_what_both_were_measured_on_counts() -> None:
    values = {
        "champion": {"format": {"0": 1.0, "1": 0.0}},
        "candidate": {"format": {"1": 1.0, "2": 1.0}},
    }
    (whole,) = make_card(Measured(rows=rows(4), pairs=[]), values, **ABOUT).slices
    assert (whole.metrics[0].n, whole.metrics[0].candidate, whole.metrics[0].champion) == (1, 1.0, 0.0)


def test_the_anchor_is_always_a_slice_and_never_part_of_the_whole() -> None:
    anchor = rows(2, slices=["anchor"])
    values = {"candidate": {"format": {str(n): float(n >= 8) for n in range(10)}}}
    card = make_card(Measured(rows=[*rows(8), *anchor], pairs=[]), values, **ABOUT)
    assert [(part.name, part.rows, part.metrics[0].candidate) for part in card.slices] == [
        ("all", 8, 0.0),
        ("anchor", 2, 1.0),
    ]


def test_what_was_played_is_on_the_card_by_the_tasks_data() -> None:
    kind = ["refund" if n % 2 else "cancel" for n in range(40)]
    better = [float(n % 2) for n in range(40)]
    played = Played(
        metrics={"score": (better, [0.0] * 40), "length": ([9.0] * 40, [7.0] * 40), "speed": ([3.0] * 40, [2.0] * 40)},
        clusters=[f"t{n}" for n in range(40)],
        labels={"kind": kind, "same": ["x"] * 40},
        kinds={"score": 1, "speed": -1},
    )
    values = {"candidate": {"format": {"0": 1.0}}, "champion": {"format": {"0": 1.0}}}
    card = make_card(Measured(rows=rows(1), pairs=[]), values, None, played, **ABOUT)
    assert [part.name for part in card.slices] == [
        "all",
        "environment",
        "environment kind=cancel",
        "environment kind=refund",
    ]
    told = {part.name: {m.name: (m.effect, m.verdict) for m in part.metrics} for part in card.slices}
    assert told["environment"] == {
        "score": (0.5, "improved"),
        "length": (2.0, "unclear"),
        "speed": (1.0, "regressed"),
    }
    assert told["environment kind=refund"]["score"] == (1.0, "improved")
    said = brief(card)
    assert set(said["metrics"]) == {"all", "environment"}
    assert said["metrics"]["environment"]["score"]["effect"] == 0.5
    assert "environment/speed" in said["regressed"]


def test_the_gate_takes_metrics_of_the_card_by_name_each_on_its_own_rows() -> None:
    measured = Measured(rows=[*rows(40), *rows(20, slices=["anchor"])], pairs=[])
    some = {str(n): 1.0 for n in range(40)} | {str(n): 0.0 for n in range(40, 60)}
    values = {
        "champion": {"format": {str(n): 1.0 for n in range(60)}, "kind": {str(n): 1.0 for n in range(60)}},
        "candidate": {"format": some, "kl": {str(n): 0.4 for n in range(40)}},
    }
    whole = for_gate("format", measured, values)
    anchor = for_gate("anchor/format", measured, values)
    assert whole is not None
    assert anchor is not None
    assert (len(whole.candidate), sum(whole.candidate), len(anchor.candidate), sum(anchor.candidate)) == (40, 40, 20, 0)
    assert for_gate("all/kl", measured, values) == Paired(
        candidate=[0.4] * 40, champion=[0.0] * 40, clusters=[f"g{n // 2}" for n in range(40)]
    )
    # nothing is known of them, which refuses nobody
    for name in ("tool_name", "tag x=y/format", "anchor/preference"):
        assert for_gate(name, measured, values) == Paired(candidate=[], champion=[], clusters=[]), name
    assert for_gate("speed", measured, values) is None
    assert for_gate("nowhere/format", measured, values) is None
    with pytest.raises(EvaluationFailed, match="names the metric 'kind', but its evaluator broke: no such judge"):
        for_gate("kind", measured, values, ["kind"], {"kind": "no such judge"})
    # what the gate makes of it: better, but what must not break broke
    primary = Paired(candidate=[1.0] * 70, champion=[0.0] * 70, clusters=[f"t{n}" for n in range(70)])
    many = Paired(candidate=anchor.candidate * 4, champion=anchor.champion * 4, clusters=[f"a{n}" for n in range(80)])
    verdict = judge(primary, checks=[Check(name="anchor/format", scores=many)])
    assert (verdict.decision, "worse on anchor/format by 1.000" in verdict.reason) == ("reject", True)
    assert judge(primary, checks=[Check(name="tool_name", scores=Paired(candidate=[], champion=[], clusters=[]))])


def drawn(effect: float, low: float, high: float) -> str:
    return interval_text(Metric(name="x", n=1, groups=1, candidate=0.0, effect=effect, low=low, high=high), 1.0)


def test_intervals_are_drawn_in_characters() -> None:
    assert drawn(0.0, 0.0, 0.0) == "··········●··········"
    assert drawn(0.5, 0.2, 1.0) == "··········│·├──●────┤"
    assert drawn(-0.5, -1.0, 0.5) == "├────●─────────┤·····"
    assert interval_text(Metric(name="x", n=1, groups=1, candidate=0.0), 1.0) == ""


def test_a_page_draws_each_metric_over_the_slices_and_says_what_judges_used() -> None:
    values = {
        "candidate": {"format": {str(n): float(n % 3 == 0) for n in range(60)}},
        "champion": {"format": {str(n): 1.0 for n in range(60)}},
    }
    tagged = [*rows(30, slices=["tag tier=gold"]), *rows(30, slices=["tag tier=|b|"])]
    spend = Spend(calls=2, prompt_tokens=30, completion_tokens=4, seconds=0.5)
    card = make_card(Measured(rows=tagged, pairs=[]), values, judge=spend, failures={"polite": "it <broke>"}, **ABOUT)
    page, text = to_html(card), to_markdown(card)
    (figure,) = page.split("<figure>")[1:]
    assert figure.partition("</figure>")[0].count('class="dot regressed"') == 3
    assert "prefers-color-scheme:dark" in page
    assert "it &lt;broke&gt;" in page
    assert "<script" not in page
    assert "Judges: 2 calls, 30 prompt and 4 completion tokens, 0.5 s." in text
    assert "Worse: all: well-formed and finished; tag tier=gold" in text
    lines = [line for line in text.splitlines() if line.startswith("| well-formed")]
    assert [line.count("|") for line in lines] == [9, 9, 9]
    assert all("`├●┤│" in line.replace("·", "").replace("─", "") for line in lines), lines


def test_a_card_of_an_earlier_version_is_still_read() -> None:
    old = {"name": "length", "n": 1, "groups": 1, "candidate": 3.0, "champion": 2.0, "effect": 1.0, "low": 1, "high": 1}
    said = {**ABOUT, "rows": 1, "pairs": 0, "slices": [{"name": "all", "rows": 1, "metrics": [old]}]}
    card = msgspec.convert(said, Scorecard)
    assert "| tokens of a response | 1 | 2 | 3 | +1 | +1 to +1 |" in to_markdown(card)
    assert card.judge is None


def test_small_slices_and_slices_that_are_the_whole_are_left_out() -> None:
    mixed = [*rows(8, slices=["tag a=1", "model m"]), *rows(7, slices=["tag a=2", "model m"])]
    assert {name for row in _with_big_slices(mixed) for name in row.slices} == {"tag a=1"}


def test_no_text_breaks_out_of_the_page() -> None:
    values = {"candidate": {"format": {"0": 1.0}}}
    measured = Measured(rows=[*rows(1), *rows(1, slices=['tag x=</td><script>alert("1")'])], pairs=[])
    values["candidate"]["format"]["1"] = 1.0
    card = make_card(measured, values, **ABOUT)
    page = to_html(card)
    assert "<script" not in page
    assert "&lt;b&gt;c@v3" in page
    assert "## all held-out rows (2)" in to_markdown(card)
    assert card.champion == "shop/main/r0"


def test_an_anchor_suite_is_read_or_its_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "anchor.jsonl"
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    file.write_text(json.dumps({"messages": said}) + "\n\n" + json.dumps({"messages": said, "group": "g"}))
    first, second = read_anchor(file)
    assert (first.response, first.group, second.group, first.slices) == ([1], "anchor 1", "anchor g", ["anchor"])
    for bad, why in (("{}", "messages"), ('{"messages": []}', "response"), ("x", "malformed")):
        file.write_text(json.dumps({"messages": said}) + "\n" + bad)
        with pytest.raises(SettingError, match=rf"anchor\.jsonl:2.*{why}"):
            read_anchor(file)
    with pytest.raises(SettingError, match="cannot be read"):
        read_anchor(tmp_path / "none")


ANSWERS = [{"messages": [], "tools": None, "text": text, "logged": {}} for text in ("a", "bb", "")]


def test_evaluators_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = tmp_path / "my_evaluators.py"
    module.write_text(
        "def lengths(answers):\n    return [float(len(a['text'])) or None for a in answers]\n"
        "bad = lambda answers: ['x'] * len(answers)\nshort = lambda answers: []\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run_evaluator("size=my_evaluators:lengths", ANSWERS) == [1.0, 2.0, None]
    script = tmp_path / "judge.py"
    script.write_text(
        "import json, sys\nfor line in sys.stdin:\n    print(json.dumps(len(json.loads(line)['text']) or None))\n"
    )
    assert run_evaluator(f"size=!{sys.executable} {script}", ANSWERS) == [1.0, 2.0, None]
    for evaluator in (
        "size=my_evaluators:bad",
        "size=my_evaluators:short",
        f"size=!{sys.executable} -c exit(3)",
        "size=!no-such-command",
    ):
        with pytest.raises(EvaluationFailed, match="evaluator size"):
            run_evaluator(evaluator, ANSWERS)
    for text in (
        "size",
        "=x:y",
        "size=nowhere:f",
        "size=my_evaluators:none",
        "size=?x y",
        "size=?http://x/v1 m /no/such/file",
    ):
        with pytest.raises(SettingError, match="evaluator"):
            check_evaluator(text)
