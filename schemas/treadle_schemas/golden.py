"""The JSON Schemas of every event and record, generated from the types and committed beside them in `json/`.

`python -m treadle_schemas.golden` writes them; a test compares. A change that shows there is a change of the contract: a new optional field
is a minor one, everything else needs a new major version of the type.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, Final

import msgspec

from treadle_schemas import codec
from treadle_schemas.events import Interaction, Outcome
from treadle_schemas.records import GradedRow, ImportMarker, Progress, ReleaseEvent, ReleaseManifest, SnapshotRecord
from treadle_schemas.workspace import WorkspaceSettings

__all__ = ["FOLDER", "SCHEMAS", "generate", "write"]

FOLDER: Final = Path(__file__).parent / "json"

SCHEMAS: Final[dict[str, type[msgspec.Struct]]] = {
    codec.INTERACTION: Interaction,
    codec.OUTCOME: Outcome,
    codec.IMPORT_MARKER: ImportMarker,
    codec.GRADED: GradedRow,
    codec.PROGRESS: Progress,
    codec.SNAPSHOT: SnapshotRecord,
    codec.RELEASE: ReleaseEvent,
    codec.SETTINGS: WorkspaceSettings,
    "dev.treadle.release-manifest.v1": ReleaseManifest,
}
"""By type. Clock records have an empty value, dead letters the value of what they stand for, and control records are for operators."""


def generate(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a type."""
    schema = msgspec.json.schema(SCHEMAS[name])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:treadle:schema:{name}",
        **_cleaned(schema),
    }


def _cleaned(node: Any) -> Any:
    # descriptions are docstrings, which Python from 3.13 on dedents by itself
    match node:
        case dict():
            return {
                key: inspect.cleandoc(item) if key == "description" and isinstance(item, str) else _cleaned(item)
                for key, item in node.items()
            }
        case list():
            return [_cleaned(item) for item in node]
        case _:
            return node


def write(folder: Path = FOLDER) -> list[Path]:
    """Write every schema; the files that changed or are new. A schema whose type is gone is left for a person to remove."""
    folder.mkdir(exist_ok=True)
    changed = []
    for name in SCHEMAS:
        path = folder / f"{name}.json"
        text = rendered(name)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            changed.append(path)
    return changed


def rendered(name: str) -> str:
    """The text of a schema's file."""
    return json.dumps(generate(name), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    for path in write():
        print(path)
