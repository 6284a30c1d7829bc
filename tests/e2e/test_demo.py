"""The demo end to end, as a user runs it: its numbers are recounted from Kafka, corpus and registry, and each stage is broken once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from treadle.log import Record, read
from treadle_corpus import Corpus
from treadle_schemas import ReleaseId
from treadle_schemas.topics import topic
from treadle_trainer.registry import Registry

pytestmark = pytest.mark.timeout(900)  # the demo itself takes two minutes or, on a busy machine, many more

TURNS = 2
EPISODES = 640
PARTITIONS = 4


def run_demo(broker: str, home: Path, *arguments: str, timeout_s: float = 800) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "TREADLE_HOME": str(home), "TREADLE_BOOTSTRAP_SERVERS": broker}
    return subprocess.run(
        [sys.executable, "-m", "treadle", "demo", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


@pytest.fixture(scope="module")
def demo(broker: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One short demo on the session's broker: its report, and what lies behind."""
    home = tmp_path_factory.mktemp("demo")
    file = home / "demo.json"
    done = run_demo(
        broker, home, "--turns", str(TURNS), "--episodes", str(EPISODES), "--seed", "3", "--json", str(file)
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(file.read_text())
    workspace = report["workspace"]
    return {
        "report": report,
        "output": done.stdout,
        "broker": broker,
        "workspace": workspace,
        "registry": Registry(home / "demo" / workspace / "registry", workspace),
    }


def records(demo: dict[str, Any], kind: str, partitions: int = PARTITIONS) -> list[tuple[Record, dict[str, Any]]]:
    found = read(demo["broker"], topic(demo["workspace"], kind), partitions)
    return [(r, json.loads(r.value)) for r in found if r.value]


def final_rewards(demo: dict[str, Any]) -> dict[int, list[float]]:
    """By turn, the rewards of the last revision of each row."""
    last: dict[str, dict[str, Any]] = {}
    for _, row in records(demo, "graded"):
        known = last.get(row["interaction_id"])
        if known is None or row["provenance"]["revision"] > known["provenance"]["revision"]:
            last[row["interaction_id"]] = row
    rewards: dict[int, list[float]] = {}
    for row in last.values():
        if row["grade"]["reward"] is not None:
            rewards.setdefault(row["interaction"]["tags"]["turn"], []).append(row["grade"]["reward"])
    return rewards


def test_live_success_is_what_the_graded_rows_say(demo: dict[str, Any]) -> None:
    rewards = final_rewards(demo)
    report = demo["report"]
    for turn in report["turns"]:
        expected = rewards[turn["turn"]]
        assert turn["live_success"] == pytest.approx(sum(expected) / len(expected))
    expected = rewards[TURNS + 1]
    assert report["final_live_success"] == pytest.approx(sum(expected) / len(expected))
    assert report["final_live_success"] > report["turns"][0]["live_success"] + 0.1


def test_every_interaction_was_captured_and_settled_once(demo: dict[str, Any]) -> None:
    captured = {value["interaction_id"] for _, value in records(demo, "interactions") if "interaction_id" in value}
    first_revisions = [
        row["interaction_id"] for _, row in records(demo, "graded") if row["provenance"]["revision"] == 1
    ]
    assert len(first_revisions) == len(set(first_revisions))
    assert set(first_revisions) == captured
    assert records(demo, "dead-letter") == []


def test_outcomes_came_out_of_order_twice_retracted_and_never(demo: dict[str, Any]) -> None:
    outcomes = [value for _, value in records(demo, "outcomes")]
    interactions = {value["interaction_id"]: record for record, value in records(demo, "interactions")}
    ids = [o.get("outcome_id") for o in outcomes if o.get("op", "set") == "set"]
    assert len(set(ids)) < len(ids), "none came twice"
    assert any(o.get("op") == "retract" for o in outcomes), "none was retracted"
    assert interactions.keys() - {o["interaction_id"] for o in outcomes if o["name"] == "reward"}, "all got an outcome"
    early = [
        record
        for record, o in records(demo, "outcomes")
        if record.timestamp_ms < interactions[o["interaction_id"]].timestamp_ms
    ]
    assert early, "no outcome came before its interaction"


def test_each_turn_names_a_version_that_holds_its_rows(demo: dict[str, Any]) -> None:
    for turn in demo["report"]["turns"]:
        corpus = Corpus.open(turn["corpus"])
        assert corpus.manifest.rows == turn["rows"] == sum(1 for _ in corpus.rows(split="all"))
        sides: dict[str, set[str]] = {}
        for row in corpus.rows(split="all"):
            sides.setdefault(row.interaction["task_id"], set()).add(row.split)
        assert all(len(side) == 1 for side in sides.values())
        assert {side for held in sides.values() for side in held} == {"train", "heldout"}


def test_each_decision_is_the_registrys(demo: dict[str, Any]) -> None:
    events = demo["registry"].events()
    told = [value for _, value in records(demo, "releases", 1)]
    assert [e.sequence for e in events] == [t["sequence"] for t in told]
    for turn in demo["report"]["turns"]:
        path, _, version = turn["corpus"].rpartition("@v")
        [decided] = [
            e for e in events if e.evidence.get("corpus") == path and e.evidence.get("version") == int(version)
        ]
        assert (decided.event, decided.reason) == (turn["decision"], turn["reason"])
        verdict = decided.evidence["gate"]
        assert turn["heldout"] == {k: verdict[k] for k in ("champion", "candidate", "low", "high")}
    assert any(turn["decision"] == "promoted" for turn in demo["report"]["turns"])


def test_cycle_seconds_run_from_append_to_append(demo: dict[str, Any]) -> None:
    first_of: dict[str, int] = {}
    last_of: dict[int, int] = {}
    first_copy: dict[str, int] = {}
    turns: dict[str, int] = {}
    for record, value in records(demo, "interactions"):
        ident = value["interaction_id"]
        first_copy[ident] = min(first_copy.get(ident, record.timestamp_ms), record.timestamp_ms)
        first_of[value["release"]] = min(first_of.get(value["release"], record.timestamp_ms), record.timestamp_ms)
        turns[ident] = value["tags"]["turn"]
    for ident, turn in turns.items():
        last_of[turn] = max(last_of.get(turn, 0), first_copy[ident])
    events = {(e.evidence.get("corpus"), e.evidence.get("version")): e for e in demo["registry"].events()}
    cycles = []
    for turn in demo["report"]["turns"]:
        path, _, version = turn["corpus"].rpartition("@v")
        event = events[path, int(version)]
        if event.event == "promoted":
            cycles.append((first_of[event.release] - last_of[turn["turn"]]) / 1000)
            assert turn["seconds"]["cycle"] == pytest.approx(cycles[-1], abs=0.002)
            assert sum(v for k, v in turn["seconds"].items() if k not in ("cycle", "capture")) == pytest.approx(
                cycles[-1], abs=0.01
            )
    assert demo["report"]["cycle_seconds"] == pytest.approx(sum(cycles) / len(cycles), abs=0.002)


def test_treadle_cycle_tells_the_same_turns_their_bytes_and_their_price(demo: dict[str, Any], tmp_path: Path) -> None:
    prices = tmp_path / "prices.json"
    prices.write_text('{"cpu_second": 0.01, "gb_written": 1000}')
    environ = {**os.environ, "TREADLE_BOOTSTRAP_SERVERS": demo["broker"]}
    command = [sys.executable, "-m", "treadle", "cycle", demo["workspace"], "--prices", str(prices)]
    as_text, as_json = (
        subprocess.run([*command, *more], env=environ, capture_output=True, text=True, check=True, timeout=120).stdout
        for more in ([], ["--json"])
    )
    told = json.loads(as_json)
    turns = {f"{turn['corpus']}@v{turn['version']}": turn for turn in told["turns"]}
    for turn in demo["report"]["turns"]:
        found = turns[turn["corpus"]]
        assert (found["decision"], found["rows"]) == (turn["decision"], turn["rows"])
        assert found["cycle_s"] == turn["seconds"].get("cycle")
        size = found["cost"]["bytes"]
        assert min(size["captured"], size["corpus"], size["columns"], size["release"]) > 10_000
        seconds = found["cost"]["job_seconds"]
        assert found["cost"]["money"] == pytest.approx(seconds * 0.01 + sum(size.values()) / 1e6)
    [forced] = [turn for turn in told["turns"] if "rolled_back" in turn["fate"]]
    assert (forced["fate"], forced["cycle_s"]) == (["promoted", "rolled_back"], None)
    assert f"bottleneck: {told['bottleneck']['stage']}, " in as_text
    assert "used: jobs " in as_text


def test_the_gate_refused_the_broken_grader_and_the_guard_rolled_back(demo: dict[str, Any]) -> None:
    report, registry = demo["report"], demo["registry"]
    assert report["poisoned"]["decision"] in ("rejected", "not_enough_evidence")
    assert report["guard"]["rolled_back"]
    assert report["guard"]["after_rows"] >= 1
    [rollback] = [e for e in registry.events() if e.event == "rolled_back"]
    assert rollback.actor == "guard"
    assert rollback.evidence["after_rows"] == report["guard"]["after_rows"]
    assert registry.champion == ReleaseId.parse(rollback.champion or "")
    assert rollback.previous != rollback.champion


def test_the_terminal_says_where_everything_lies(demo: dict[str, Any]) -> None:
    output = demo["output"].replace("\n", "")
    assert demo["report"]["places"]["corpus"] in output
    assert Path(demo["report"]["places"]["chart"]).read_bytes().startswith(b"\x89PNG")
    for words in ("turn 1", "corpus@v1", "cycle time by stage", " corpus show ", " release list "):
        assert words in demo["output"]


@pytest.mark.parametrize("stage", ["worker", "snapshotter", "trainer", "guard", "agent", "world"])
def test_a_broken_stage_ends_the_demo_with_its_name(stage: str, broker: str, tmp_path: Path) -> None:
    done = run_demo(
        broker, tmp_path, "--turns", "1", "--episodes", "200", "--break", stage, "--stage-timeout", "120", timeout_s=240
    )
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert stage in done.stderr
    assert "broken on request" in done.stderr or "exit code" in done.stderr
