"""The real data set through the real parts: import, worker, snapshot, corpus, views, on a real Kafka.

200 customer-service trajectories of airline customers (tau-bench), 4 at each of 50 tasks; its makers counted what must come out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from treadle.log import Record, Sender, read
from treadle_corpus import Corpus
from treadle_schemas.canonical import dumps
from treadle_schemas.codec import IMPORT_MARKER, INTERACTION, OUTCOME, encode, header_map, make_headers
from treadle_schemas.moments import now
from treadle_schemas.topics import topic

AGENT = "airline-tool-calling"
PARTITIONS = 4


class Wheel:
    """A home, a Kafka, and the `treadle` command."""

    def __init__(self, servers: str, home: Path) -> None:
        self.servers = servers
        self.home = home
        self._workers: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "TREADLE_BOOTSTRAP_SERVERS": self.servers, "TREADLE_HOME": str(self.home)}

    def treadle(self, *args: str) -> str:
        command = [sys.executable, "-m", "treadle", *args]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, f"treadle {' '.join(args)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *args: str) -> Any:
        return json.loads(self.treadle(*args, "--json"))

    def start_worker(self, workspace: str) -> None:
        with (self.home / f"worker-{workspace}.log").open("wb") as log:
            command = [sys.executable, "-m", "treadle", "worker", "--workspace", workspace]
            self._workers.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def stop(self) -> None:
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            try:
                worker.wait(30)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    def records(self, workspace: str, kind: str) -> list[Record]:
        return list(read(self.servers, topic(workspace, kind), PARTITIONS))

    def types(self, workspace: str, kind: str) -> Counter[str]:
        return Counter(header_map(r.headers)["ce_type"].decode() for r in self.records(workspace, kind))


@pytest.fixture(scope="module")
def wheel(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wheel]:
    made = Wheel(broker, tmp_path_factory.mktemp("home"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def airline(wheel: Wheel, tau_airline: Path) -> str:
    """A workspace into which the set was imported once, with a worker, and two corpora: `all` and `won`."""
    workspace = "airline"
    wheel.treadle("workspace", "create", workspace, "--partitions", str(PARTITIONS))
    wheel.start_worker(workspace)
    import_all(wheel, workspace, tau_airline)
    wheel.treadle("snapshot", workspace, "--to", corpus(wheel, "all"))
    wheel.treadle("snapshot", workspace, "--filter", "reward>0", "--to", corpus(wheel, "won"))
    return workspace


def import_all(wheel: Wheel, workspace: str, folder: Path) -> None:
    files = ["--interactions", str(folder / "interactions.jsonl"), "--outcomes", str(folder / "outcomes.jsonl")]
    wheel.treadle("import", workspace, *files)


def corpus(wheel: Wheel, name: str) -> str:
    return str(wheel.home / "corpora" / "test" / name)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_everything_arrives_and_nothing_is_a_dead_letter(wheel: Wheel, airline: str) -> None:
    assert wheel.types(airline, "interactions")[INTERACTION] == 200
    assert wheel.types(airline, "outcomes")[OUTCOME] == 595
    assert wheel.records(airline, "dead-letter") == []


def test_versions_hold_what_the_makers_of_the_set_counted(wheel: Wheel, airline: str) -> None:
    shown = wheel.json("corpus", "show", corpus(wheel, "all") + "@v1")
    assert shown["rows"] == 200
    assert {k: round(v, 3) for k, v in shown["pass_at_all"].items()} == {"1": 0.42, "2": 0.273, "3": 0.22, "4": 0.2}
    assert shown["pending"] == 0
    assert sum(shown["split"].values()) == 200
    states = shown["completeness"]
    assert states["reward"] == {"observed": 200, "absent": 0, "pending": 0}
    assert states["user_cost"] == {"observed": 195, "absent": 5, "pending": 0}, (
        "five outcomes are null: absent, never zero"
    )
    assert (states["r_actions"]["observed"], states["r_outputs"]["observed"]) == (182, 13)
    won = wheel.json("corpus", "show", corpus(wheel, "won") + "@v1")
    assert won["rows"] == 84
    assert won["dropped"]["rejected"] == 116


def test_rows_without_either_grading_have_neither(wheel: Wheel, airline: str) -> None:
    rows = list(Corpus.open(corpus(wheel, "all") + "@v1").rows("all"))
    neither = [r for r in rows if not {"r_actions", "r_outputs"} & r.grade.metrics.keys()]
    assert len(neither) == 5
    nulls = [r for r in rows if r.grade.metrics["user_cost"] == ("absent", None)]
    assert len(nulls) == 5


def test_messages_come_back_byte_identical(wheel: Wheel, airline: str, tau_airline: Path) -> None:
    logged = {line["interaction_id"]: line for line in lines(tau_airline / "interactions.jsonl")}
    for row in Corpus.open(corpus(wheel, "all") + "@v1").rows("all"):
        line = logged.pop(row.interaction_id)
        for name in ("messages", "task_id", "agent", "model", "started_at", "ended_at"):
            assert dumps(row.interaction[name]) == dumps(line[name])
        assert row.interaction["tags"]["source_workspace"] == line["workspace"]
    assert not logged


def test_no_task_is_on_both_sides_of_the_split(wheel: Wheel, airline: str) -> None:
    sides: dict[str, set[str]] = {}
    for row in Corpus.open(corpus(wheel, "all") + "@v1").rows("all"):
        sides.setdefault(row.interaction["task_id"], set()).add(row.split)
    assert len(sides) == 50
    assert Counter(map(len, sides.values())) == {1: 50}
    assert {side for found in sides.values() for side in found} == {"train", "heldout"}


def test_the_dpo_view_gives_every_win_and_lose_pair(wheel: Wheel, airline: str, tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    ref = corpus(wheel, "all") + "@v1"
    wheel.treadle("corpus", "export", ref, "--view", "dpo", "--split", "all", "--out", str(out))
    pairs = lines(out)
    assert len(pairs) == 88
    assert len({p["task_id"] for p in pairs}) == 26
    wheel.treadle("corpus", "export", ref, "--view", "dpo", "--out", str(out))
    assert {p["split"] for p in lines(out)} == {"train"}
    wheel.treadle("corpus", "export", ref, "--view", "sft", "--split", "all", "--out", str(out))
    assert len(lines(out)) == 84


def test_importing_twice_makes_no_new_version(wheel: Wheel, airline: str, tau_airline: Path) -> None:
    import_all(wheel, airline, tau_airline)
    again = wheel.json("snapshot", airline, "--to", corpus(wheel, "all"))
    assert again["new"] is False
    assert again["rows"] == 200
    assert wheel.types(airline, "interactions")[INTERACTION] == 400
    assert wheel.types(airline, "outcomes")[IMPORT_MARKER] == 2 * 2 * PARTITIONS
    assert wheel.records(airline, "dead-letter") == []


def test_two_halves_beside_live_traffic_give_the_same_content(
    wheel: Wheel, airline: str, tau_airline: Path, tmp_path: Path
) -> None:
    workspace = "halves"
    wheel.treadle("workspace", "create", workspace, "--partitions", str(PARTITIONS))
    wheel.start_worker(workspace)
    sender = Sender(wheel.servers)
    live(sender, workspace, range(30))
    interactions = (tau_airline / "interactions.jsonl").read_bytes().splitlines(keepends=True)
    outcomes = (tau_airline / "outcomes.jsonl").read_bytes().splitlines(keepends=True)
    for n, part in enumerate((interactions[:100], interactions[100:])):
        (tmp_path / f"i{n}.jsonl").write_bytes(b"".join(part))
        wheel.treadle("import", workspace, "--interactions", str(tmp_path / f"i{n}.jsonl"))
        live(sender, workspace, range(30 * (n + 1), 30 * (n + 2)))
    (tmp_path / "o.jsonl").write_bytes(b"".join(reversed(outcomes)))
    wheel.treadle("import", workspace, "--outcomes", str(tmp_path / "o.jsonl"))
    made = wheel.json("snapshot", workspace, "--filter", f"agent = '{AGENT}'", "--to", corpus(wheel, "halves"))
    first = Corpus.open(corpus(wheel, "all") + "@v1").manifest
    assert made["rows"] == 200
    assert made["rejected"] == 60
    assert made["pending"] == 30
    assert made["content_hash"] == first.content_hash


def live(sender: Sender, workspace: str, numbers: range) -> None:
    """Interactions of another agent as they happen; every third has no outcome yet."""
    for n in numbers:
        said = [{"role": "user", "content": f"live {n}"}, {"role": "assistant", "content": "ok"}]
        interaction = {
            "interaction_id": f"live-{n}",
            "agent": "other",
            "messages": said,
            "started_at": now(),
            "ended_at": now(),
        }
        headers = make_headers(INTERACTION, workspace, source="test")
        sender.send(topic(workspace, "interactions"), f"live-{n}".encode(), encode(interaction), headers)
        if n % 3:
            outcome(sender, workspace, f"live-{n}", float(n % 2), f"o-{n}")
    sender.flush()


def outcome(sender: Sender, workspace: str, interaction_id: str, value: float, outcome_id: str) -> None:
    said = {
        "name": "reward",
        "value": value,
        "observed_at": now(),
        "outcome_id": outcome_id,
        "interaction_id": interaction_id,
    }
    headers = make_headers(OUTCOME, workspace, source="test")
    sender.send(topic(workspace, "outcomes"), interaction_id.encode(), encode(said), headers)


def test_an_outcome_after_the_snapshot_changes_its_row_in_the_next_version_only(wheel: Wheel, airline: str) -> None:
    before = {n: list(Corpus.open(f"{corpus(wheel, n)}@v1").rows("all")) for n in ("all", "won")}
    won = next(r.interaction_id for r in before["won"])
    lost = next(r.interaction_id for r in before["all"] if r.grade.reward == 0.0)
    sender = Sender(wheel.servers)
    outcome(sender, airline, won, 0.0, "late-1")
    outcome(sender, airline, lost, 1.0, "late-2")
    sender.flush()
    filtered = wheel.json("snapshot", airline, "--filter", "reward>0", "--to", corpus(wheel, "won"))
    assert (filtered["version"], filtered["rows"], filtered["added"], filtered["removed"]) == (2, 84, 1, 1)
    unfiltered = wheel.json("snapshot", airline, "--to", corpus(wheel, "all"))
    assert (unfiltered["version"], unfiltered["rows"], unfiltered["updated"]) == (2, 200, 2)
    rewards = {r.interaction_id: r.grade.reward for r in Corpus.open(corpus(wheel, "all")).rows("all")}
    assert (rewards[won], rewards[lost]) == (0.0, 1.0)
    for name, rows in before.items():
        assert list(Corpus.open(f"{corpus(wheel, name)}@v1").rows("all")) == rows
