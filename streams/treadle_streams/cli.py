"""The commands of the streams side: name -> ("module:attribute", one line of help). Nothing is imported to list them."""

from __future__ import annotations

from typing import Final

__all__ = ["COMMANDS"]

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "workspace": ("treadle_streams.workspaces.commands:workspace", "Create, list, show and delete workspaces."),
    "import": ("treadle_streams.importing.commands:import_", "Bring logs into a workspace; safe to repeat."),
}
