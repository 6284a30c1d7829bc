"""Following a file of JSON lines while somebody writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["new_lines"]


def new_lines(path: Path, seen: int) -> tuple[int, list[dict[str, Any]]]:
    """Where to go on, and the whole lines beyond byte `seen`. A file that is not there yet has none."""
    try:
        with path.open("rb") as file:
            file.seek(seen)
            data = file.read()
    except FileNotFoundError:
        return seen, []
    whole = data[: data.rfind(b"\n") + 1]
    return seen + len(whole), [json.loads(line) for line in whole.splitlines()]
