"""`treadle tail` on a real Kafka: the newest rows, those that follow, and the same filter as anywhere else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from treadle.cli import main
from treadle.log import Sender
from treadle_corpus import Corpus, GradedRecord, Policy
from treadle_corpus.testing import graded
from treadle_schemas.canonical import canonical_json
from treadle_schemas.codec import CLOCK, GRADED, PROGRESS, REGRADED, encode, make_headers, to_json
from treadle_schemas.records import GradedRow, Progress, Regraded
from treadle_schemas.topics import topic
from treadle_schemas.workspace import Metric, WorkspaceSettings
from treadle_streams import workspaces
from treadle_streams.filter import FilterNameError, FilterSyntaxError
from treadle_streams.snapshot import run_snapshot
from treadle_streams.tail import Row, tail

PARTITIONS = 2


class Log:
    """A workspace on a real Kafka, and what the join would write into it."""

    def __init__(self, servers: str, name: str) -> None:
        metrics = (Metric(name="reward", required=True), Metric(name="cost"))
        workspaces.create(servers, WorkspaceSettings(workspace=name, partitions=PARTITIONS, metrics=metrics))
        self.servers = servers
        self.name = name
        self._sender = Sender(servers)
        self._clock = 0

    def graded(self, *records: GradedRecord) -> None:
        for record in records:
            self._clock += 1
            provenance = msgspec.structs.replace(
                record.row.provenance, graded_at=f"2026-01-01T00:00:{self._clock:02}Z", partition=self._clock % 2
            )
            row = msgspec.structs.replace(record.row, provenance=provenance)
            headers = [*make_headers(GRADED, self.name, source="test"), ("row_id", canonical_json(list(record.key)))]
            self._send("graded", encode(to_json(row)), headers, self._clock % 2)
            change = Progress(
                episode_id=row.episode_id,
                interaction_id=row.interaction_id,
                task_id=row.interaction.get("task_id"),
                agent="agent",
                slot="main",
                release=None,
                grade=row.grade,
                split=row.split,
                revision=row.provenance.revision,
                append_ms=row.provenance.append_ms,
                ended_at=row.interaction["ended_at"],
            )
            headers = make_headers(PROGRESS, self.name, source="test")
            self._send("progress", encode(to_json(change)), headers, 0)
            self._send("progress", b"{}", make_headers(CLOCK, self.name, source="test"), 1)
        self._sender.flush()

    def regraded(self) -> None:
        for kind in ("graded", "progress"):
            for partition in range(PARTITIONS):
                value = encode(to_json(Regraded(grading_version=2, rows=1)))
                self._send(kind, value, make_headers(REGRADED, self.name, source="test"), partition)
        self._sender.flush()

    def _send(self, kind: str, value: bytes, headers: list, partition: int) -> None:  # type: ignore[type-arg]
        self._sender.send(topic(self.name, kind), b"k", value, headers, partition)


@pytest.fixture
def log(broker: str, workspace_name: str) -> Log:
    return Log(broker, workspace_name)


@pytest.fixture
def command(broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("TREADLE_BOOTSTRAP_SERVERS", broker)
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    return lambda *args: CliRunner().invoke(main, ["tail", *args], catch_exceptions=False)


def names(rows: Iterable[Row]) -> list[str]:
    return [row.interaction_id for row in rows]


def test_the_last_rows_are_those_that_were_graded_last_on_any_partition(
    log: Log, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.graded(*(graded(f"r{n}", reward=float(n % 4)) for n in range(30)))
    log.regraded()
    assert names(tail(log.servers, log.name, "graded", last=3)) == ["r27", "r28", "r29"]
    monkeypatch.setattr("treadle_streams.tail._tail._SPAN", 4)  # it has to look further back for enough of them
    assert names(tail(log.servers, log.name, "graded", "reward = 2", last=6)) == [
        "r6",
        "r10",
        "r14",
        "r18",
        "r22",
        "r26",
    ]
    assert names(tail(log.servers, log.name, "graded", "reward = 2", last=99)) == [f"r{n}" for n in range(2, 30, 4)]
    assert names(tail(log.servers, log.name, "progress", "reward = 3 AND agent = 'agent'", last=2)) == ["r23", "r27"]
    text = command(log.name, "-n", "1").stdout
    assert text == "2026-01-01T00:00:30  r29 r1  agent  train  settled  reward 1  reward 1.0\n"
    lines = command(log.name, "--last", "2", "-o", "jsonl", "--filter", "reward > 2").stdout.splitlines()
    found = [msgspec.json.decode(line, type=GradedRow) for line in lines]
    assert names(found) == ["r23", "r27"]
    assert json.loads(lines[0])["interaction"]["messages"][0]["role"] == "user"


def test_what_follows_comes_as_it_is_graded(log: Log) -> None:
    log.graded(graded("a"), graded("b", reward=0.0))
    rows = tail(log.servers, log.name, "graded", "reward > 0", last=1, follow=True)
    assert next(rows).interaction_id == "a"
    log.graded(graded("c", reward=0.0), graded("d"))
    assert next(rows).interaction_id == "d"
    log.regraded()
    log.graded(graded("d", revision=2))
    assert next(rows).interaction_id == "d"
    # what comes between the call and the first look is new, however few were asked for
    only_new = tail(log.servers, log.name, "progress", last=0, follow=True)
    rows.close()  # type: ignore[attr-defined]
    log.graded(graded("e"), graded("f"), graded("g"))
    assert names(islice(only_new, 3)) == ["e", "f", "g"]


def test_a_metric_that_nobody_declared_can_be_named_once_it_was_seen(
    log: Log, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treadle_streams.tail._tail._SPAN", 2)
    log.graded(graded("early", metrics={"stars": ("observed", 5)}), *(graded(f"r{n}") for n in range(8)))
    assert names(tail(log.servers, log.name, "graded", "stars > 4")) == ["early"]
    assert names(tail(log.servers, log.name, "graded", "stars IS NULL", last=2)) == ["r6", "r7"]
    with pytest.raises(FilterNameError, match=r"(?s)did you mean 'stars'.*\^\^\^\^"):
        list(tail(log.servers, log.name, "graded", "star > 4"))
    with pytest.raises(FilterSyntaxError):
        list(tail(log.servers, log.name, "graded", "stars >"))
    refused = command(log.name, "--kind", "progress", "--filter", "model = 'm'")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "model is not known of these rows" in refused.stderr
    assert command(log.name, "--kind", "progress", "--filter", "tags.x = 1").exit_code == 2


EXPRESSIONS = (
    "reward > 0",
    "cost IS NULL OR cost < 2",
    "state(cost) = 'pending'",
    "NOT (metrics.cost >= 1 AND reward > 0)",
    "interaction_id IN ('a', 'd') OR reward / nullif(cost, 0) > 1",
)


def test_a_filter_means_the_same_in_a_snapshot_and_in_both_kinds_of_tail(log: Log, tmp_path: Path) -> None:
    log.graded(
        graded("a", metrics={"cost": ("observed", 1.0)}),
        graded("b", reward=0.0, metrics={"cost": ("absent", None)}),
        graded("c", reward=None, metrics={"cost": ("pending", None)}),
        graded("d", reward=5.0, metrics={"cost": ("observed", 3.0)}),
    )
    for number, text in enumerate(EXPRESSIONS):
        run_snapshot(log.servers, log.name, tmp_path / str(number), Policy(filter=text))
        members = [row.interaction_id for row in Corpus.open(tmp_path / str(number)).rows("all")]
        assert members == names(tail(log.servers, log.name, "graded", text)), text
        assert members == names(tail(log.servers, log.name, "progress", text)), text
        assert members not in ([], ["a", "b", "c", "d"]), text
