"""Each example runs offline, as its README says, and its rows say what the story says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import treadle
from treadle.log import read
from treadle_schemas import GradedRow
from treadle_schemas.codec import header_map
from treadle_schemas.topics import topic

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PARTITIONS = 2


def run(name: str, broker: str, workspace: str, home: Path) -> str:
    environment = {**os.environ, "TREADLE_BOOTSTRAP_SERVERS": broker, "TREADLE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-m", name, "--workspace", workspace],
        cwd=EXAMPLES,
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def graded(broker: str, workspace: str) -> list[GradedRow]:
    refused = [header_map(r.headers)["reason"] for r in read(broker, topic(workspace, "dead-letter"), PARTITIONS)]
    assert set(refused) == set()
    with treadle.consume(workspace, "graded", bootstrap_servers=broker, idle_s=0.5) as rows:
        last = {row.interaction_id: row for row in rows}
    return list(last.values())


def test_the_support_bot_learns_which_answers_were_kept(broker: str, workspace_name: str, tmp_path: Path) -> None:
    said = run("support_bot", broker, workspace_name, tmp_path)
    rewards = {
        row.interaction["messages"][-1]["content"].split()[0]: row.grade.reward
        for row in graded(broker, workspace_name)
    }
    assert rewards == {"Refunds": 1.0, "Open": 1.0, "Your": 1.0, "Please": 0.0}
    assert said.count("reward ") == 6


def test_the_evaluator_scores_each_summary_once_though_it_is_killed(
    broker: str, workspace_name: str, tmp_path: Path
) -> None:
    said = run("background_evaluator", broker, workspace_name, tmp_path)
    assert "the evaluator died: -9" in said
    rows = graded(broker, workspace_name)
    assert len(rows) == 6
    assert all(row.grade.metrics["judge"][0] == "observed" for row in rows)
    assert {row.grade.reward for row in rows} == {1.0, 0.833, 0.75}


def test_the_coding_agent_is_rewarded_for_what_was_merged(broker: str, workspace_name: str, tmp_path: Path) -> None:
    said = run("coding_agent", broker, workspace_name, tmp_path)
    assert "pull request 1: merged" in said
    assert "pull request 2: closed without" in said
    assert "a forged delivery: 401" in said
    rewards = {row.interaction["task_id"]: row.grade.reward for row in graded(broker, workspace_name)}
    assert rewards == {"slugify": 1.0, "is_leap": 0.0}


@pytest.mark.parametrize("name", ["support_bot", "background_evaluator", "coding_agent"])
def test_every_example_has_a_readme_with_its_command(name: str) -> None:
    assert f"python -m {name}" in (EXAMPLES / name / "README.md").read_text()
