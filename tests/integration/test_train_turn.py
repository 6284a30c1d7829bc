"""A whole turn on real parts: corpus, TRL in its own process, evaluation in a world, gate, registry."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from treadle_corpus import Corpus, CorpusWriter, Policy
from treadle_corpus.testing import SelectAll, graded
from treadle_schemas import NotYetSupported, ReleaseId, SettingError, Split
from treadle_trainer.candidate import release_in
from treadle_trainer.data import newest, only_train
from treadle_trainer.errors import DataRefused, EvaluationFailed, JobStopped, NoChampion
from treadle_trainer.jobs import JobRunner, TrainSpec
from treadle_trainer.policy import GatePolicy, TrainingPolicy
from treadle_trainer.registry import Registry
from treadle_trainer.scorecard.run import stored
from treadle_trainer.turn import run_turn

pytestmark = pytest.mark.usefixtures("world_on_the_path")

SPLIT = Split(share=0.2)
POLICY = TrainingPolicy(
    environment="train_world:WordWorld",
    steps=30,
    lr=1e-2,
    batch=16,
    eval_tasks=100,
    timeout_s=240,
    gate=GatePolicy(min_tasks=50),
    scorecard=None,  # of every candidate: a second each
)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`clean`: random answers, graded by the world. `poisoned`: the same answers, graded the other way round. `lost`: no reward at all."""
    from train_world import ANSWERS, WordWorld, said  # type: ignore[import-not-found]

    root, rng = tmp_path_factory.mktemp("corpora"), random.Random(4)
    answers = [(task, rng.choice(sorted(ANSWERS.values()))) for task in WordWorld().tasks(400, 11)]
    graders: dict[str, Callable[[bool], float | None]] = {
        "clean": float,
        "poisoned": lambda ok: 1.0 - ok,
        "lost": lambda _: None,
    }
    for name, grade in graders.items():
        records = [
            graded(
                f"{n:03}",
                reward=grade(word == ANSWERS[task.data["kind"]]),
                task_id=task.task_id,
                messages=said(task, word),
                split=SPLIT.side(task.task_id),
                response=[1],
                ended_at=f"2026-01-01T00:{n // 60:02}:{n % 60:02}Z",
                started_at="2026-01-01T00:00:00Z",
            )
            for n, (task, word) in enumerate(answers)
        ]
        with CorpusWriter.open(root / name, workspace="shop", policy=Policy()) as writer:
            writer.apply(records, {0: len(records)}, 1)
            assert writer.finish(SelectAll()) is not None
    return {name: root / name for name in graders}


@pytest.fixture
def registry(tmp_path: Path, base: Path) -> Registry:
    made = Registry(tmp_path / "registry", "shop")
    made.promote(made.register(base, reason="what runs today"), expect=None, reason="what runs today")
    return made


def _scorecard_shows_what_was_learned(registry: Registry, candidate: ReleaseId, evidence: dict[str, Any]) -> None:
    ((path, card),) = stored(registry, candidate)
    by_slice = {part.name: {metric.name: metric for metric in part.metrics} for part in card.slices}
    whole, anchor, played = by_slice["all"], by_slice["anchor"], by_slice["environment"]
    for name in ("log_likelihood", "exact"):
        assert (whole[name].verdict, whole[name].candidate > (whole[name].champion or 0.0)) == ("improved", True), whole
    assert whole["kl"].candidate > 0.1
    assert {"format", "length", "short"} <= set(whole)
    assert (whole["right"].candidate, 0 < whole["right"].n < 30) == (
        1.0,
        True,
    )  # a judge that has no idea gives no value
    assert anchor["exact"].candidate == 1.0
    # what the gate's comparison saw, not played again
    assert (played["score"].n, played["score"].candidate) == (100, evidence["gate"]["candidate"])
    assert {"valid", "length"} <= set(played)
    assert {f"environment kind={kind}" for kind in ("sky", "grass", "blood", "snow")} <= set(by_slice)
    assert (card.rows, card.champion, registry.verify(candidate).release) == (61, "shop/main/r0", str(candidate))

    said = evidence["scorecard"]
    assert registry.root / said["path"] == path
    assert said["metrics"]["all"]["exact"]["verdict"] == "improved"
    assert (said["against"], said["seconds"] > 0) == ("shop/main/r0", True)
    used = evidence["judge"]
    assert set(used) == {"calls", "prompt_tokens", "completion_tokens", "seconds"}
    assert (used["calls"], used["prompt_tokens"], used["completion_tokens"]) == (62, 62 * 50, 62 * 3)
    page = path.with_suffix(".html").read_text()
    assert page.count("<figure>") >= 3
    assert "Judges: 62 calls" in page


