"""Odd input through everything: recorder, Kafka, join, corpus, export. What comes out is what went in, value by value and byte by byte."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from treadle import Recorder
from treadle.errors import NotDelivered
from treadle.log import read
from treadle.memory import MemorySink
from treadle_corpus import Corpus
from treadle_schemas import FieldError, canonical_json
from treadle_schemas.canonical import dumps, loads
from treadle_schemas.topics import topic

MILLION = "".join(chr(0x20 + n % 0x2000) for n in range(999_990)) + "🙂\ud83d\u2028\x00end"
USER = {"role": "user", "content": "?"}


def said(content: Any, **more: Any) -> list[dict[str, Any]]:
    return [USER, {"role": "assistant", "content": content, **more}]


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":\u2028 "\\ud83d", "n": 1e400}'}}
ODD: dict[str, dict[str, Any]] = {
    "lone high surrogate": {"messages": said("a\ud83d")},
    "lone low surrogate": {"messages": said("\ude00a")},
    "surrogates in the wrong order": {"messages": said("\ude00\ud83d")},
    "surrogate in a name": {"messages": said("x", **{"\ud83d": {"\udc00": ["\udfff"]}})},
    "NUL and controls": {"messages": said("\x00a\x00\x01\x1b[0m\x7f\x85")},
    "separators": {"messages": said("\u2028\u2029\r\n\r\n\t\x0b\x0c")},
    "bidi": {"messages": said("\u202eabc\u202c \u2066שלום\u2069 \u200f\u061c")},
    "emoji": {"messages": said("👩‍👩‍👧‍👦🏳️‍🌈🇩🇪1️⃣🙂🏽")},
    "unassigned and private": {"messages": said("\ufffe\uffff\U0010ffff\ue000\ufeff\ufffd")},
    "not normalised": {"messages": said("e\u0301 é ﬁ Å")},
    "empty turn": {"messages": said("")},
    "null turn": {"messages": said(None)},
    "missing content": {"messages": [{"role": "user"}, {"role": "assistant"}]},
    "empty parts": {
        "messages": [{"role": "user", "content": []}, {"role": "assistant", "content": [{"type": "text", "text": ""}]}]
    },
    "empty names": {"messages": said("x", **{"": {"": ""}})},
    "strange roles": {"messages": [{"role": ""}, {"role": "\u0000"}, {"role": "assistant", "content": "x"}]},
    "broken arguments": {"messages": said(None, tool_calls=[CALL])},
    "quotes": {"messages": said("\\\"'\\u0041</script>\\\\")},
    "numbers": {
        "messages": said("x", n=[0, -0.0, 2**63, 2**64 + 1, -(2**70), 1e22, 5e-324, 1.7976931348623157e308, 0.1, 1.0])
    },
    "huge integer": {"messages": said("x"), "usage": {"n": 10**999}},
    "words that look like others": {"messages": said("x", a="null", b="NaN", c="true", d=[None, True, False])},
    "deep": {"messages": said("x", deep=json.loads("[" * 60 + "]" * 60))},
    "a million characters": {"messages": said(MILLION)},
    "growing": {"episode_id": "épisode 🙂", "messages": [*said("a\ud83d" * 700), *said("b\u2028" * 700)]},
}
NOT_CARRIED: list[tuple[dict[str, Any], str]] = [
    ({"messages": said("x", n=math.nan)}, "$.messages[1].n"),
    ({"messages": said("x", n=[1, math.inf])}, "$.messages[1].n[1]"),
    ({"messages": said(["x", -math.inf])}, "$.messages[1].content[1]"),
    ({"messages": said("x"), "usage": {"a": {"b": math.nan}}}, "$.usage.a.b"),
    ({"messages": said("x"), "tags": {"t": math.nan}}, "$.tags.t"),
    ({"messages": said("x"), "cost": math.nan}, "$.cost"),
    ({"messages": said("x"), "logprobs": [[math.nan]]}, "$.logprobs[0][0]"),
    ({"messages": said("x"), "usage": {"n": 10**1001}}, "$.usage.n"),
    ({"messages": said("x", b=b"bytes")}, "$.messages[1].b"),
    ({"messages": said("x", m={1: 2})}, "$.messages[1].m"),
    ({"messages": []}, "$.messages"),
    ({"messages": [{"content": "no role"}]}, "$.messages[0].role"),
    ({"messages": [{"role": None}]}, "$.messages[0].role"),
    ({"messages": said("x"), "interaction_id": "\ud83d"}, "$.interaction_id"),
]


def test_a_recorder_sends_odd_input_unchanged() -> None:
    sink = MemorySink()
    with Recorder("shop", agent="a", sink=sink) as recorder:
        for name, given in ODD.items():
            recorder.record(interaction_id=name, **given)
    for value in sink.interactions:
        check(value, ODD[value["interaction_id"]])
    assert [value["interaction_id"] for value in sink.interactions] == list(ODD)


@pytest.mark.parametrize(("given", "field"), NOT_CARRIED, ids=range(len(NOT_CARRIED)))
def test_what_json_cannot_carry_is_a_typed_error_that_names_the_field(given: dict[str, Any], field: str) -> None:
    sink = MemorySink()
    recorder = Recorder("shop", agent="a", sink=sink)
    with pytest.raises((FieldError, NotDelivered)) as caught:
        recorder.record(**given)
    assert f"{field}: " in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert (sink.sent, recorder.stats().refused) == ([], 1)
    recorder.close()


def check(found: dict[str, Any], given: dict[str, Any]) -> None:
    """The messages as they were, each character and each number."""
    assert dumps(found["messages"]) == dumps(given["messages"])
    assert canonical_json(found["messages"]) == canonical_json(given["messages"])
    assert found["messages"] == given["messages"]
    assert found.get("usage") == given.get("usage")


def treadle(environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "treadle", *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert ran.returncode == 0, f"{arguments}: {ran.stdout}\n{ran.stderr}"


@pytest.fixture
def environment(broker: str, tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "TREADLE_BOOTSTRAP_SERVERS": broker, "TREADLE_HOME": str(tmp_path)}


@pytest.fixture
def worker(environment: dict[str, str], workspace_name: str, tmp_path: Path) -> Iterator[None]:
    treadle(environment, "workspace", "create", workspace_name, "--partitions", "2")
    command = [sys.executable, "-m", "treadle", "worker", "--workspace", workspace_name]
    with (tmp_path / "worker.log").open("wb") as log:
        running = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    yield
    running.terminate()
    try:
        running.wait(30)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()


@pytest.mark.usefixtures("worker")
def test_odd_input_survives_kafka_join_corpus_and_export(
    broker: str, environment: dict[str, str], workspace_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    with Recorder(workspace_name, agent="a", bootstrap_servers=broker) as recorder:
        for name, given in ODD.items():
            handle = recorder.record(interaction_id=name, task_id=f"task \u2028 {name}", **given)
            recorder.outcome(handle, "reward", 1.0)
        assert recorder.flush(60) == 0
        assert recorder.stats().refused == 0
    path = tmp_path / "corpus"
    treadle(environment, "snapshot", workspace_name, "--to", str(path))
    assert [record.value for record in read(broker, topic(workspace_name, "dead-letter"), 2)] == []
    rows = {row.interaction_id: row for row in Corpus.open(f"{path}@v1").rows("all")}
    assert rows.keys() == ODD.keys()
    for name, given in ODD.items():
        check(rows[name].interaction, given)
        assert rows[name].interaction["task_id"] == f"task \u2028 {name}"
        assert rows[name].grade.reward == 1.0
    exported = tmp_path / "sft.jsonl"
    treadle(environment, "corpus", "export", f"{path}@v1", "--view", "sft", "--split", "all", "--out", str(exported))
    lines = exported.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == len(ODD)
    for line in lines:
        example = loads(line)
        assert dumps(example["messages"]) == dumps(ODD[example["interaction_id"]]["messages"])
