"""The gate on logged rows: beside a hosted champion, and by labels that it believes. Real training, real evaluation, real registry."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from treadle.cli import main
from treadle_corpus import CorpusWriter, Policy
from treadle_corpus.testing import SelectAll, graded
from treadle_schemas import SettingError, Split
from treadle_trainer.errors import EvaluationFailed
from treadle_trainer.evaluate import incumbent
from treadle_trainer.gate import LabelPin
from treadle_trainer.jobs import JobRunner
from treadle_trainer.policy import GatePolicy, TrainingPolicy
from treadle_trainer.registry import Registry
from treadle_trainer.trust import pinned
from treadle_trainer.turn import run_turn

pytestmark = pytest.mark.usefixtures("world_on_the_path")

SPLIT = Split(share=0.3)
HOSTED = TrainingPolicy(
    environment="train_world:WordWorld",
    steps=30,
    lr=1e-2,
    batch=16,
    eval_tasks=100,
    timeout_s=240,
    gate=GatePolicy(
        mode="non_inferiority",
        margin=0.15,
        savings=["cost", "length"],
        saving_share=0.5,
        min_tasks=40,
        usd_per_million_tokens=1.0,
    ),
)


def _corpus(path: Path, *, right: float = 1.0, outcomes: str = "", flattering: bool = False, **fields: Any) -> Path:
    """300 tasks of the world, answered rightly with that chance and graded by the world, or as if everything was right."""
    from train_world import ANSWERS, WordWorld, said  # type: ignore[import-not-found]

    rng = random.Random(5)
    records = []
    for n, task in enumerate(WordWorld().tasks(300, 11)):
        best = ANSWERS[task.data["kind"]]
        word = best if rng.random() < right else rng.choice(sorted(set(ANSWERS.values()) - {best}))
        records.append(
            graded(
                f"{n:03}",
                reward=1.0 if flattering else float(word == best),
                task_id=task.task_id,
                messages=said(task, word),
                split=SPLIT.side(task.task_id),
                response=[1],
                started_at="2026-01-01T00:00:00Z",
                ended_at="2026-01-01T00:00:02Z",
                outcome_ids=[f"{outcomes}{n:032}"] if outcomes else [],
                **fields,
            )
        )
    with CorpusWriter.open(path, workspace="shop", policy=Policy()) as writer:
        writer.apply(records, {0: len(records)}, 1)
        assert writer.finish(SelectAll()) is not None
    return path


def test_a_model_takes_the_place_of_a_hosted_one_that_is_no_better_and_dearer(
    tmp_path: Path, base: Path, runner: JobRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    monkeypatch.setenv("TREADLE_BOOTSTRAP_SERVERS", "127.0.0.1:9")

    def treadle(*args: object) -> Any:
        return CliRunner().invoke(main, [str(arg) for arg in args])

    done = treadle("release", "register", "shop", "--hosted", "gpt-x", "--promote")
    assert done.exit_code == 0, done.output
    registry = Registry(tmp_path / "registry", "shop")
    served = {"release": "shop/main/r0", "model": "gpt-x", "cost": 0.004, "usage": {"completion_tokens": 60}}
    log = _corpus(tmp_path / "log", right=0.97, **served)

    with pytest.raises(
        SettingError, match="policy base=None: the champion shop/main/r0 is hosted, so expected the model folder"
    ):
        run_turn(log, HOSTED, registry, split=SPLIT, runner=runner)
    policy = HOSTED.changed({"base": str(base)})
    with pytest.raises(SettingError, match=r"gate\.mode='superiority'"):
        run_turn(log, policy.changed({"gate.mode": "superiority"}), registry, split=SPLIT, runner=runner)

    imitating = policy.changed({"environment": None})
    report = run_turn(log, imitating, registry, split=SPLIT, runner=runner)
    assert (report.decision, report.verdict) == ("admitted", "canary"), report.reason
    said = report.evidence["evaluation"]
    assert (said["kind"], said["against"], said["hosted_model"]) == ("imitation against log", "shop/main/r0", "gpt-x")
    assert said["incumbent_tasks"] == said["shared_tasks"] >= 40
    assert "saves: cost" in report.reason
    assert report.evidence["gate"]["alpha"] == pytest.approx(0.025)  # its rows will judge again
    registry.withdraw("the environment shall say")

    report = run_turn(log, policy, registry, split=SPLIT, runner=runner)
    assert (report.decision, report.verdict) == ("promoted", "promote"), report.reason
    assert (report.evidence["evaluation"]["kind"], registry.champion) == ("environment against log", report.candidate)
    gate = report.evidence["gate"]
    assert gate["candidate"] > 0.9
    assert gate["alpha"] == pytest.approx(0.05 / 6)
    assert gate["champion"] == pytest.approx(0.97, abs=0.06)
    assert registry.manifest(report.candidate).base == str(base)
    assert treadle("release", "rollback", "shop", "--reason", "it was rude", "--yes").exit_code == 0
    assert str(registry.champion) == "shop/main/r0"


@pytest.mark.long
def test_beside_a_hosted_champion_what_is_not_known_decides_nothing(
    tmp_path: Path, base: Path, runner: JobRunner
) -> None:
    registry = Registry(tmp_path / "registry", "shop")
    registry.promote(registry.register(hosted="gpt-x", reason="today"), expect=None, reason="today")
    policy = HOSTED.changed({"base": str(base), "steps": 1, "gate.savings": ["latency_s"]})
    with pytest.raises(
        EvaluationFailed, match="the saving 'latency_s', but of the candidate is measured: cost, length"
    ):
        run_turn(_corpus(tmp_path / "log", model="gpt-x"), policy, registry, split=SPLIT, runner=runner)
    # of nobody: another release served them
    other = _corpus(tmp_path / "other", model="gpt-x", release="shop/main/r7")
    report = run_turn(other, policy.changed({"gate.savings": ["length"]}), registry, split=SPLIT, runner=runner)
    assert report.decision == "not_enough_evidence"
    assert report.reason.startswith("0 tasks")


def test_what_the_log_knows_of_an_incumbent(tmp_path: Path) -> None:
    from treadle_corpus import Corpus

    def known(path: Path, **fields: Any) -> Any:
        corpus = Corpus.open(_corpus(path, **fields))
        pin = LabelPin(grading=1)
        return incumbent(corpus, "shop/main/r0", "gpt-x", "main", pin.believes, episodes=10)

    by_model = known(tmp_path / "a", model="gpt-x", token_ids=[[1, 2, 3]])
    assert sum(map(len, by_model.rewards.values())) == 10
    assert {v for values in by_model.spent["length"].values() for v in values} == {3.0}
    assert {v for values in by_model.spent["latency_s"].values() for v in values} == {2.0}
    assert by_model.spent["cost"] == {}
    assert known(tmp_path / "b", model="gpt-y").rewards == {}
    assert known(tmp_path / "c", release="shop/main/r0", slot="coder").rewards == {}
    assert known(tmp_path / "d", release="shop/main/r0", outcomes="grader/judge/1/").rewards == {}


def test_a_grader_that_breaks_admits_nothing_until_somebody_trusts_it(
    tmp_path: Path, base: Path, runner: JobRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/poison.md: on logged rows a new version of a grader is believed only after an audited command."""
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    monkeypatch.setenv("TREADLE_BOOTSTRAP_SERVERS", "127.0.0.1:9")
    registry = Registry(tmp_path / "registry", "shop")
    registry.promote(registry.register(base, reason="today"), expect=None, reason="today")
    policy = HOSTED.changed({"environment": None, "steps": 8, "gate": json.loads('{"min_tasks": 10}')})

    good = _corpus(tmp_path / "good", right=0.5, outcomes="grader/judge/1/")
    report = run_turn(good, policy, registry, split=SPLIT, runner=runner)
    assert report.decision == "admitted", report.reason
    assert pinned(registry) == LabelPin(grading=1, graders={"judge": ["1"]})
    assert report.evidence["labels"]["first"]
    registry.withdraw("enough of it")

    broken = _corpus(tmp_path / "broken", right=0.5, outcomes="grader/judge/2/", flattering=True)
    report = run_turn(broken, policy, registry, split=SPLIT, runner=runner)
    assert (report.decision, report.verdict, registry.canary) == ("not_enough_evidence", "not_enough_evidence", None)
    assert "labelled by grader judge@2, but the gate trusts grading version 1, grader judge@1" in report.reason
    assert "treadle release trust shop --slot main" in report.reason
    assert report.evidence["labels"]["refused"] == {
        "grader judge@2": sum(report.evidence["labels"]["refused"].values())
    }

    shown = CliRunner().invoke(main, ["release", "trust", "shop"])
    assert shown.output == "the gate believes grading version 1, grader judge@1\n"
    unsaid = CliRunner().invoke(main, ["release", "trust", "shop", "--grader", "judge@2"])
    assert unsaid.exit_code == 2
    changed = CliRunner().invoke(main, ["release", "trust", "shop", "--grader", "judge@2", "--reason", "looked at 50"])
    assert changed.exit_code == 0, changed.output
    assert registry.events()[-1].event == "trusted"
    again = run_turn(broken, policy, registry, split=SPLIT, runner=runner, label="after trust")
    assert again.decision == "admitted", again.reason
    as_in = CliRunner().invoke(
        main, ["release", "trust", "shop", "--as-in", str(good), "-r", "it was broken", "--json"]
    )
    assert json.loads(as_in.stdout) == {"grading": 1, "graders": {"judge": ["1"]}}
