"""Examples as files: JSON lines, or Parquet. A file appears whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from treadle_corpus.views import jsonl
from treadle_schemas.canonical import dumps

from treadle_streams.exporting.errors import NotATable
from treadle_streams.importing._documents import JSON_COLUMNS

__all__ = ["write_lines"]


def write_lines(lines: Sequence[Any], out: str, *, nested: bool) -> None:
    """Write lines to `out`, - for stdout; a name that ends with .parquet is Parquet.

    In Parquet, lists and objects are nested columns, as other trainers want them, or with `nested` false their JSON as text, which holds
    anything. Raises NotATable where nested columns cannot hold them, OSError.
    """
    if not out.endswith(".parquet") and any(line.get("images") for line in lines):
        raise NotATable(
            "these examples have images, which a line of JSON cannot hold: name a file that ends with .parquet"
        )
    if out == "-":
        sys.stdout.buffer.writelines(jsonl(lines))
        sys.stdout.buffer.flush()
    elif out.endswith(".parquet"):
        _whole(Path(out), lambda path: _parquet(path, lines, nested))
    else:
        _whole(Path(out), lambda path: _text(path, jsonl(lines)))


def _text(path: Path, lines: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(lines)


def _parquet(path: Path, lines: Sequence[dict[str, Any]], nested: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for line in lines for name in line))
    columns: dict[str, Any] = {}
    packed: list[str] = []
    for name in names:
        values = [line.get(name) for line in lines]
        if name == "images" and nested:  # as `datasets` knows them
            kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
            columns[name] = pa.array([[{"bytes": one, "path": None} for one in line[name]] for line in lines], kind)
            continue
        if not nested and any(isinstance(value, list | dict) for value in values):
            packed.append(name)
            values = [None if value is None else dumps(value).decode() for value in values]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as err:
            raise NotATable(
                f"{path.name.removesuffix('.part')}: column {name!r} cannot be a Parquet column, since its values differ in kind ({err}). "
                "Write JSON lines: name the file .jsonl"
            ) from None
    table = pa.table(columns).replace_schema_metadata({JSON_COLUMNS: ",".join(packed).encode()})
    pq.write_table(table, path, compression="zstd")


def _whole(path: Path, write: Callable[[Path], None]) -> None:
    fresh = path.with_name(path.name + ".part")
    try:
        write(fresh)
        with fresh.open("rb+") as written:
            os.fsync(written.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
