"""Exports as files: JSON lines, one JSON document, which many products write too, or Parquet. Pure but for reading the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from treadle_schemas.canonical import loads
from treadle_schemas.errors import ContractError

from treadle_streams.importing._lines import BadLine, Lines

__all__ = ["JSON_COLUMNS", "Documents", "Source"]

MAX_DOCUMENT_BYTES: Final = 1024 * 1024 * 1024
"""Largest file that is one JSON document; it is read whole. JSON lines have no such bound."""
MAX_EXPORT_LINE_BYTES: Final = 256 * 1024 * 1024
"""Longest line: a line of the collector holds a whole batch of spans."""
JSON_COLUMNS: Final = b"treadle.json"
"""Key of a Parquet file's metadata that names the columns whose texts are JSON."""
PARQUET_ROWS: Final = 256
_SPACE: Final = " \t\r\n"


class Source(Protocol):
    """Where lines come from: numbered objects, and how many bytes were read for them."""

    bytes_read: int

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any] | BadLine]]: ...

    def bad(self, number: int, reason: object) -> BadLine: ...


class Documents:
    """The objects of an export. Of a JSON array its elements, each with the line it begins on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_read = 0
        self._lines = Lines(path, MAX_EXPORT_LINE_BYTES)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
        """(line number, the object or what is wrong with it). Raises OSError."""
        self.bytes_read = 0
        if self.path.suffix == ".parquet":
            yield from self._table()
            return
        if not self._is_one_document():
            self._lines.bytes_read = 0
            for found in self._lines:
                self.bytes_read = self._lines.bytes_read
                yield found
            return
        size = self.path.stat().st_size
        if size > MAX_DOCUMENT_BYTES:
            yield (
                1,
                self.bad(1, f"is one JSON document of {size} bytes; at most {MAX_DOCUMENT_BYTES}. Export JSON lines"),
            )
        else:
            yield from self._whole()
        self.bytes_read = size

    def bad(self, number: int, reason: object) -> BadLine:
        """A bad line of this file."""
        return self._lines.bad(number, reason)

    def _table(self) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
        """The rows of a Parquet file. Columns that an export wrote as JSON come back as what they were."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        size, number = self.path.stat().st_size, 0
        try:
            with pq.ParquetFile(self.path) as file:
                packed = (file.schema_arrow.metadata or {}).get(JSON_COLUMNS, b"").decode().split(",")
                rows = max(file.metadata.num_rows, 1)
                for batch in file.iter_batches(PARQUET_ROWS):
                    for row in batch.to_pylist():
                        number += 1
                        self.bytes_read = size * number // rows
                        yield number, self._unpacked(row, packed, number)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as err:
            yield number + 1, self.bad(number + 1, f"$: no Parquet file: {err}")
        self.bytes_read = size

    def _unpacked(self, row: dict[str, Any], packed: list[str], number: int) -> dict[str, Any] | BadLine:
        try:
            return {
                name: loads(value) if name in packed and isinstance(value, str) else value
                for name, value in row.items()
            }
        except ContractError as err:
            return self.bad(number, err)

    def _is_one_document(self) -> bool:
        """Whether the file is an array, or an object that does not end on its first line."""
        with self.path.open("rb") as file:
            first = file.readline(MAX_EXPORT_LINE_BYTES)
            while first and not first.strip():
                first = file.readline(MAX_EXPORT_LINE_BYTES)
            text = first.removeprefix(b"\xef\xbb\xbf").strip()
            if text.startswith(b"["):
                return True
            if not text.startswith(b"{"):
                return False
            try:
                loads(text)
            except ContractError:
                # an object over several lines begins with a short one; a bad line of many is followed by other objects
                return text == b"{" or not file.readline(64).lstrip().startswith(b"{")
            return False

    def _whole(self) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
        raw = self.path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        try:
            text = raw.decode()
        except UnicodeDecodeError as err:
            number = raw.count(b"\n", 0, err.start) + 1
            yield number, self.bad(number, f"$: not JSON: {err.reason} at byte {err.start}")
            return
        at = _skip(text, 0)
        if text[at : at + 1] != "[":
            yield 1, self._object(text, 1)
            return
        yield from self._elements(text, at)

    def _elements(self, text: str, at: int) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
        decoder = json.JSONDecoder()
        number, counted = 1, 0
        at = _skip(text, at + 1)
        while text[at : at + 1] not in ("]", ""):
            number, counted = number + text.count("\n", counted, at), at
            try:
                _, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as err:
                yield number, self.bad(number, f"$: not JSON: {err}; the rest of the file was not read")
                return
            yield number, self._object(text[at:end], number)
            self.bytes_read = end
            at = _skip(text, end)
            if text[at : at + 1] == ",":
                at = _skip(text, at + 1)
            elif text[at : at + 1] != "]":
                break
        rest = text[at + 1 :].strip(_SPACE)
        if text[at : at + 1] != "]" or rest:
            number += text.count("\n", counted, at)
            yield (
                number,
                self.bad(number, "$: not JSON: the array does not end here; the rest of the file was not read"),
            )

    def _object(self, text: str, number: int) -> dict[str, Any] | BadLine:
        try:
            value = loads(text)
        except ContractError as err:
            return self.bad(number, err)
        return value if isinstance(value, dict) else self.bad(number, f"is a {type(value).__name__}, not an object")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at
