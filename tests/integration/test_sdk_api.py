"""Scopes and outcomes of every kind on a real Kafka, also from the command line; each event lies on the partition of its key."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import treadle
from treadle.log import read
from treadle_schemas import Handle, WorkspaceSettings
from treadle_schemas.codec import decode
from treadle_schemas.events import read_interaction, read_outcome
from treadle_schemas.partitioner import partition_of
from treadle_schemas.topics import topic
from treadle_streams import workspaces

PARTITIONS = 2


def outcome_command(broker: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from treadle.cli import main; main()", "--bootstrap-servers", broker, "outcome"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_an_agent_s_episode_and_all_that_is_said_of_it_later_arrive(
    broker: str, workspace_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREADLE_BOOTSTRAP_SERVERS", broker)
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS))
    recorder = treadle.Recorder(workspace_name, agent="coder")
    pull = "pr:org/repo#12"

    @recorder.tool
    async def run_tests(path: str) -> str:
        async with recorder.episode(slot="tester"), recorder.interaction(messages=f"run {path}") as turn:
            return turn.respond("2 passed")

    async def chunks() -> AsyncIterator[dict[str, Any]]:
        for text in ("Fixed", "."):
            delta = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
            yield {"id": f"chatcmpl-{workspace_name}", "choices": [delta]}
        yield {"id": f"chatcmpl-{workspace_name}", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}

    async def agent(n: int) -> str:
        async with recorder.episode(task_id=f"issue-{n}", slot="coder", references=[pull]):
            async with recorder.interaction(messages=f"fix issue {n}") as turn:
                turn.respond("I run the tests first.")
            await run_tests("tests")
            async with recorder.interaction(messages="2 passed") as turn:
                _ = [one async for one in turn.astream(chunks())]
            return turn.handle

    async def main() -> list[str]:
        return await asyncio.gather(*(agent(n) for n in range(5)))

    handles = asyncio.run(main())
    assert recorder.close(30) == 0

    monkeypatch.setenv("TREADLE_WORKSPACE", workspace_name)
    treadle.outcome(handles[0], "pr_merged", True)
    treadle.outcome(f"chatcmpl-{workspace_name}", "csat", 0.9)
    treadle.outcome("https://github.com/org/repo/pull/12", "pr_merged", True)
    treadle.outcome("resp_of_another_process", "csat", 0.1)
    treadle.episode_outcome(handles[1], "solved", True)
    treadle.comment(handles[2], "good")
    treadle.preference(handles[3], over=handles[4])
    treadle.demonstration(handles[4], "Sorry.")
    treadle.rights(handles[4], train="deny")
    assert treadle.flush(30) == 0
    ran = outcome_command(broker, handles[0], "reward=1", "--comment", "fine", "--prefer-over", handles[1])
    assert (ran.returncode, ran.stderr) == (0, "")
    ran = outcome_command(broker, "ticket-17", "solved=true", "--episode", "--workspace", workspace_name)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("episode ticket-17  solved=true")
    monkeypatch.delenv("TREADLE_WORKSPACE")
    ran = outcome_command(broker, pull, "pr_merged=true")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "give --workspace, or set TREADLE_WORKSPACE" in ran.stderr

    records = list(read(broker, topic(workspace_name, "interactions"), PARTITIONS))
    events = [
        read_interaction(decode(r.value, r.headers).data) for r in records if b"interaction_id" in (r.value or b"")
    ]
    # five agents of three interactions each, and the tool's result, which no request repeated word for word as a tool message
    assert len(events) == 20
    assert sorted(e.step for e in events) == sorted([0, 1, 2, 3] * 5)
    testers = [e for e in events if e.slot == "tester"]
    first = {e.interaction_id for e in events if e.step == 0}
    assert {e.parent_id for e in testers} == first
    assert all(pull in (e.references or []) for e in events)
    streamed = [e for e in events if f"response:chatcmpl-{workspace_name}" in (e.references or [])]
    assert {Handle.parse(h).interaction_id for h in handles} == {e.interaction_id for e in streamed}

    said = list(read(broker, topic(workspace_name, "outcomes"), PARTITIONS))
    assert all(r.partition == partition_of(r.key or b"", PARTITIONS) for r in said)
    outcomes = [read_outcome(decode(r.value, r.headers).data) for r in said]
    assert sorted((o.kind, o.name) for o in outcomes) == sorted(
        [
            *[("metric", "pr_merged")] * 2,
            *[("metric", "csat")] * 2,
            *[("metric", "solved")] * 2,
            ("metric", "reward"),
            *[("comment", "comment")] * 2,
            *[("preference", "preference")] * 2,
            ("demonstration", "demonstration"),
            ("rights", "train"),
        ]
    )
    assert {o.reference for o in outcomes if o.reference} == {pull, "response:resp_of_another_process"}
