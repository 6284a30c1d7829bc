"""How the demo's processes talk: JSON lines, commands in on stdin, answers out on stdout.

The library prints of a child go to stderr, so that stdout carries answers alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import orjson

__all__ = ["answer", "commands"]


def commands() -> Iterator[dict[str, Any]]:
    """The commands that arrive, until the orchestrator closes the pipe."""
    for line in sys.stdin.buffer:
        if line.strip():
            yield orjson.loads(line)


def answer(**fields: Any) -> None:
    """Send one answer."""
    os.write(_ANSWERS, orjson.dumps(fields) + b"\n")


def _keep_stdout() -> int:
    kept = os.dup(1)
    os.dup2(2, 1)  # a stray print must not end up among the answers
    return kept


_ANSWERS = _keep_stdout() if os.environ.get("TREADLE_DEMO_CHILD") else 1
