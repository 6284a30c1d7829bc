"""Rows as a writer has them stored: put together from bodies and grades, and what is made of many of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from treadle_schemas.records import GradedRow

from treadle_corpus._bodies import BodyWriter
from treadle_corpus._parts import Parts, whole_rows
from treadle_corpus._rows import Key, RowMeta, grade_of, stored_row
from treadle_corpus._state import State
from treadle_corpus.errors import CorpusDamaged
from treadle_corpus.hashing import line_middle, row_line

__all__ = ["BLOCK_ROWS", "StoredRows"]

BLOCK_ROWS: Final = 1000
"""Bodies held in memory at once: 8 MB at the 8 KB of a usual row."""


class StoredRows:
    """The rows of a state, with their bodies in reach."""

    def __init__(self, path: Path, state: State, bodies: BodyWriter, parts: Parts) -> None:
        self._path = path
        self._state = state
        self._bodies = bodies
        self._parts = parts

    def graded(self, keys: Sequence[Key]) -> Iterator[GradedRow]:
        """Rows without their parts, in the order of `keys`. Raises CorpusDamaged."""
        for start in range(0, len(keys), BLOCK_ROWS):
            metas = [self._state.rows[key] for key in keys[start : start + BLOCK_ROWS]]
            for meta, bulk in zip(metas, self._bodies.bulks([m.bulk for m in metas]), strict=True):
                yield stored_row(bulk, meta.rest)

    def whole(self, keys: Sequence[Key]) -> Iterator[GradedRow]:
        """Rows with their parts put back, in the order of `keys`. Raises CorpusDamaged."""
        for key, row in zip(keys, whole_rows(self.graded(keys), self._parts), strict=True):
            if not isinstance(row, GradedRow):
                raise CorpusDamaged(self._path, f"row {key[0]}/{key[1]}: {row}")
            yield row

    def lines(self, keys: Sequence[Key]) -> list[bytes]:
        """Lines of rows, in the order of `keys`. Raises CorpusDamaged."""
        metas = [self._state.rows[key] for key in keys]
        lines: list[bytes] = []
        by_parts: list[int] = []
        for n, (meta, body) in enumerate(zip(metas, self._bodies.read([m.bulk for m in metas]), strict=True)):
            if body.head:
                grade, side = grade_of(meta.rest)
                lines.append(body.head + line_middle(grade.metrics, grade.reward, side) + body.tail)
            else:
                lines.append(b"")
                by_parts.append(n)
        for n, row in zip(by_parts, self.whole([keys[n] for n in by_parts]), strict=True):
            lines[n] = row_line(row)
        return lines

    def sketched(self, rows: Mapping[Key, RowMeta]) -> dict[Key, RowMeta]:
        """`rows`, of which each that may be a near-duplicate has its sketch. One is made once for each content. Raises CorpusDamaged."""
        from treadle_corpus._sketch import is_present, sketch

        found = dict(rows)
        missing = [key for key, meta in rows.items() if meta.settled and not meta.drop and not is_present(meta.sketch)]
        for key, row in zip(missing, self.whole(missing), strict=True):
            found[key] = msgspec.structs.replace(found[key], sketch=sketch(row.interaction["messages"]))
        return found