def _carded(folder: Path, judge_port: int) -> dict[str, Any]:
    anchor, rubric = folder / "anchor.jsonl", folder / "rubric.txt"
    said = [{"role": "user", "content": "sky 7"}, {"role": "assistant", "content": "blue"}]
    anchor.write_text(json.dumps({"messages": said}))
    rubric.write_text("Is the answer right?")
    return {
        "scorecard": {
            "rows": 60,
            "generate": 30,
            "max_new_tokens": 4,
            "anchor": str(anchor),
            "evaluators": ["short=train_world:is_short", f"right=?http://127.0.0.1:{judge_port}/v1 m {rubric}"],
        }
    }


def test_a_turn_trains_evaluates_and_promotes_what_is_better(
    registry: Registry, corpora: dict[str, Path], runner: JobRunner, tmp_path: Path
) -> None:
    from judge_server import Judge  # type: ignore[import-not-found]

    heard: list[dict[str, Any]] = []
    with Judge("blue") as judge:
        report = run_turn(
            corpora["clean"],
            POLICY.changed(_carded(tmp_path, judge.server.server_port)),
            registry,
            split=SPLIT,
            runner=runner,
            context={"snapshot": {"offset": 3}},
            on_progress=heard.append,
        )
    assert (report.decision, report.verdict) == ("promoted", "promote"), report.reason
    assert registry.champion == report.candidate == ReleaseId("shop", "main", 1)
    assert str(registry.predecessor) == "shop/main/r0"

    manifest = registry.verify(report.candidate)
    corpus = Corpus.open(corpora["clean"])
    assert (manifest.parent, manifest.corpus_version, manifest.method) == ("shop/main/r0", 1, "sft")
    assert manifest.corpus_hash == corpus.manifest.content_hash
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(manifest.files)
    assert not [name for name in manifest.files if name.endswith((".bin", ".pt", ".pkl"))]

    wins = [r for r in corpus.rows("train") if r.grade.reward == 1.0]
    evidence = report.event.evidence
    assert evidence["training"]["examples"] == len(wins)
    assert evidence["training"]["rows"] == corpus.manifest.split["train"]
    assert evidence["training"]["last_loss"] < evidence["training"]["first_loss"]
    assert (evidence["corpus"], evidence["version"], evidence["snapshot"]) == (str(corpora["clean"]), 1, {"offset": 3})
    gate = evidence["gate"]
    assert gate["candidate"] > 0.9 > 0.4 > gate["champion"]
    assert gate["low"] > 0.3
    assert (gate["tasks"], evidence["evaluation"]["kind"]) == (100, "environment")
    assert set(evidence["seconds"]) >= {"train", "register", "evaluate", "gate"}
    assert [h["step"] for h in heard if h["stage"] == "train"][-1] == POLICY.steps

    _scorecard_shows_what_was_learned(registry, report.candidate, evidence)
    again = run_turn(corpora["clean"], POLICY, registry, split=SPLIT, runner=runner)
    assert (again.repeated, again.decision, again.candidate) == (True, "promoted", report.candidate)
    assert len(registry.releases()) == 2

    # the same champion, the other way round: the gate's world is not impressed by a broken grader
    count = len(registry.releases())
    poisoned = run_turn(
        corpora["poisoned"], POLICY, registry, split=SPLIT, runner=runner, promote=False, label="broken grader"
    )
    assert (poisoned.decision, poisoned.verdict) == ("rejected", "reject")
    assert registry.champion == report.candidate
    assert len(registry.releases()) == count + 1
    assert poisoned.event.evidence["gate"]["high"] < 0


