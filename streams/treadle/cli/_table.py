"""The SDK's own commands, in the form of every package's table."""

from __future__ import annotations

from typing import Final

__all__ = ["COMMANDS"]

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "outcome": ("treadle.cli._outcome:outcome", "Say what became of an interaction."),
    "redact": ("treadle.cli._redact:redact", "Say what a PII policy would take out of a file."),
    "version": ("treadle.cli._version:version", "Print the version of treadle and of what it runs on."),
}
