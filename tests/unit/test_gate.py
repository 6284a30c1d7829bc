"""The gate: paired, clustered, careful about how much evidence there is."""

from __future__ import annotations

import random
from typing import Literal

import pytest
from treadle_trainer.errors import EvaluationFailed
from treadle_trainer.gate import (
    Check,
    GenerationLedger,
    Paired,
    Slice,
    Verdict,
    decide,
    group_key,
    judge,
    judge_against_log,
)


def _judge(wins: int, losses: int, ties: int, **settings: float) -> Verdict:
    candidate = [1.0] * wins + [0.0] * losses + [1.0] * ties
    champion = [0.0] * wins + [1.0] * losses + [1.0] * ties
    return decide(candidate, champion, [f"t{i}" for i in range(len(candidate))], **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wins", "losses", "ties", "decision"),
    [
        (80, 20, 156, "promote"),
        (20, 80, 156, "reject"),
        (40, 40, 176, "reject"),  # no effect at all
        (45, 38, 173, "not_enough_evidence"),
        (4, 0, 252, "not_enough_evidence"),  # 2**-4 is more than 5 %: four lucky tasks
        (6, 0, 250, "promote"),
        (30, 0, 0, "not_enough_evidence"),  # fewer tasks than the gate wants
        (0, 0, 256, "reject"),  # the same model again
    ],
)
def test_the_gate_decides_by_paired_differences(wins: int, losses: int, ties: int, decision: str) -> None:
    verdict = _judge(wins, losses, ties)
    assert verdict.decision == decision, verdict.reason


def test_a_verdict_carries_its_numbers() -> None:
    verdict = _judge(80, 20, 156)
    assert (verdict.tasks, verdict.rows, verdict.differing) == (256, 256, 100)
    assert verdict.effect == pytest.approx(60 / 256)
    assert verdict.candidate - verdict.champion == pytest.approx(verdict.effect)
    assert verdict.low is not None
    assert verdict.high is not None
    assert 0 < verdict.low < verdict.effect < verdict.high
    assert "better by +0.234" in verdict.reason


def test_too_little_evidence_says_how_many_more_tasks_would_decide() -> None:
    verdict = _judge(30, 20, 206)
    assert verdict.decision == "not_enough_evidence"
    assert verdict.more_tasks is not None
    # the same effect on as many more tasks decides
    factor = (256 + verdict.more_tasks) / 256 * 1.25
    assert _judge(round(30 * factor), round(20 * factor), round(206 * factor)).decision == "promote"
    assert _judge(10, 0, 20).more_tasks == 64 - 30


def test_attempts_at_one_task_count_as_one_task() -> None:
    # ten tasks, twenty attempts each: the rows look like plenty, the tasks are not
    candidate, champion, clusters = [], [], []
    for task in range(70):
        won = task < 40
        candidate += [1.0 if won else 0.0] * 20
        champion += [0.0 if won else 1.0] * 20
        clusters += [f"t{task}"] * 20
    clustered = decide(candidate, champion, clusters)
    by_row = decide(candidate, champion, [str(i) for i in range(len(candidate))])
    assert (clustered.tasks, clustered.rows) == (70, 1400)
    assert (clustered.decision, by_row.decision) == ("not_enough_evidence", "promote")


def test_a_wanted_effect_raises_the_bar() -> None:
    assert _judge(80, 20, 156, min_effect=0.1).decision == "promote"
    assert _judge(80, 20, 156, min_effect=0.2).decision == "not_enough_evidence"
    assert _judge(80, 20, 156, min_effect=0.4).decision == "reject"


def test_the_same_scores_give_the_same_verdict() -> None:
    assert _judge(45, 30, 181) == _judge(45, 30, 181)


def test_unpaired_and_unusable_scores_are_refused() -> None:
    with pytest.raises(EvaluationFailed, match="not paired: 1 of the candidate, 2 of the champion, 2 tasks"):
        decide([1.0], [1.0, 0.0], ["a", "b"])
    with pytest.raises(EvaluationFailed, match="finite"):
        decide([float("nan")], [1.0], ["a"])


def test_nothing_evaluated_is_not_enough_evidence() -> None:
    verdict = decide([], [], [])
    assert (verdict.decision, verdict.reason, verdict.low) == ("not_enough_evidence", "nothing was evaluated", None)


