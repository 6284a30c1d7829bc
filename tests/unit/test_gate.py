"""The gate: paired, clustered, careful about how much evidence there is."""

from __future__ import annotations

import pytest
from treadle_trainer.errors import EvaluationFailed
from treadle_trainer.gate import AlphaLedger, Verdict, decide


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


def test_decisions_on_the_same_groups_share_their_alpha() -> None:
    ledger, shares = AlphaLedger(), []
    for key in ("a", "b", "c", "d"):
        ledger, share = ledger.spend("groups-1", key, 0.05)
        shares.append(share)
    assert shares == pytest.approx([0.05 / 2, 0.05 / 6, 0.05 / 12, 0.05 / 20])
    _, fresh = ledger.spend("groups-2", "e", 0.05)
    assert fresh == pytest.approx(0.025)


def test_a_repeated_job_is_one_decision() -> None:
    ledger, first = AlphaLedger().spend("g", "job", 0.05)
    again, second = ledger.spend("g", "job", 0.05)
    assert (first, again) == (second, ledger)


def test_fresh_tasks_may_spend_all_and_leave_nothing() -> None:
    ledger, whole = AlphaLedger().spend("g", "first", 0.05, whole=True)
    _, left = ledger.spend("g", "second", 0.05)
    assert (whole, left) == (0.05, 0.0)
    spent = decide([1.0] * 100, [0.0] * 100, [str(i) for i in range(100)], alpha=left)
    assert spent.decision == "not_enough_evidence"
    assert "is spent" in spent.reason