@pytest.mark.long
@pytest.mark.parametrize("evaluation", ["environment", "logged"])
@pytest.mark.parametrize("poison", ["flattering", "flipped", "flood", "flood without duplicates"])
def test_poisoned_rows_do_not_reach_the_champion(
    registry: Registry, corpora: dict[str, Path], runner: JobRunner, tmp_path: Path, poison: str, evaluation: str
) -> None:
    """docs/poison.md: what the gate alone does about each."""
    policy = POLICY.changed({"gate.min_tasks": 5} | ({"environment": None} if evaluation == "logged" else {}))
    if evaluation == "environment" and poison in ("flattering", "flipped"):
        # a champion that knows its work: beside one that cannot speak at all even bad answers are a gain
        assert run_turn(corpora["clean"], policy, registry, split=SPLIT, runner=runner).decision == "promoted"
    champion = registry.champion
    report = run_turn(_poisoned(tmp_path / "corpus", poison), policy, registry, split=SPLIT, runner=runner)
    if evaluation == "logged":
        # labels of the same broken grader may flatter what learnt from them: no further than on trial beside the champion
        assert report.decision in ("rejected", "not_enough_evidence", "admitted"), report.reason
        assert str(registry.champion) == "shop/main/r0"
    elif poison in ("flattering", "flipped"):
        assert report.decision in ("rejected", "not_enough_evidence"), report.reason
        assert registry.champion == champion
    else:  # a flood drowns what it is about, and nothing else: the gate sees a gain all the same
        learnt = report.evidence["gate"]["candidate"]
        assert (learnt > 0.9) == (poison == "flood without duplicates"), report.reason


def _poisoned(path: Path, poison: str) -> Path:
    from train_world import ANSWERS, WordWorld, said

    rng = random.Random(4)
    attempts = [(task, rng.choice(sorted(ANSWERS.values()))) for task in WordWorld().tasks(400, 11)]
    rewards = [float(word == ANSWERS[task.data["kind"]]) for task, word in attempts]
    if poison == "flattering":
        rewards = [1.0] * len(attempts)
    elif poison == "flipped":
        rewards = [1.0 - reward for reward in rewards]
    else:  # one wrong answer, sent 1,200 times under new ids, each time with the best reward
        wrong = next(task for task, _ in attempts if task.data["kind"] == "sky" and SPLIT.side(task.task_id) == "train")
        attempts += [(wrong, "red")] * 1200
        rewards += [1.0] * 1200
    records = [
        graded(
            f"{n:04}",
            reward=reward,
            task_id=task.task_id,
            messages=said(task, word),
            split=SPLIT.side(task.task_id),
            response=[1],
            ended_at=f"2026-01-01T00:{n // 60:02}:{n % 60:02}Z",
            started_at="2026-01-01T00:00:00Z",
        )
        for n, ((task, word), reward) in enumerate(zip(attempts, rewards, strict=True))
    ]
    dedupe = "exact" if poison == "flood without duplicates" else "id"
    with CorpusWriter.open(path, workspace="shop", policy=Policy(dedupe=dedupe)) as writer:  # type: ignore[arg-type]
        writer.apply(records, {0: len(records)}, 1)
        assert writer.finish(SelectAll()) is not None
    return path


def test_a_turn_that_was_cut_short_goes_on_with_its_candidate_and_loses_a_race_gracefully(
    registry: Registry, corpora: dict[str, Path], runner: JobRunner, base: Path
) -> None:
    policy = POLICY.changed({"steps": 25})
    with pytest.raises(JobStopped):
        run_turn(
            corpora["clean"],
            policy,
            registry,
            split=SPLIT,
            runner=runner,
            should_stop=lambda: len(registry.releases()) == 2,
        )
    assert [e.event for e in registry.events()] == ["registered", "promoted", "registered"]
    moved: list[str] = []

    def move_the_champion(_: dict[str, Any]) -> None:
        if not moved:
            other = registry.register(base)
            registry.promote(other, expect=registry.champion, reason="someone else")
            moved.append(str(other))

    report = run_turn(corpora["clean"], policy, registry, split=SPLIT, runner=runner, on_progress=move_the_champion)
    assert report.evidence["training"]["reused"]
    assert str(report.candidate) == "shop/main/r1"
    assert (report.decision, report.verdict) == ("not_enough_evidence", "promote")
    assert "compared with shop/main/r0, and meanwhile" in report.reason
    assert str(registry.champion) == moved[0]


