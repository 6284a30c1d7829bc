"""The pure parts of graders: configuration, choosing, budget, verdicts, agreement. No broker."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
from treadle_schemas import Metric, SettingError
from treadle_schemas.events import Interaction, Outcome
from treadle_streams.grader import GraderConfig, Usage, agreement, load_config
from treadle_streams.grader.agreement import latest_values, paired
from treadle_streams.grader.budget import Budget
from treadle_streams.grader.choosing import Chooser
from treadle_streams.grader.errors import BudgetSpent, JudgeFailed
from treadle_streams.grader.files import Failure, Folder
from treadle_streams.grader.judges import CommandJudge
from treadle_streams.grader.judges._base import split_messages
from treadle_streams.grader.verdict import MAX_REASON, find_object, outcome_id, read_verdict

BOOL = Metric(name="ok", type="bool")


def interaction(name: str = "i", **changes: Any) -> Interaction:
    said: dict[str, Any] = {
        "interaction_id": name,
        "agent": "desk",
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        "started_at": "2026-01-01T00:00:00Z",
        "ended_at": "2026-01-01T00:00:01Z",
    }
    return Interaction(**(said | changes))


def config(**changes: Any) -> GraderConfig:
    return GraderConfig(**({"name": "tone", "metric": "ok", "command": "true"} | changes)).checked()


# --- configuration -------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_options_win_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tone.toml"
    file.write_text('name = "tone"\nmetric = "ok"\nurl = "http://h/v1"\nmodel = "m"\nprompt = "tone.md"\nrate = 0.5\n')
    found = load_config(file, {"version": "2"})
    assert (found.prompt, found.rate, found.version) == (tmp_path / "tone.md", 0.5, "2")


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"name": "No Name"}, "not a grader name"),
        ({"version": "a/b"}, "version"),
        ({"rate": 1.5}, "rate"),
        ({"rates": 0.5}, "rates"),
        ({"command": None}, "exactly one"),
        ({"python": "m:f"}, "exactly one"),
        ({"command": None, "python": "m"}, "MODULE:FUNCTION"),
        ({"command": None, "url": "http://h"}, "model and prompt"),
        ({"command": None, "url": "ftp://h", "model": "m", "prompt": "p"}, "no http"),
        ({"command": None, "url": "http://h", "model": "m", "prompt": "p", "usd_total": 1.0}, "usd_per_million"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"calls_total": "many"}, "calls_total"),
    ],
)
def test_a_wrong_configuration_is_refused_by_its_field(said: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingError, match=complaint):
        load_config(None, {"name": "n", "metric": "m", "command": "true"} | said)


def test_a_command_that_is_not_there_is_refused_and_a_changed_script_is_another_judge(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no program"):
        CommandJudge("no-such-program-here --x", 1.0)
    script = tmp_path / "judge.sh"
    script.write_text("echo true")
    before = CommandJudge(f"sh {script}", 1.0).fingerprint
    assert CommandJudge(f"sh {script}", 9.0).fingerprint == before
    script.write_text("echo false")
    assert CommandJudge(f"sh {script}", 1.0).fingerprint != before


# --- choosing ------------------------------------------------------------------------------------------------------------------


def test_the_sample_has_its_size_stays_the_same_for_each_version_and_grows_with_the_rate() -> None:
    everything = [interaction(f"i{n}") for n in range(2000)]

    def chosen(**changes: Any) -> set[str]:
        return {one.interaction_id for one in Chooser(config(**changes)).chosen(everything)}

    small, large = chosen(rate=0.1), chosen(rate=0.3)
    assert 140 < len(small) < 260
    assert small < large
    assert chosen(rate=0.1, version="2") == small
    assert chosen(rate=0.1, name="other") != small
    assert chosen(rate=0.0) == set()


def test_a_sample_by_episode_takes_episodes_whole() -> None:
    steps = [interaction(f"i{n}", episode_id=f"e{n // 5}") for n in range(500)]
    episodes = [one.episode for one in Chooser(config(rate=0.2, sample_by="episode")).chosen(steps)]
    assert 0 < len(episodes) < 500
    assert all(episodes.count(name) == 5 for name in episodes)


def test_a_filter_sees_columns_and_tags_and_refuses_what_only_grading_tells() -> None:
    many = [
        interaction("a", tags={"tier": "gold"}),
        interaction("b"),
        interaction("c", agent="other", tags={"tier": "gold"}),
    ]
    chooser = Chooser(config(filter="agent = 'desk' AND tags.tier = 'gold'"))
    assert [one.interaction_id for one in chooser.chosen(many)] == ["a"]
    with pytest.raises(SettingError, match="reward"):
        Chooser(config(filter="reward > 0 AND agent = 'desk'"))


# --- budget --------------------------------------------------------------------------------------------------------------------


def test_a_budget_sets_aside_settles_and_survives_a_restart(tmp_path: Path) -> None:
    limits = config(tokens_total=100)
    budget = Budget(limits, tmp_path / "spent.json")
    estimate = Usage(input_tokens=50, output_tokens=20)
    budget.set_aside(estimate)
    with pytest.raises(BudgetSpent, match="tokens_total") as refused:
        budget.set_aside(estimate)
    assert refused.value.for_good
    budget.settle(estimate, Usage(input_tokens=20, output_tokens=5))
    budget.set_aside(estimate)  # 25 used, 70 set aside
    again = Budget(limits, tmp_path / "spent.json")  # what was under way when the process died stays spent
    assert (again.spent.tokens_total, again.spent.calls_total) == (95, 2)
    with pytest.raises(BudgetSpent):
        again.set_aside(estimate)


def test_the_budget_of_a_day_is_new_the_next_day_and_the_total_is_not(tmp_path: Path) -> None:
    days: Iterator[str] = iter(["2026-01-01T23:00:00Z"] * 3 + ["2026-01-02T00:00:00Z"] * 2)
    budget = Budget(config(calls_per_day=2, calls_total=3), tmp_path / "spent.json", lambda: next(days))
    budget.set_aside(Usage())
    budget.set_aside(Usage())
    with pytest.raises(BudgetSpent, match="calls_per_day") as refused:
        budget.set_aside(Usage())
    assert not refused.value.for_good
    budget.set_aside(Usage())
    with pytest.raises(BudgetSpent, match="calls_total"):
        budget.set_aside(Usage())


def test_a_sum_that_cannot_be_read_is_not_zero(tmp_path: Path) -> None:
    (tmp_path / "spent.json").write_text("{")
    with pytest.raises(SettingError, match="cannot be read"):
        Budget(config(), tmp_path / "spent.json")


def test_failures_are_kept_and_a_line_that_a_crash_cut_is_left_out(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "ws", "tone")
    one = Failure(handle="ws/e/i", at="2026-01-01T00:00:00Z", version="1", reason="it broke")
    with folder.locked():
        folder.note([one, one])
    with (folder.path / "failures.jsonl").open("ab") as file:
        file.write(b'{"handle":"ws/e')
    assert folder.failures() == [one, one]


# --- verdicts ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "value", "reason"),
    [
        (True, True, None),
        (None, None, None),
        ({"value": False, "reason": "rude", "confidence": 3}, False, "rude"),
        ({"value": None}, None, None),
        ({"value": True, "reason": "x" * 9_999}, True, "x" * MAX_REASON),
    ],
)
def test_a_verdict_is_a_value_or_an_object(said: Any, value: Any, reason: str | None) -> None:
    verdict = read_verdict(said, BOOL)
    assert (verdict.value, verdict.reason) == (value, reason)


@pytest.mark.parametrize("said", [{"score": 1}, {"value": [1]}, 0.5, "good", {"value": True, "reason": 3}])
def test_what_the_metric_does_not_take_is_a_failure(said: Any) -> None:
    with pytest.raises(JudgeFailed):
        read_verdict(said, BOOL)


def test_a_verdict_is_found_in_what_a_model_writes_around_it() -> None:
    assert find_object('I {think} {"a": 1}: ```json\n{"value": 0.5, "reason": "{"}\n``` {"value": 1}') == {
        "value": 0.5,
        "reason": "{",
    }
    with pytest.raises(JudgeFailed, match="no JSON object"):
        find_object('{"value": ')


def test_an_outcome_id_tells_rows_and_versions_apart() -> None:
    one, two = interaction("b", episode_id="a"), interaction("b", episode_id="ab")
    ids = {outcome_id("tone", "1", one), outcome_id("tone", "2", one), outcome_id("tone", "1", two)}
    assert len(ids) == 3
    assert outcome_id("tone", "1", interaction("b", episode_id="a", agent="other")) in ids


def test_the_answer_is_what_is_marked_else_the_last_assistant_turn() -> None:
    messages = [{"role": r, "content": r[0]} for r in ("user", "assistant", "user", "assistant", "user")]
    assert split_messages(interaction(messages=messages))[1] == [messages[3]]
    assert split_messages(interaction(messages=messages, response=[1]))[1] == [messages[1]]


# --- agreement -----------------------------------------------------------------------------------------------------------------


def pairs_of(table: dict[tuple[Any, Any], int]) -> list[tuple[Any, Any]]:
    return [pair for pair, count in table.items() for _ in range(count)]


def test_kappa_of_a_known_table() -> None:
    found = agreement(pairs_of({(True, True): 20, (True, False): 5, (False, True): 10, (False, False): 15}))
    assert (found.n, found.accuracy) == (50, 0.7)
    assert found.kappa == pytest.approx(0.4)
    assert found.accuracy_95 == pytest.approx((0.5625, 0.8090), abs=1e-4)
    assert found.table == {"true | true": 20, "true | false": 5, "false | true": 10, "false | false": 15}


def test_the_interval_of_kappa_is_as_wide_as_kappa_varies() -> None:
    table = {("a", "a"): 0.4, ("a", "b"): 0.1, ("b", "a"): 0.05, ("b", "b"): 0.3, ("c", "c"): 0.1, ("c", "a"): 0.05}
    rng, n = random.Random(1), 400
    drawn = [agreement(rng.choices(list(table), list(table.values()), k=n)) for _ in range(600)]
    kappas = [one.kappa for one in drawn if one.kappa is not None]
    half_widths = [(one.kappa_95[1] - one.kappa_95[0]) / 2 for one in drawn if one.kappa_95 is not None]
    assert fmean(half_widths) == pytest.approx(1.96 * pstdev(kappas), rel=0.08)


def test_kappa_is_not_told_where_there_is_one_label_or_none() -> None:
    assert agreement([(True, True)] * 5).kappa is None
    assert agreement([]).accuracy is None
    perfect = agreement([(True, True), (False, False)] * 5)
    assert perfect.kappa == 1.0
    assert perfect.kappa_95 == (1.0, 1.0)


def said(target: str, value: Any, name: str, second: int, **changes: Any) -> Outcome:
    at = f"2026-01-01T00:00:{second:02}Z"
    return Outcome(name="ok", value=value, observed_at=at, outcome_id=name, interaction_id=target, **changes)


def test_the_latest_label_counts_unless_it_was_taken_back() -> None:
    outcomes = [
        said("a", True, "1", 1),
        said("a", False, "2", 2),
        said("b", True, "1", 1),
        said("b", False, "2", 5),
        said("b", None, "2", 6, op="retract"),
        said("c", True, "1", 1),
        Outcome(name="ok", observed_at="2026-01-01T00:00:09Z", op="retract", interaction_id="c"),
        said("d", None, "1", 1),
    ]
    expected = {"a": False, "b": True}
    assert latest_values(outcomes) == expected
    assert latest_values(reversed(outcomes)) == expected


def test_numbers_become_labels_by_a_threshold_only() -> None:
    assert paired({"a": 1, "b": 0.0, "c": 1}, {"a": True, "b": 1.0}, None) == [(True, True), (False, True)]
    assert paired({"a": 0.7}, {"a": 0.2}, 0.5) == [(True, False)]
    with pytest.raises(SettingError, match="--threshold"):
        paired({"a": 0.7}, {"a": 0.2}, None)
    assert math.isclose(agreement(paired({"a": 0.7}, {"a": 0.8}, 0.5)).accuracy or 0, 1.0)
