"""A long episode that resends its history, from recorder to corpus on a real broker: what it costs, and that it comes back whole."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import treadle
from treadle.log import Record, read
from treadle_corpus import Corpus, Policy
from treadle_schemas import Metric, WorkspaceSettings
from treadle_schemas.canonical import dumps
from treadle_schemas.codec import GRADED, header_map
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_streams.snapshot import run_snapshot

STEPS = 50
PARTITIONS = 2
WORDS = ["file", "line", "error", "patch", "\u2028", "naïve", "test", "→", "😀", "\x00", "return", "None"]


@pytest.fixture
def workspace(broker: str, workspace_name: str, tmp_path: Path) -> Iterator[str]:
    """A workspace with a worker."""
    metrics = (Metric(name="reward", required=True),)
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS, metrics=metrics))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TREADLE_")}
    environment |= {"TREADLE_HOME": str(tmp_path / "home"), "TREADLE_BOOTSTRAP_SERVERS": broker}
    worker = subprocess.Popen(
        [sys.executable, "-m", "treadle_streams.worker", "--workspace", workspace_name], env=environment
    )
    yield workspace_name
    worker.send_signal(signal.SIGTERM)
    worker.wait(30)


def episode() -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """The messages and tools of each step of a coding agent: a call of about 1 KB and a result of about 3 KB a step."""
    rng = random.Random(7)
    tools = [{"type": "function", "function": {"name": f"tool_{n}", "description": "does " * 60}} for n in range(12)]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": text(rng, 4_000)},
        {"role": "user", "content": text(rng, 2_000)},
    ]
    for n in range(STEPS):
        call = {
            "id": f"c{n}",
            "type": "function",
            "function": {"name": "tool_1", "arguments": dumps({"q": n}).decode()},
        }
        messages.append({"role": "assistant", "content": text(rng, 800), "tool_calls": [call]})
        yield list(messages), tools
        messages.append({"content": text(rng, 3_000 if n != 20 else 90_000), "tool_call_id": f"c{n}", "role": "tool"})


def text(rng: random.Random, length: int) -> str:
    words = []
    while length > 0:
        words.append(rng.choice(WORDS))
        length -= len(words[-1]) + 1
    return " ".join(words)


def size(records: list[Record]) -> int:
    return sum(
        len(r.key or b"") + len(r.value or b"") + sum(len(k) + len(v or b"") for k, v in r.headers) for r in records
    )


def until(condition: Callable[[], bool], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.1)


def test_fifty_steps_that_resend_their_history_cost_at_most_twice_the_final_transcript_everywhere(
    broker: str, workspace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded: dict[str, dict[str, Any]] = {}
    with treadle.Recorder(workspace, bootstrap_servers=broker, agent="coder", spool_dir=tmp_path / "spool") as recorder:
        handles = []
        for n, (messages, tools) in enumerate(episode()):
            handle = recorder.record(
                messages=messages, tools=tools, episode_id="long", step=n, interaction_id=f"i{n:02}"
            )
            handles.append(handle)
            recorded[handle.interaction_id] = {"messages": messages, "tools": tools}
        for handle in handles:
            recorder.outcome(handle, "reward", 1.0)
        assert recorder.flush(30) == 0

    def records(name: str) -> list[Record]:
        return list(read(broker, name, PARTITIONS))

    graded = topic(workspace, "graded")
    until(lambda: sum(header_map(r.headers).get("ce_type") == GRADED.encode() for r in records(graded)) >= STEPS)
    corpus = tmp_path / "corpus"
    report = run_snapshot(broker, workspace, corpus, Policy(), wait_s=60)
    assert (report.rows, report.refused) == (STEPS, 0)
    found = Corpus.open(corpus)
    found.verify()
    rows = list(found.rows("all"))
    assert len(rows) == STEPS
    for row in rows:
        for name, said in recorded[row.interaction_id].items():
            assert dumps(row.interaction[name]) == dumps(said), "read back byte for byte"

    final = len(dumps(rows[-1].interaction))
    sizes = {
        "input": size(records(topic(workspace, "interactions"))),
        "changelog": size(records(f"treadle.{workspace}.join-rows-changelog")),
        "graded": size(records(graded)),
        "corpus": sum(f.stat().st_size for f in corpus.rglob("*") if f.is_file()),
    }
    ratios = {name: round(taken / final, 2) for name, taken in sizes.items()}
    with capsys.disabled():
        print(f"\nfinal transcript {final / 1000:.0f} KB; times of it: {json.dumps(ratios)}")
    assert max(ratios.values()) <= 2.0, ratios

    with treadle.consume(workspace, "graded", bootstrap_servers=broker, idle_s=1.5) as consumed:
        last = [row for row in consumed if row.interaction_id == "i49"]
        assert dumps(last[-1].interaction["messages"]) == dumps(recorded["i49"]["messages"])
        ends = consumed.positions
    middle = {partition: offset - 3 for partition, offset in ends.items() if offset > 3}
    with treadle.consume(workspace, "graded", start=middle, bootstrap_servers=broker, idle_s=1.5) as consumed:
        assert [dumps(r.interaction["messages"]) for r in consumed][-1:] == [dumps(recorded["i49"]["messages"])]