GROUPS = [f"g{n}" for n in range(10)]


def test_decisions_on_the_same_groups_share_their_alpha() -> None:
    ledger, shares = GenerationLedger(), []
    for key in ("a", "b", "c", "d"):
        chosen = ledger.spend(key, GROUPS, 0.05)
        ledger = chosen.ledger
        shares.append(chosen.alpha)
    assert shares == pytest.approx([0.05 / 2, 0.05 / 6, 0.05 / 12, 0.05 / 20])
    assert chosen.groups == {group_key(group) for group in GROUPS}


def test_new_groups_open_a_generation_once_they_are_enough_and_then_judge_alone() -> None:
    ledger, _, _ = GenerationLedger().spend("a", GROUPS, 0.05, min_groups=3)
    few = ledger.spend("b", [*GROUPS, "new-1", "new-2"], 0.05, min_groups=3)
    assert few.alpha == pytest.approx(0.05 / 6)  # one new group beside old ones renews nothing
    assert few.groups == {group_key(group) for group in GROUPS}
    fresh = few.ledger.spend("c", [*GROUPS, "new-1", "new-2", "new-3"], 0.05, min_groups=3)
    assert fresh.alpha == pytest.approx(0.05 / 2)
    assert fresh.groups == {group_key(f"new-{n}") for n in (1, 2, 3)}


def test_a_repeated_job_is_one_decision() -> None:
    first = GenerationLedger().spend("job", GROUPS, 0.05)
    again = first.ledger.spend("job", [*GROUPS, "later"], 0.05)
    assert (first.alpha, first.groups, again.ledger) == (again.alpha, again.groups, first.ledger)
    whole = first.ledger.spend_whole("fresh", 0.05)
    assert whole.ledger.spend_whole("fresh", 0.05) == whole


def test_too_few_groups_decide_nothing_and_cost_nothing() -> None:
    chosen = GenerationLedger().spend("a", GROUPS[:3], 0.05, min_groups=5)
    assert chosen.ledger == GenerationLedger()
    assert chosen.ledger.spend("b", GROUPS, 0.05, min_groups=5).alpha == pytest.approx(0.025)


def test_tasks_drawn_for_one_decision_may_spend_all_and_touch_no_generation() -> None:
    ledger, whole, _ = GenerationLedger().spend_whole("first", 0.05)
    assert whole == 0.05
    assert ledger.spend_whole("second", 0.05).alpha == 0.05
    assert ledger.spend("third", GROUPS, 0.05).alpha == pytest.approx(0.025)
    spent = decide([1.0] * 100, [0.0] * 100, [str(i) for i in range(100)], alpha=0.0)
    assert spent.decision == "not_enough_evidence"
    assert "is spent" in spent.reason


# --- what must not get worse ---------------------------------------------------------------------------------------------------


def _paired(wins: int, losses: int, ties: int) -> Paired:
    candidate = [1.0] * wins + [0.0] * losses + [1.0] * ties
    champion = [0.0] * wins + [1.0] * losses + [1.0] * ties
    return Paired(candidate=candidate, champion=champion, clusters=[f"t{i}" for i in range(len(candidate))])


def test_a_slice_that_got_worse_refuses_a_candidate_that_is_better_on_the_whole() -> None:
    primary = _paired(120, 30, 106)
    refunds = Slice(name="kind=refund", rows=range(120, 160))  # holds every loss
    assert judge(primary).decision == "promote"
    verdict = judge(primary, slices=[refunds])
    assert verdict.decision == "reject"
    assert "but worse on kind=refund by 0.750" in verdict.reason
    assert [check["regressed"] for check in verdict.checks] == [True]
    assert judge(primary, slices=[Slice(name="refund", rows=range(120, 160), tolerance=0.9)]).decision == "promote"


def test_a_slice_of_a_few_tasks_says_nothing() -> None:
    verdict = judge(_paired(120, 8, 128), slices=[Slice(name="rare", rows=range(120, 128))])
    assert verdict.decision == "promote"
    assert verdict.checks[0]["high"] is None


