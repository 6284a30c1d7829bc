"""Golden examples of the contract for producers in any language, generated and committed in `json/examples/`; a test compares.

`python -m treadle_schemas.examples` writes them. `valid/NAME.json` and `invalid/NAME.json` hold {"about", "records"}. A record is what goes
to Kafka, with the content hash of its value and the partition of its key by the topic's number of partitions; one that is wrong says what
a check finds: "expected": {"reason", "field"}. `vectors.json` holds partitions, canonical JSON, hashes, handles and times.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from treadle_schemas.examples._build import PARTITIONS, WORKSPACE, Json
from treadle_schemas.examples._invalid import INVALID
from treadle_schemas.examples._valid import VALID
from treadle_schemas.examples._vectors import vectors
from treadle_schemas.golden import FOLDER as SCHEMA_FOLDER

__all__ = ["FOLDER", "PARTITIONS", "WORKSPACE", "files", "write"]

FOLDER: Final = SCHEMA_FOLDER / "examples"


def files() -> dict[str, str]:
    """The text of every file, by its path below FOLDER."""
    found: dict[str, str] = {"vectors.json": _rendered(vectors())}
    for folder, examples in (("valid", VALID), ("invalid", INVALID)):
        for name, (about, make) in examples.items():
            found[f"{folder}/{name}.json"] = _rendered({"about": about, "records": make()})
    return found


def _rendered(value: Json) -> str:
    # escaped, so that lone surrogates and controls survive every editor
    return json.dumps(value, indent=2, ensure_ascii=True) + "\n"


def write(folder: Path = FOLDER) -> list[Path]:
    """Write every file; those that changed or are new."""
    changed = []
    for name, text in files().items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="ascii") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="ascii")
            changed.append(path)
    return changed
