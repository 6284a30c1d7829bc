"""`treadle import` on a real Kafka."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from treadle.log import Admin, Record, read
from treadle_schemas import WorkspaceSettings, canonical_json
from treadle_schemas.codec import IMPORT_MARKER, INTERACTION, OUTCOME, decode
from treadle_schemas.events import default_outcome_id, read_interaction, read_outcome
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_streams.errors import ImportInterrupted, WorkspaceMissing
from treadle_streams.importing import Lines, run_import

PARTITIONS = 2
INTERACTION_LINE = {
    "interaction_id": "i1",
    "agent": "a",
    "messages": [{"role": "user", "content": "hi"}],
    "started_at": "2024-05-15T20:31:00Z",
    "ended_at": "2024-05-15T20:32:00Z",
}
OUTCOME_LINE = {"interaction_id": "i1", "name": "reward", "value": 1.0, "observed_at": "2024-05-15T21:00:00Z"}


@pytest.fixture
def workspace(broker: str, workspace_name: str) -> str:
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS))
    return workspace_name


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[[str, Sequence[Any]], Path]:
    """Write a file of JSON lines; text goes in as it is."""

    def write(name: str, lines: Sequence[Any]) -> Path:
        path = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        path.write_text("".join(text + "\n" for text in texts))
        return path

    return write


def records(broker: str, workspace: str, kind: str) -> list[Record]:
    """What lies on the topic, partition by partition."""
    found = list(read(broker, topic(workspace, kind), PARTITIONS))
    return sorted(found, key=lambda r: (r.partition, r.offset))


def events(broker: str, workspace: str, kind: str) -> list[dict[str, Any]]:
    """The values of events that are no markers."""
    found = [decode(r.value, r.headers) for r in records(broker, workspace, kind)]
    return [event.data for event in found if event.type != IMPORT_MARKER]


def test_real_logs_arrive_whole_framed_by_markers_and_the_same_each_time(
    broker: str, workspace: str, tau_airline: Path
) -> None:
    interactions, outcomes = tau_airline / "interactions.jsonl", tau_airline / "outcomes.jsonl"
    seen: list[int] = []
    report = run_import(broker, workspace, [interactions], [outcomes], on_progress=seen.append)
    assert (report.interactions, report.outcomes, report.bad_lines) == (200, 595, 0)
    assert seen == sorted(seen)
    assert seen[-1] == interactions.stat().st_size + outcomes.stat().st_size

    for kind, wanted, source in (("interactions", INTERACTION, interactions), ("outcomes", OUTCOME, outcomes)):
        found = records(broker, workspace, kind)
        for partition in range(PARTITIONS):
            here = [decode(r.value, r.headers) for r in found if r.partition == partition]
            types = [event.type for event in here]
            assert types == [IMPORT_MARKER, *[wanted] * (len(here) - 2), IMPORT_MARKER]
            assert [here[0].data["phase"], here[-1].data["phase"]] == ["begin", "end"]
            assert {event.import_id for event in here} == {report.import_id}
        values = {_identity(value): value for value in events(broker, workspace, kind)}
        lines = {_identity(line): line for _, line in Lines(source)}
        assert len(values) == len(lines) == {"interactions": 200, "outcomes": 595}[kind]
        for key, line in lines.items():
            assert isinstance(line, dict)
            for field in line.keys() - {"workspace"}:
                assert canonical_json(values[key][field]) == canonical_json(line[field])
    nulls = [value for value in events(broker, workspace, "outcomes") if value["value"] is None]
    assert len(nulls) == 5
    assert {value["tags"]["source_workspace"] for value in events(broker, workspace, "interactions")} == {"tau-airline"}

    again = run_import(broker, workspace, [interactions], [outcomes])
    assert again.import_id != report.import_id
    for kind in ("interactions", "outcomes"):
        by_import: dict[str | None, set[tuple[bytes | None, bytes | None]]] = {}
        for record in records(broker, workspace, kind):
            event = decode(record.value, record.headers)
            if event.type != IMPORT_MARKER:
                by_import.setdefault(event.import_id, set()).add((record.key, record.value))
        first, second = by_import.values()
        assert first == second


def _identity(value: Any) -> tuple[Any, ...]:
    return (value["interaction_id"], value.get("name"), value.get("observed_at"))


def test_bad_lines_are_named_and_the_good_ones_go_on(
    broker: str, workspace: str, jsonl: Callable[[str, Sequence[Any]], Path]
) -> None:
    interactions = jsonl(
        "interactions.jsonl",
        [
            "not json",
            "",
            INTERACTION_LINE,
            [1, 2],
            {**INTERACTION_LINE, "messages": []},
            {**INTERACTION_LINE, "interaction_id": "x" * 300},
            {**INTERACTION_LINE, "ended_at": "2023-05-15T20:32:00Z"},
            {**INTERACTION_LINE, "messages": [{"role": "user", "content": "x" * 8_400_000}]},
            {**INTERACTION_LINE, "messages": [{"role": "user", "content": "x" * 17_000_000}]},
            {**INTERACTION_LINE, "interaction_id": "i2", "tags": ["no object"], "workspace": "w"},
            {**INTERACTION_LINE, "interaction_id": "i3"},
        ],
    )
    outcomes = jsonl(
        "outcomes.jsonl",
        [
            OUTCOME_LINE,
            {**OUTCOME_LINE, "value": None},
            {k: v for k, v in OUTCOME_LINE.items() if k != "value"},
            {**OUTCOME_LINE, "observed_at": "2024-05-15T21:00:00"},
            {k: v for k, v in OUTCOME_LINE.items() if k != "interaction_id"},
            '{"interaction_id": "i1", "name": "reward", "value": NaN, "observed_at": "2024-05-15T21:00:00Z"}',
            {**OUTCOME_LINE, "op": "retract"},
        ],
    )
    told: list[tuple[int, str]] = []
    report = run_import(
        broker, workspace, [interactions], [outcomes], on_bad_line=lambda bad: told.append((bad.line, bad.reason))
    )
    assert (report.interactions, report.outcomes, report.bad_lines) == (2, 3, 12)
    assert [line for line, _ in told] == [1, 4, 5, 6, 7, 8, 9, 10, 3, 4, 5, 6]
    for (_, reason), wanted in zip(
        told,
        [
            "not JSON",
            "is a list, not an object",
            "$.messages: is empty",
            "$.interaction_id: is 300 bytes long",
            "$.ended_at: 2023",
            "$: is 84",
            "is longer than 16777216 bytes",
            "$.tags: is not an object",
            "$.value: is missing",
            "has no time zone",
            "names an interaction, an episode or a reference",
            "not JSON",
        ],
        strict=True,
    ):
        assert wanted in reason
    assert {v["interaction_id"] for v in events(broker, workspace, "interactions")} == {"i1", "i3"}
    values = events(broker, workspace, "outcomes")
    assert [(v["value"], v.get("op"), "outcome_id" in v) for v in values] == [
        (1.0, None, True),
        (None, None, True),
        (1.0, "retract", False),
    ]


def test_an_outcome_goes_to_the_episodes_of_its_interaction(
    broker: str, workspace: str, jsonl: Callable[[str, Sequence[Any]], Path]
) -> None:
    interactions = jsonl(
        "i.jsonl",
        [
            {**INTERACTION_LINE, "interaction_id": "alone"},
            {**INTERACTION_LINE, "interaction_id": "inside", "episode_id": "ep"},
            {**INTERACTION_LINE, "interaction_id": "twice", "episode_id": "ep1"},
            {**INTERACTION_LINE, "interaction_id": "twice", "episode_id": "ep2"},
            {**INTERACTION_LINE, "interaction_id": "both"},
            {**INTERACTION_LINE, "interaction_id": "both", "episode_id": "ep3"},
        ],
    )
    lines = [{**OUTCOME_LINE, "interaction_id": name} for name in ("alone", "inside", "twice", "both", "elsewhere")]
    lines.append({**OUTCOME_LINE, "interaction_id": "inside", "episode_id": "said"})
    outcomes = jsonl("o.jsonl", lines)
    report = run_import(broker, workspace, [interactions], [outcomes], import_id="mine")
    assert (report.import_id, report.outcomes) == ("mine", 6)
    found = {
        (r.key, v["interaction_id"], v.get("episode_id"), v["outcome_id"])
        for r in records(broker, workspace, "outcomes")
        if r.key is not None
        for v in [json.loads(r.value or b"")]
    }
    ids = [default_outcome_id(read_outcome({**line, "outcome_id": "-"})) for line in lines]
    assert found == {
        (b"alone", "alone", None, ids[0]),
        (b"ep", "inside", "ep", ids[1]),
        (b"ep1", "twice", "ep1", ids[2]),
        (b"ep2", "twice", "ep2", ids[2]),
        (b"both", "both", None, ids[3]),
        (b"ep3", "both", "ep3", ids[3]),
        (b"elsewhere", "elsewhere", None, ids[4]),
        (b"said", "inside", "said", ids[5]),
    }
    # each lies on the partition of its row
    places = {r.key: r.partition for r in records(broker, workspace, "interactions") if r.key is not None}
    for record in records(broker, workspace, "outcomes"):
        if record.key in places:
            assert record.partition == places[record.key]


def test_fields_of_tomorrow_are_kept(broker: str, workspace: str, jsonl: Callable[[str, Sequence[Any]], Path]) -> None:
    path = jsonl("i.jsonl", [{**INTERACTION_LINE, "references": ["pr:a/b#1"], "colour": {"r": 1}}])
    run_import(broker, workspace, [path])
    (value,) = events(broker, workspace, "interactions")
    assert (value["references"], value["colour"]) == (["pr:a/b#1"], {"r": 1})
    assert read_interaction(value).interaction_id == "i1"


def test_rate_bounds_the_events_a_second(
    broker: str, workspace: str, jsonl: Callable[[str, Sequence[Any]], Path]
) -> None:
    path = jsonl("i.jsonl", [{**INTERACTION_LINE, "interaction_id": f"i{n}"} for n in range(21)])
    started = time.monotonic()
    run_import(broker, workspace, [path], rate=20)
    assert time.monotonic() - started >= 1.0


def test_a_workspace_that_is_not_there_gets_nothing(broker: str, workspace_name: str, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceMissing):
        run_import(broker, workspace_name, [tmp_path / "whatever"])
    assert topic(workspace_name, "interactions") not in Admin(broker).partitions()


def test_an_import_that_kafka_stops_taking_says_so_and_can_be_repeated(
    broker: str, workspace: str, jsonl: Callable[[str, Sequence[Any]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle_streams.importing import _run

    monkeypatch.setattr(_run, "DELIVERY_TIMEOUT_S", 1.0)
    lines = [{**INTERACTION_LINE, "interaction_id": f"i{n}"} for n in range(100)]
    path = jsonl("i.jsonl", lines)
    name = topic(workspace, "interactions")
    removed_at: list[int] = []

    def remove_halfway(read: int) -> None:
        if read > path.stat().st_size / 2 and not removed_at:
            Admin(broker).delete([name])
            removed_at.append(read)

    with pytest.raises(ImportInterrupted, match="Repeat it as it is"):
        run_import(broker, workspace, [path], on_progress=remove_halfway)
    settings = workspaces.get(broker, workspace)
    workspaces.create(broker, settings, if_missing=True)  # completes what is missing of it
    report = run_import(broker, workspace, [path])
    assert report.interactions == 100
    arrived = {value["interaction_id"] for value in events(broker, workspace, "interactions")}
    assert arrived == {line["interaction_id"] for line in lines}


def test_ctrl_c_ends_the_import_with_its_end_markers(
    broker: str, workspace: str, jsonl: Callable[[str, Sequence[Any]], Path]
) -> None:
    path = jsonl("i.jsonl", [{**INTERACTION_LINE, "interaction_id": f"i{n}"} for n in range(1000)])
    command = _command(broker, "import", workspace, "--interactions", str(path), "--rate", "20")
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while len(events(broker, workspace, "interactions")) < 3:
            assert time.monotonic() < deadline
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=120)
    finally:
        running.kill()
    assert (running.returncode, errors.strip().splitlines()[-1]) == (130, "interrupted")
    for kind in ("interactions", "outcomes"):
        markers = [decode(r.value, r.headers) for r in records(broker, workspace, kind) if r.key is None]
        assert [m.data["phase"] for m in markers] == ["begin", "end"] * PARTITIONS


def test_the_command_reports_and_exits_one_for_bad_lines(
    broker: str, workspace: str, jsonl: Callable[[str, Sequence[Any]], Path]
) -> None:
    path = jsonl("i.jsonl", [INTERACTION_LINE, "[red]no json[/red]"])
    ran = subprocess.run(
        _command(broker, "import", workspace, "--interactions", str(path), "--json"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    report = json.loads(ran.stdout)
    assert ran.returncode == 1
    assert f"bad line {path}:2: $: not JSON" in ran.stderr
    assert (report["interactions"], report["bad_lines"], report["bad"][0]["line"]) == (1, 1, 2)
    usage = subprocess.run(
        _command(broker, "import", workspace), capture_output=True, text=True, check=False, timeout=60
    )
    assert (usage.returncode, "nothing to import" in usage.stderr) == (2, True)


def _command(broker: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "treadle", "--bootstrap-servers", broker, *arguments]