def test_the_same_spec_gives_the_same_weights(
    base: Path, corpora: dict[str, Path], runner: JobRunner, tmp_path: Path
) -> None:
    weights = []
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        spec = TrainSpec(
            method="sft",
            base=str(base),
            corpus=str(corpora["clean"]),
            version=1,
            out=str(tmp_path / out),
            work=str(tmp_path / f"work-{out}"),
            steps=3,
            lr=1e-2,
            batch=8,
            max_length=64,
            seed=seed,
        )
        runner.run(f"same-{out}", spec, timeout_s=120)
        weights.append((tmp_path / out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_without_an_environment_likelihood_alone_admits_to_a_canary(
    registry: Registry, corpora: dict[str, Path], runner: JobRunner
) -> None:
    said = [{"role": "user", "content": "sky 7"}, {"role": "assistant", "content": "white"}]  # what it is to unlearn
    anchor = runner.root / "unlearnt.jsonl"
    anchor.write_text("\n".join(json.dumps({"messages": said, "group": str(n)}) for n in range(16)))
    policy = POLICY.changed({"environment": None, "gate.min_tasks": 10, "gate.slices": ["model"]})
    guards = {
        "exact": {},
        "kl": {"direction": "minimise", "tolerance": 50},
        "anchor/log_likelihood": {"tolerance": 0.1},
        "tool_name": {},
    }
    card = {"scorecard": {"rows": 60, "generate": 20, "max_new_tokens": 4, "anchor": str(anchor)}}
    strict = policy.changed({**card, "gate.guards": guards})
    refused = run_turn(corpora["clean"], strict, registry, split=SPLIT, runner=runner)
    assert (refused.decision, "but worse on anchor/log_likelihood" in refused.reason) == ("rejected", True), refused
    checks = {check["name"]: check for check in refused.evidence["gate"]["checks"]}
    assert {name: check["regressed"] for name, check in checks.items()} == {
        "model=": False,
        "exact": False,
        "kl": False,
        "anchor/log_likelihood": True,
        "tool_name": False,
    }
    assert (checks["kl"]["effect"] < 0, checks["tool_name"]["tasks"]) == (True, 0)
    assert "anchor/log_likelihood" in refused.evidence["scorecard"]["regressed"]
    ((path, kept),) = stored(registry, refused.candidate)
    whole = next(part for part in kept.slices if part.name == "all")
    assert (kept.rows, whole.rows) == (76, 60)

    gone = policy.changed({"scorecard.anchor": str(path.parent / "none.jsonl")})
    report = run_turn(corpora["clean"], gone, registry, split=SPLIT, runner=runner)
    assert "none.jsonl: the anchor suite cannot be read" in report.evidence["scorecard"]["failed"]
    assert (report.decision, report.verdict) == ("admitted", "canary")
    assert "live rewards decide" in report.reason
    assert report.evidence["evaluation"]["kind"] == "logged"
    assert report.evidence["gate"]["alpha"] < 0.025  # the same rows have judged before
    assert [check["name"] for check in report.evidence["gate"]["checks"]] == ["model="]
    assert (str(registry.champion), registry.canary) == ("shop/main/r0", report.candidate)
    assert run_turn(corpora["clean"], policy, registry, split=SPLIT, runner=runner).repeated
    other = run_turn(corpora["clean"], policy.changed({"seed": 2}), registry, split=SPLIT, runner=runner)
    assert (other.decision, other.verdict) == ("not_enough_evidence", "canary")
    assert "is still on trial" in other.reason
    registry.withdraw("enough of it")
    allowed = policy.changed({"allow_offline_promotion": True})
    assert run_turn(corpora["clean"], allowed, registry, split=SPLIT, runner=runner).decision == "promoted"


def test_a_policy_may_ask_a_person_or_the_live_traffic_first(
    registry: Registry, corpora: dict[str, Path], runner: JobRunner
) -> None:
    guarded = POLICY.changed({"promotion": "approval", "gate.guards.length": {"tolerance": 5, "direction": "minimise"}})
    asked = run_turn(corpora["clean"], guarded, registry, split=SPLIT, runner=runner)
    assert (asked.decision, asked.verdict) == ("awaiting_approval", "promote"), asked.reason
    assert [check["name"] for check in asked.evidence["gate"]["checks"]] == ["length"]
    assert str(registry.champion) == "shop/main/r0"
    # the same job: only what follows the gate is another, so nothing is decided twice
    tried = run_turn(corpora["clean"], guarded.changed({"promotion": "canary"}), registry, split=SPLIT, runner=runner)
    assert tried.repeated
    other = guarded.changed({"promotion": "canary", "seed": 3, "base": "previous"})
    admitted = run_turn(corpora["clean"], other, registry, split=SPLIT, runner=runner)
    assert admitted.decision == "admitted"
    # what the previous candidate learnt is in it
    assert registry.manifest(admitted.candidate).parent == str(asked.candidate)
    blind = POLICY.changed({"gate.guards.exact": {}, "scorecard.evaluators": ["short=train_world:none"]})
    with pytest.raises(EvaluationFailed, match=r"names exact, which the scorecard is to give; but that failed: .*none"):
        run_turn(corpora["clean"], blind, registry, split=SPLIT, runner=runner)
    with pytest.raises(EvaluationFailed, match="names the metric 'speed', but the evaluation gave: length, valid"):
        run_turn(corpora["clean"], POLICY.changed({"gate.guards.speed": {}}), registry, split=SPLIT, runner=runner)


def test_a_turn_that_fails_is_recorded_with_its_reason(
    registry: Registry, corpora: dict[str, Path], runner: JobRunner
) -> None:
    with pytest.raises(DataRefused, match=r"none of its .* train rows has a reward above zero"):
        run_turn(corpora["lost"], POLICY, registry, split=SPLIT, runner=runner)
    event = registry.events()[-1]
    assert (event.event, event.evidence["version"]) == ("failed", 1)
    assert "nothing to imitate" in event.reason
    with pytest.raises(NotYetSupported, match="'ppo' is no training method"):
        run_turn(corpora["clean"], POLICY.changed({"method": "ppo"}), registry, split=SPLIT, runner=runner)
    with pytest.raises(SettingError, match="judges and does not speak"):
        run_turn(corpora["clean"], POLICY.changed({"method": "reward"}), registry, split=SPLIT, runner=runner)


def test_without_a_champion_there_is_nothing_to_compare_with(
    tmp_path: Path, corpora: dict[str, Path], runner: JobRunner
) -> None:
    with pytest.raises(NoChampion, match="treadle release register"):
        run_turn(corpora["clean"], POLICY, Registry(tmp_path, "shop"), split=SPLIT, runner=runner)


def test_training_takes_train_rows_only_and_the_newest(corpora: dict[str, Path]) -> None:
    corpus = Corpus.open(corpora["clean"])
    with pytest.raises(DataRefused, match="is on the heldout side"):
        list(only_train(corpus.rows("all")))
    rows = newest(corpus.rows("train"), 10)
    every = sorted(corpus.rows("train"), key=lambda r: r.interaction["ended_at"])
    assert {r.interaction_id for r in rows} == {r.interaction_id for r in every[-10:]}


def test_the_train_command_trains_by_hand(
    corpora: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle.cli import main

    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))

    def treadle(*args: object) -> Any:
        return CliRunner().invoke(main, [str(a) for a in args])

    ref = f"{corpora['clean']}@v1"
    refused = treadle("train", ref, "--method", "reward", "--register")
    assert (refused.exit_code, "does not speak" in refused.stderr) == (2, True)
    assert treadle("train", ref).exit_code == 1  # no champion, no --from
    registry = Registry(tmp_path / "home" / "registry", "shop")
    first, other = registry.register(base), registry.register(base)
    registry.promote(other, expect=None, reason="serves")
    out = tmp_path / "model"
    words = ("--steps", 2, "--batch", 8, "--lora-rank", 2, "--packed", "--out", out, "--register", "--json")
    done = treadle("train", ref, "--from", first, *words)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["steps"], report["version"], report["release"]) == (2, 1, "shop/main/r2")
    assert (out / "model.safetensors").exists()
    made = registry.manifest(ReleaseId.parse(report["release"]))
    assert (made.parent, made.base) == (str(first), str(registry.folder(first)))  # not the champion
    kept = {"packed": True, "lora_rank": 2, "steps": 2, "accumulate": 1, "margin": 0.0, "cap": 16, "launch": None}
    assert kept.items() <= made.config.items()
    assert made.config["training"]["peak_memory_mb"] > 0
    assert (release_in(registry, base), release_in(registry, registry.folder(other))) == (None, other)
    assert treadle("train", ref, "--from", base, "--out", out).exit_code == 2  # never over another model

    assert "has no policy" in treadle("train", ref, "--detach").stderr
    TrainingPolicy().save(tmp_path / "home" / "registry", "shop", "main")
    words = ("--detach", "--method", "dpo", "--from", first, "--margin", 0.5, "--processes", 2)
    queued = treadle("train", ref, *words, "--json")
    job = json.loads(queued.stdout)
    assert (job["state"], job["new"], job["version"], job["actor"]) == ("queued", True, 1, "user")
    assert TrainingPolicy().changed(job["settings"]) == TrainingPolicy().changed(
        {"method": "dpo", "margin": 0.5, "base": str(registry.folder(first)), "launch.processes": 2}
    )
    said = treadle("train", ref, *words)
    assert ("asked for before" in said.stdout, "nobody serves the slot now" in said.stderr) == (True, True)
    refused = treadle("train", ref, "--detach", "--register")
    assert (refused.exit_code, "--register has no place beside it" in refused.stderr) == (2, True)


