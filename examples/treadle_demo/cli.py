"""The commands of the demo."""

from __future__ import annotations

__all__ = ["COMMANDS"]

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("treadle_demo._command:demo", "Turn the whole wheel on this machine, with a tiny agent that learns."),
}