def test_a_guard_metric_has_its_own_direction_and_tolerance() -> None:
    primary = _paired(120, 30, 106)
    longer = Paired(
        candidate=[30.0 + i % 5 for i in range(256)],
        champion=[20.0 + i % 7 for i in range(256)],
        clusters=primary.clusters,
    )

    def judged(tolerance: float, direction: Literal["maximise", "minimise"]) -> str:
        return judge(
            primary, checks=[Check(name="length", scores=longer, tolerance=tolerance, direction=direction)]
        ).decision

    assert judged(0.0, "minimise") == "reject"
    assert judged(12.0, "minimise") == "promote"
    assert judged(0.0, "maximise") == "promote"


def test_where_nothing_but_logged_rows_speaks_the_best_verdict_is_a_canary() -> None:
    verdict = judge(_paired(80, 20, 156), admits_only=True)
    assert verdict.decision == "canary"
    assert "live rewards decide" in verdict.reason
    assert judge(_paired(20, 80, 156), admits_only=True).decision == "reject"


# --- not worse, and cheaper ----------------------------------------------------------------------------------------------------


def _cost(candidate: float, champion: float, n: int = 256) -> Check:
    wobble = [0.9, 1.0, 1.1, 1.0]
    return Check(
        name="cost",
        scores=Paired(
            candidate=[candidate * wobble[i % 4] for i in range(n)],
            champion=[champion * wobble[i % 3] for i in range(n)],
            clusters=[f"t{i}" for i in range(n)],
        ),
    )


def test_non_inferior_and_cheaper_promotes() -> None:
    same = _paired(12, 12, 232)
    verdict = judge(same, margin=0.1, savings=[_cost(0.5, 1.0)])
    assert verdict.decision == "promote"
    assert "and saves: cost 0.5 against" in verdict.reason
    assert judge(same, margin=0.1, savings=[_cost(0.5, 1.0)], saving_share=0.6).decision == "not_enough_evidence"
    assert judge(same, margin=0.1, savings=[_cost(1.0, 1.0)]).decision == "not_enough_evidence"


def test_beyond_the_margin_no_saving_helps() -> None:
    assert judge(_paired(10, 80, 166), margin=0.1, savings=[_cost(0.1, 1.0)]).decision == "reject"
    unclear = judge(_paired(30, 40, 186), margin=0.05, savings=[_cost(0.1, 1.0)])
    assert unclear.decision == "not_enough_evidence"


def test_tasks_without_any_loss_must_be_enough_to_rule_losses_out() -> None:
    # 64 tasks without a loss still happen with chance 0.98 ** 64 = 27 % where one in fifty is lost
    verdict = judge(_paired(0, 0, 64), margin=0.02, savings=[_cost(0.1, 1.0, 64)])
    assert verdict.decision == "not_enough_evidence"
    assert verdict.more_tasks == 149 - 64
    assert judge(_paired(0, 0, 149), margin=0.02, savings=[_cost(0.1, 1.0, 149)]).decision == "promote"


@pytest.mark.parametrize("shared", [True, False])
def test_an_incumbent_may_be_known_by_its_logged_rows_alone(shared: bool) -> None:
    rng = random.Random(5)

    def rows(prefix: str, rate: float, n: int) -> dict[str, list[float]]:
        return {f"{prefix}{i}": [float(rng.random() < rate)] for i in range(n)}

    theirs = rows("t", 0.8, 600)
    costs = {task: [1.0] for task in theirs}
    ours = rows("t" if shared else "u", 0.8, 600)
    cheap = {task: [0.1 + 0.01 * (i % 3)] for i, task in enumerate(ours)}
    verdict = judge_against_log(ours, theirs, margin=0.1, savings={"cost": (cheap, costs)})
    assert verdict.decision == "promote", verdict.reason
    worse = judge_against_log(rows("t", 0.5, 600), theirs, margin=0.1, savings={"cost": (cheap, costs)})
    assert worse.decision == "reject"
    dear = judge_against_log(ours, theirs, margin=0.1, savings={"cost": ({t: [1.0] for t in ours}, costs)})
    assert dear.decision == "not_enough_evidence"
    few = judge_against_log(rows("t", 0.8, 20), theirs, margin=0.1, savings={"cost": (cheap, costs)})
    assert (few.decision, few.more_tasks) == ("not_enough_evidence", 44)