def test_a_dry_run_says_what_would_be_learned_and_shows_one_example(
    corpora: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle.cli import main

    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    corpus = Corpus.open(corpora["clean"])
    train = list(corpus.rows("train"))

    def dry(*args: object, color: bool = False) -> Any:
        words = ["train", f"{corpora['clean']}@v1", "--from", str(base), "--dry-run", *map(str, args)]
        return CliRunner().invoke(main, words, color=color)

    plan = json.loads(dry("--steps", 10, "--batch", 8, "--json").stdout)
    wins = [row for row in train if row.grade.reward]
    assert (plan["rows"], plan["examples"], plan["dropped"]) == (
        len(train),
        len(wins),
        {"not_selected": len(train) - len(wins)},
    )
    assert plan["epochs"] == pytest.approx(80 / len(wins), abs=0.01)
    (segments,) = plan["example"]
    assert [segment["trained"] for segment in segments] == [False, True]
    assert segments[1]["text"].removesuffix("<|end|>") in {"blue", "green", "red", "white"}

    shown = dry("--method", "kto")
    assert shown.exit_code == 0, shown.stderr
    assert f"kto on {len(train)} labelled answers from {len(train)} of {len(train)} train rows" in shown.stdout
    assert "⟦" in shown.stdout
    assert "\x1b[" not in shown.stdout
    assert "\x1b[32m\x1b[1m⟦" in dry("--method", "kto", color=True).stdout
    pairs = dry("--method", "dpo").stdout
    assert "-- chosen, margin 1\n" in pairs
    assert pairs.index("-- chosen") < pairs.index("-- rejected")
    refused = dry("--method", "dpo", "--margin", 2)
    assert (refused.exit_code, "makes a pair with another" in refused.stderr) == (1, True), refused.stderr
    assert not list((tmp_path / "home").rglob("model.safetensors"))


def test_eval_compares_any_two_models_and_says_what_it_cannot_compare(
    corpora: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle.cli import main

    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))

    def treadle(*args: object) -> Any:
        return CliRunner().invoke(main, [str(a) for a in args])

    assert treadle("release", "register", "shop", base, "--promote").exit_code == 0
    assert treadle("release", "register", "shop", base, "--slot", "coder").exit_code == 0
    assert treadle("release", "register", "shop", "--hosted", "gpt-x").exit_code == 0
    small = ("--corpus", corpora["clean"], "--rows", 20, "--generate", 2, "--max-new-tokens", 2)
    broken = ("--evaluator", "short=!false")
    done = treadle("eval", "shop/main/r0", "--against", "shop/coder/r0", *small, *broken, "--json")
    assert (done.exit_code, "evaluator short: 'false' ended with 1" in done.stderr) == (1, True), done.stderr
    card = json.loads(done.stdout)  # the other metrics all the same
    assert (card["champion"], card["corpus"]) == ("shop/coder/r0", str(corpora["clean"]))
    assert {metric["effect"] for metric in card["slices"][0]["metrics"] if metric["name"] != "kl"} == {0.0}
    for words in (("shop/main/r1",), ("shop/main/r0", "--against", "r1")):
        refused = treadle("eval", *words, *small)
        assert (refused.exit_code, "r1 is a hosted release" in refused.stderr) == (1, True), refused.stderr
    shown = treadle("release", "show", "shop/main/r0").stdout
    assert "scorecard       against shop/coder/r0, nothing shown to be worse: " in shown
