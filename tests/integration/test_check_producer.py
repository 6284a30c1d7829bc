"""`treadle check-producer` on a real Kafka: what good and bad producers sent, in Java, with librdkafka's own defaults, and by the SDK."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Producer
from treadle import Recorder
from treadle.cli import main
from treadle.log import Sender, read
from treadle.settings import Settings
from treadle_schemas import WorkspaceSettings, codec, examples
from treadle_schemas.canonical import loads
from treadle_schemas.conformance import SentRecord, record_of
from treadle_schemas.pii import built_in
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_streams.broker import KafkaJarsUnavailable
from treadle_streams.broker._jars import classpath

PARTITIONS = 8
EXAMPLE = Path(__file__).parents[2] / "examples" / "other_languages" / "TreadleProducer.java"


def check(broker: str, workspace: str, *more: object) -> Result:
    return CliRunner().invoke(main, ["--bootstrap-servers", broker, "check-producer", workspace, *map(str, more)])


def report(result: Result) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *found, summary = map(json.loads, result.stdout.splitlines())
    return found, summary


def create(broker: str, workspace: str, pii: str = "off", home: Path | None = None) -> None:
    settings = WorkspaceSettings(workspace=workspace, partitions=PARTITIONS, pii=built_in(pii))
    workspaces.create(broker, settings, home=home)


def golden(folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((examples.FOLDER / folder).glob("*.json")):
        for record in loads(path.read_bytes())["records"]:
            yield path.stem, record


def send(sender: Sender, workspace: str, said: dict[str, Any], changed: dict[str, str] | None = None) -> None:
    """A golden record, as one of `workspace`; where it says no partition the client's murmur2 chooses."""
    record: SentRecord = record_of(said)
    headers = [
        (name, workspace.encode() if (name, raw) == ("ce_workspace", b"shop") else raw) for name, raw in record.headers
    ]
    headers = [(name, (changed or {}).get(name, raw)) for name, raw in headers]
    everywhere = range(PARTITIONS) if said.get("every_partition") else [record.partition]
    for partition in everywhere:
        sender.send(topic(workspace, record.kind), record.key, record.value, headers, partition)  # type: ignore[arg-type]


def test_every_valid_example_conforms_where_it_stands(broker: str, workspace_name: str) -> None:
    create(broker, workspace_name, "secrets")
    sender = Sender(broker)
    said = list(golden("valid"))
    for _, record in said:
        send(sender, workspace_name, record)
    sender.flush()
    found, summary = report(check(broker, workspace_name, "--json"))
    assert summary["conforming"], found
    assert summary["errors"] == {}
    assert set(summary["warnings"]) <= {"unknown_field"}
    markers = sum(1 for _, record in said if record.get("every_partition"))
    assert summary["kinds"]["import markers"] == markers * PARTITIONS
    assert summary["records"] == len(said) + markers * (PARTITIONS - 1)
    # the golden partitions are those a real client chooses
    stands = {
        (record.key, record.partition)
        for kind in ("interactions", "outcomes")
        for record in read(broker, topic(workspace_name, kind), PARTITIONS)
        if record.key is not None
    }
    wanted = {(r["key"].encode(), r["partitions"][str(PARTITIONS)]) for _, r in said if r["key"] is not None}
    assert stands == wanted


def test_every_invalid_example_is_found_where_it_stands(broker: str, workspace_name: str) -> None:
    create(broker, workspace_name, "secrets")
    sender = Sender(broker)
    said = [(name, record) for name, record in golden("invalid")]
    for number, (_, record) in enumerate(said):
        send(sender, workspace_name, record, {"ce_id": str(number)})
    sender.flush()
    result = check(broker, workspace_name, "--json")
    assert result.exit_code == 1
    found, summary = report(result)
    ids = {
        (record.topic, record.partition, record.offset): dict(record.headers)["ce_id"]
        for kind in ("interactions", "outcomes")
        for record in read(broker, topic(workspace_name, kind), PARTITIONS)
    }
    by_record = {
        (int(ids[line["topic"], line["partition"], line["offset"]] or b""), line["reason"])
        for line in found
        if line["level"] == "error"
    }
    wanted = {(n, record["expected"]["reason"]) for n, (_, record) in enumerate(said) if "expected" in record}
    # the examples use one id again and again: of two contents that one is found which comes second
    assert {w for w in wanted if w[1] != "conflict"} <= by_record
    assert summary["errors"]["conflict"] >= 1


