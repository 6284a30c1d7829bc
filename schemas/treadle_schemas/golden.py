"""The JSON Schemas of every event and record, generated from the types and committed beside them in `json/`.

`python -m treadle_schemas.golden` writes them; a test compares. A change that shows there is a change of the contract: a new optional field
is a minor one, everything else needs a new major version of the type.

`python -m treadle_schemas.golden --release 0.2.0` keeps the present ones as those of a release, in `json/history/`. A test compares the
present ones with every release's, by `compatibility`.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from pathlib import Path
from typing import Any, Final

import msgspec

from treadle_schemas import codec
from treadle_schemas.errors import SettingError, shown
from treadle_schemas.events import EpisodeEnd, Erasure, Interaction, Outcome
from treadle_schemas.parts import PartRecord
from treadle_schemas.records import (
    Announcement,
    GradedRow,
    ImportMarker,
    Progress,
    Regraded,
    ReleaseEvent,
    ReleaseManifest,
    SnapshotRecord,
)
from treadle_schemas.workspace import WorkspaceSettings

__all__ = ["FOLDER", "HISTORY", "SCHEMAS", "generate", "release", "releases", "write"]

FOLDER: Final = Path(__file__).parent / "json"
HISTORY: Final = FOLDER / "history"
"""The schemas of earlier releases, a folder each."""

SCHEMAS: Final[dict[str, type[msgspec.Struct]]] = {
    codec.INTERACTION: Interaction,
    codec.OUTCOME: Outcome,
    codec.PART: PartRecord,
    codec.EPISODE_END: EpisodeEnd,
    codec.ERASURE: Erasure,
    codec.REFERENCE: Announcement,
    codec.IMPORT_MARKER: ImportMarker,
    codec.GRADED: GradedRow,
    codec.PROGRESS: Progress,
    codec.REGRADED: Regraded,
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


def releases(history: Path = HISTORY) -> list[str]:
    """The releases whose schemas are kept, the first one first."""
    found = [path.name for path in history.iterdir() if path.is_dir()] if history.is_dir() else []
    return sorted(found, key=lambda name: [int(part) for part in name.split(".")])


def release(version: str, history: Path = HISTORY) -> list[Path]:
    """Keep the present schemas as those of a release. Raises SettingError where it has others already: a release does not change."""
    if not re.fullmatch(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}", version):
        raise SettingError(f"release {shown(version)}: expected three numbers such as 0.2.0")
    folder = history / version
    wanted = {folder / f"{name}.json": rendered(name) for name in SCHEMAS}
    if folder.is_dir():
        other = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
        if other:
            raise SettingError(
                f"{other[0]}: release {version} has other schemas already, and a release does not change"
            )
        return []
    folder.mkdir(parents=True)
    for path, text in wanted.items():
        path.write_text(text)
    return list(wanted)


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m treadle_schemas.golden", description="Write the JSON Schemas of the contract."
    )
    parser.add_argument("--release", metavar="VERSION", help="keep the present schemas as those of a release")
    chosen = parser.parse_args().release
    for path in [*write(), *(release(chosen) if chosen else ())]:
        print(path)


if __name__ == "__main__":
    _main()
