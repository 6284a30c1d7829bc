"""`treadle import --from` on a real Kafka: the same bytes each time, private before durable, and rows with their grades at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from treadle.log import read
from treadle_corpus import Corpus
from treadle_schemas import Metric, WorkspaceSettings
from treadle_schemas.codec import IMPORT_MARKER, INTERACTION, PART, decode
from treadle_schemas.pii import BUILT_IN, FieldRule, PiiPolicy, RightsRule
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_streams.importing import Export, run_import

EXPORTS = Path(__file__).parent.parent / "fixtures" / "exports"
FILES = {
    "langfuse": ["observations_v2.jsonl", "scores.jsonl"],
    "langsmith": ["runs.jsonl", "feedback.jsonl"],
    "phoenix": ["spans.json", "annotations.json"],
    "otlp": ["traces.jsonl"],
    "openai": [
        "stored_completions.jsonl",
        "stored_messages.json",
        "batch_input.jsonl",
        "batch_output.jsonl",
        "batch_errors.jsonl",
        "preference.jsonl",
    ],
}
COUNTS = {"langfuse": (3, 6, 0), "langsmith": (3, 5, 0), "phoenix": (2, 4, 0), "otlp": (4, 0, 1), "openai": (5, 1, 1)}
PARTITIONS = 2


def sent(broker: str, workspace: str) -> dict[str | None, set[tuple[str, bytes | None, bytes | None]]]:
    """By import: (topic kind, key, value) of every event."""
    found: dict[str | None, set[tuple[str, bytes | None, bytes | None]]] = {}
    for kind in ("interactions", "outcomes"):
        for record in read(broker, topic(workspace, kind), PARTITIONS):
            event = decode(record.value, record.headers)
            if event.type != IMPORT_MARKER:
                found.setdefault(event.import_id, set()).add((kind, record.key, record.value))
    return found


@pytest.mark.parametrize("product", FILES)
def test_importing_an_export_twice_sends_the_same_bytes(broker: str, workspace_name: str, product: str) -> None:
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS))
    files = [EXPORTS / product / name for name in FILES[product]]
    size = sum(path.stat().st_size for path in files)
    for again in range(2):
        seen: list[int] = []
        with Export(product, files if not again else files[::-1]) as export:
            report = run_import(broker, workspace_name, export=export, on_progress=seen.append)
        assert (report.interactions, report.outcomes, report.bad_lines) == COUNTS[product]
        assert seen == sorted(seen)
        assert seen[-1] == 3 * size
    first, second = sent(broker, workspace_name).values()
    assert first == second


def treadle(broker: str, home: Path, *arguments: str, code: int = 0) -> str:
    environment = {**os.environ, "TREADLE_BOOTSTRAP_SERVERS": broker, "TREADLE_HOME": str(home)}
    command = [sys.executable, "-m", "treadle", *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == code, f"{arguments}: {ran.stdout}\n{ran.stderr}"
    return ran.stdout


def test_a_dry_run_shows_counts_and_redacted_rows_and_sends_nothing(
    broker: str, workspace_name: str, tmp_path: Path
) -> None:
    treadle(broker, tmp_path, "workspace", "create", workspace_name, "--partitions", str(PARTITIONS), "--pii", "strict")
    files = [str(EXPORTS / "otlp" / "traces.jsonl")]
    report = json.loads(
        treadle(broker, tmp_path, "import", workspace_name, "--from", "otlp", *files, "--dry-run", "--json", code=1)
    )
    assert (report["interactions"], report["bad_lines"], report["dry_run"]) == (4, 1, True)
    assert report["passed"] == {"span agent": 1, "span tool": 1}
    assert report["bad"][0]["line"] == 2
    assert [row["redaction"]["policy"] for row in report["rows"]] == ["strict"] * 4
    shown = treadle(broker, tmp_path, "import", workspace_name, "--from", "otlp", *files, "--dry-run", code=1)
    assert "dry run  interactions 4  outcomes 0  bad lines 1" in shown
    assert "read, with nothing to import:  span agent 1" in shown
    assert sent(broker, workspace_name) == {}
    treadle(broker, tmp_path, "import", workspace_name, *files, code=2)
    treadle(broker, tmp_path, "import", workspace_name, "--from", "otlp", code=2)


SECRET = "sk-proj-" + "a1B2c3D4e5F6g7H8i9J0" * 2
LINE: dict[str, Any] = {
    "interaction_id": "i",
    "episode_id": "e",
    "agent": "a",
    "subject": "mallory",
    "messages": [
        {"role": "user", "content": f"my key is {SECRET}, mail me: jo.doe@example.org"},
        {"role": "assistant", "content": "x" * 2000},
    ],
    "started_at": "2026-01-31T09:30:00Z",
    "ended_at": "2026-01-31T09:30:00Z",
}


def test_what_is_private_never_reaches_kafka_by_an_import(broker: str, workspace_name: str, tmp_path: Path) -> None:
    policy = PiiPolicy(
        name="custom",
        actions={**BUILT_IN["standard"].effective(), "iban": "refuse"},
        fields=(FieldRule(path="$.tags.private"),),
    )
    rights = (RightsRule(subject="mallory", train="deny"),)
    workspaces.create(
        broker, WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS, pii=policy, rights=rights)
    )
    refused = {**LINE, "interaction_id": "r", "messages": [{"role": "user", "content": "DE89 3704 0044 0532 0130 00"}]}
    interactions, outcomes = tmp_path / "i.jsonl", tmp_path / "o.jsonl"
    interactions.write_text(
        "".join(json.dumps(line) + "\n" for line in ({**LINE, "tags": {"private": "this"}}, refused))
    )
    comment = {
        "interaction_id": "i",
        "episode_id": "e",
        "name": "note",
        "kind": "comment",
        "value": f"used {SECRET}",
        "observed_at": LINE["ended_at"],
    }
    outcomes.write_text(json.dumps(comment) + "\n")
    report = run_import(broker, workspace_name, [interactions], [outcomes])
    assert (report.interactions, report.outcomes, report.bad_lines) == (1, 1, 1)
    assert "refuses" in report.bad[0].reason
    assert "DE89" not in report.bad[0].reason
    raw = b"".join(value or b"" for _, _, value in sent(broker, workspace_name)[report.import_id])
    for private in (SECRET, "jo.doe", "DE89", "this"):
        assert private.encode() not in raw
    records = list(read(broker, topic(workspace_name, "interactions"), PARTITIONS))
    events = [decode(record.value, record.headers) for record in records]
    (interaction,) = [event for event in events if event.type == INTERACTION]
    assert interaction.data["rights"] == {"train": "deny"}
    assert interaction.data["transcript"]["count"] == 2
    assert {event.headers["ce_pii"] for event in events if event.type in (INTERACTION, PART)} == {b"custom/1"}


def test_an_export_becomes_rows_with_grades(broker: str, workspace_name: str, tmp_path: Path) -> None:
    settings = WorkspaceSettings(
        workspace=workspace_name,
        partitions=PARTITIONS,
        metrics=(Metric(name="helpfulness", required=True),),
        reward="helpfulness",
    )
    workspaces.create(broker, settings)
    environment = {**os.environ, "TREADLE_BOOTSTRAP_SERVERS": broker, "TREADLE_HOME": str(tmp_path)}
    with (tmp_path / "worker.log").open("wb") as log:
        command = [sys.executable, "-m", "treadle", "worker", "--workspace", workspace_name]
        worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        files = [str(EXPORTS / "langfuse" / name) for name in FILES["langfuse"]]
        treadle(broker, tmp_path, "import", workspace_name, "--from", "langfuse", *files)
        treadle(broker, tmp_path, "snapshot", workspace_name, "--to", str(tmp_path / "corpus"))
    finally:
        worker.terminate()
        worker.wait(30)
    (row,) = Corpus.open(f"{tmp_path / 'corpus'}@v1").rows("all")  # the others wait for their metric
    assert (row.interaction_id, row.episode_id, row.grade.reward) == ("0000000000000002", "chat-42", 0.75)
    assert row.interaction["messages"][2]["tool_calls"][0]["function"]["name"] == "get_order"
    letters = [record.headers for record in read(broker, topic(workspace_name, "dead-letter"), PARTITIONS)]
    reasons = {value for headers in letters for name, value in headers if name.endswith("reason")}
    assert reasons == set(), "session scores, comments and demonstrations are joined like everything else"