def test_a_client_with_another_partitioner_is_found_out(broker: str, workspace_name: str) -> None:
    """librdkafka's own default, and none of the headers that the contract asks for but for the type and the workspace."""
    create(broker, workspace_name)
    producer = Producer({"bootstrap.servers": broker})
    headers: dict[str, str | bytes | None] = {"ce_type": codec.INTERACTION, "ce_workspace": workspace_name}
    for n in range(20):
        value = {
            "interaction_id": f"i-{n}",
            "agent": "desk",
            "messages": [{"role": "user", "content": "hi"}],
            "started_at": "2026-01-31T09:30:00Z",
            "ended_at": "2026-01-31T09:30:00Z",
        }
        producer.produce(topic(workspace_name, "interactions"), json.dumps(value), f"i-{n}", headers=headers)
    assert producer.flush(30) == 0
    result = check(broker, workspace_name)
    assert result.exit_code == 1
    assert "set the producer's partitioner" in result.stdout
    assert "headers.ce_pii: is missing; send the privacy policy" in result.stdout
    assert "not conforming" in result.stdout
    _, summary = report(check(broker, workspace_name, "--json", "--max-messages", 20))
    assert summary["kinds"] == {"interactions": 20}
    assert summary["errors"]["wrong_partition"] >= 10  # by chance an eighth of them is right
    assert summary["errors"]["missing_header"] == 20 * 5


def test_the_sdk_conforms(broker: str, workspace_name: str, tmp_path: Path) -> None:
    create(broker, workspace_name, "standard", tmp_path)  # the recorder knows the policy from its home
    settings = Settings.load({"TREADLE_HOME": str(tmp_path), "TREADLE_BOOTSTRAP_SERVERS": broker})
    long = "Where is order 17? " * 5000
    with Recorder(workspace_name, agent="desk", settings=settings) as recorder:
        for step in range(3):
            messages = [{"role": "user", "content": f"{long} jane@acme.io {n}"} for n in range(step + 1)]
            handle = recorder.record(messages=messages, episode_id="e", step=step)
            recorder.outcome(handle, "reward", 1.0)
        assert recorder.flush(30) == 0
    result = check(broker, workspace_name, "--json")
    found, summary = report(result)
    assert (result.exit_code, found) == (0, [])
    assert summary["kinds"]["parts"] > 0


def test_one_source_and_one_window_can_be_looked_at_alone(broker: str, workspace_name: str) -> None:
    create(broker, workspace_name, "secrets")
    sender = Sender(broker)
    good = next(record for name, record in golden("valid") if name == "interaction-minimal")
    bad = next(record for name, record in golden("invalid") if name == "no-agent")
    send(sender, workspace_name, good, {"ce_source": "/agents/good"})
    send(sender, workspace_name, bad, {"ce_source": "/agents/bad"})
    sender.flush()
    assert check(broker, workspace_name).exit_code == 1
    assert check(broker, workspace_name, "--source", "/agents/bad").exit_code == 1
    assert check(broker, workspace_name, "--source", "/agents/good", "--since", "1h").exit_code == 0
    nothing = check(broker, workspace_name, "--source", "/agents/none")
    assert (nothing.exit_code, "nothing was sent" in nothing.stdout) == (1, True)
    assert check(broker, "no-such-workspace").exit_code != 0


def test_what_comes_from_now_on_can_be_watched(broker: str, workspace_name: str) -> None:
    create(broker, workspace_name, "secrets")
    sender = Sender(broker)
    bad = next(record for name, record in golden("invalid") if name == "no-agent")
    good = next(record for name, record in golden("valid") if name == "interaction-minimal")
    send(sender, workspace_name, bad)
    sender.flush()
    ended = threading.Event()

    def keep_sending() -> None:
        while not ended.wait(0.1):
            send(sender, workspace_name, good)
            sender.flush()

    thread = threading.Thread(target=keep_sending)
    thread.start()
    try:
        _, summary = report(check(broker, workspace_name, "--from-end", "--idle", "30s", "--max-messages", 2, "--json"))
    finally:
        ended.set()
        thread.join()
    assert (summary["conforming"], summary["records"], summary["repeats"]) == (True, 2, 1)


def test_the_java_example_conforms(broker: str, workspace_name: str) -> None:
    java = shutil.which("java")
    if java is None or shutil.which("javac") is None:
        pytest.skip("no Java development kit is installed: the example is compiled from its source")
    try:
        jars = classpath()
    except KafkaJarsUnavailable as err:
        pytest.skip(str(err))
    create(broker, workspace_name)
    ran = subprocess.run(
        [java, "-cp", jars, str(EXAMPLE), broker, workspace_name],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 4
    result = check(broker, workspace_name, "--source", "/agents/desk-java", "--json")
    found, summary = report(result)
    assert (result.exit_code, found) == (0, [])
    assert summary["kinds"] == {"interactions": 2, "outcomes": 2}
    sent = list(read(broker, topic(workspace_name, "interactions"), PARTITIONS))
    texts = [loads(record.value or b"")["messages"][0]["content"] for record in sent]
    assert texts == ["Where is order 17? 🙂", "And order 18?\n\u2028\ud83d"]
