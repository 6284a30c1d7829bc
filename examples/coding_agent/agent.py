"""The agent: `python -m coding_agent.agent REPOSITORY ISSUE FORGE.json` works on an issue until the tests pass, and opens a pull request.

Its work is one episode. Each call of the model is an interaction, each tool call is in the messages, and the handle of the last one goes
into the body of the pull request. That line is all that anybody needs to say later what became of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import treadle

from coding_agent import forge, model

SYSTEM = "You fix bugs. Run the tests first, change as little as you can, run them again, then say what you did."
MOST_STEPS = 10


def main(repository: Path, issue: str, hub: Path) -> None:
    """Workspace and Kafka come from the environment."""
    with treadle.Recorder(agent="coding-agent") as recorder:
        handle, summary = work(recorder, repository, issue)
        number = forge.open_pull(hub, f"Fix {issue}", f"{summary}\n\ntreadle: {handle}\n")
        print(f"pull request {number}: {summary}")


def work(recorder: treadle.Recorder, repository: Path, issue: str) -> tuple[str, str]:
    """Fix the issue; the handle of the last interaction, and what the model says it did."""

    @recorder.tool
    def run_tests() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "unittest", "-q"], cwd=repository, capture_output=True, text=True, check=False
        )
        return "passed" if done.returncode == 0 else done.stderr[-1000:]

    @recorder.tool
    def write_file(path: str, content: str) -> str:
        (repository / path).write_text(content)
        return f"{len(content)} characters written"

    tools: dict[str, Any] = {"run_tests": run_tests, "write_file": write_file}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"{issue} fails its tests."},
    ]
    with recorder.episode(task_id=issue):
        for _ in range(MOST_STEPS):
            with recorder.interaction(messages=messages) as turn:
                completion = turn.respond(model.complete(messages))
            answer = completion["choices"][0]["message"]
            messages.append(answer)
            if not answer.get("tool_calls"):
                return turn.handle, str(answer["content"])
            for call in answer["tool_calls"]:
                result = tools[call["function"]["name"]](**json.loads(call["function"]["arguments"]))
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    raise RuntimeError(f"not done after {MOST_STEPS} steps")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
