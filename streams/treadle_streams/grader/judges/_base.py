"""What every judge is, and how an interaction is shown to it."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any, Protocol

import msgspec
from treadle_schemas.events import Interaction
from treadle_schemas.ids import Handle

from treadle_streams.grader.verdict import Usage

__all__ = ["Judge", "end_group", "shown_interaction", "split_messages"]


class Judge(Protocol):
    """Judges one interaction at a time, from several threads."""

    @property
    def fingerprint(self) -> str:
        """Short hash of what decides its answers, as far as it is known here."""
        ...

    def estimate(self, interaction: Interaction) -> Usage:
        """What a call will use at most, more or less: it is set aside before the call."""
        ...

    def judge(self, workspace: str, interaction: Interaction) -> tuple[Any, Usage | None]:
        """What the judge said (see `read_verdict`), and what that used (None: as it says itself). Raises JudgeFailed, GraderRefused."""
        ...

    def close(self) -> None:
        """End what it started."""
        ...


def shown_interaction(workspace: str, interaction: Interaction) -> dict[str, Any]:
    """The interaction as JSON, with its handle."""
    plain: dict[str, Any] = msgspec.to_builtins(interaction)
    return {"handle": str(Handle(workspace, interaction.episode, interaction.interaction_id)), **plain}


def split_messages(interaction: Interaction) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What was asked and what was answered: the messages that are the response, by default the last assistant turn."""
    messages = interaction.messages
    marks = interaction.response
    if marks is None:
        turns = [n for n, message in enumerate(messages) if message.get("role") == "assistant"]
        marks = turns[-1:]
    chosen = set(marks)
    return [m for n, m in enumerate(messages) if n not in chosen], [messages[n] for n in sorted(chosen)]


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session of its own, and what it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended meanwhile
