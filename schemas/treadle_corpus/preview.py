"""What a version would hold, folded in memory: nothing is written, and no corpus is needed."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from treadle_schemas.errors import FieldError
from treadle_schemas.records import GradedRow

from treadle_corpus._decide import decide
from treadle_corpus._parts import PartKey, PartMeta, PartRecord, Parts, whole_rows
from treadle_corpus._rows import GradedRecord, Key, RowMeta, absorb
from treadle_corpus._tally import Tally, kinds_of
from treadle_corpus.policy import Policy
from treadle_corpus.selector import Refusal, Selector

__all__ = ["Preview"]

_BLOCK_ROWS: Final = 1000
_LARGE: Final = ("messages", "tools", "transcript", "claims")
"""Fields of an interaction that no selector looks at."""


class Preview:
    """A fold of `.graded` from its beginning, as CorpusWriter makes it, held in memory.

    It keeps what selectors look at, not the messages; of long contexts the parts, compressed.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.watermark_ms = 0
        """Newest time of the records so far."""
        self._rows: dict[Key, RowMeta] = {}
        self._seen: dict[Key, GradedRow] = {}
        self._kinds: dict[str, set[str]] = {}
        self._bodies: list[bytes] = []
        self._known: dict[PartKey, tuple[int, PartMeta]] = {}
        self._parts = Parts(Path("."), lambda rows: [zlib.decompress(self._bodies[row]) for row in rows], self._known)

    @property
    def metric_kinds(self) -> dict[str, frozenset[str]]:
        """As CorpusWriter.metric_kinds."""
        return {name: frozenset(kinds) for name, kinds in self._kinds.items()}

    def settled(self, key: Key) -> bool | None:
        """Is the row settled by its last revision? None for a row that was never seen."""
        meta = self._rows.get(key)
        return None if meta is None else meta.settled

    def unsettled(self) -> Iterator[Key]:
        """Rows that settled once and are unsettled again."""
        return (key for key, meta in self._rows.items() if not meta.settled)

    def apply(self, records: Sequence[GradedRecord | PartRecord], watermark_ms: int) -> list[Refusal]:
        """Fold one batch, in the order of its partitions; the records that contradict what is known, as CorpusWriter.apply finds them."""
        refused: list[Refusal] = []
        for key, (meta, body) in self._parts.news(r for r in records if isinstance(r, PartRecord)).items():
            row, _ = self._known.get(key, (len(self._bodies), meta))
            packed = zlib.compress(body, 1)
            if row < len(self._bodies):
                self._bodies[row] = packed  # it is erased now
            else:
                self._bodies.append(packed)
            self._known[key] = (row, meta)
        rows = [(n, record) for n, record in enumerate(records) if isinstance(record, GradedRecord)]
        whole = whole_rows((record.row for _, record in rows), self._parts)
        for (position, record), content in zip(rows, whole, strict=True):
            try:
                after = absorb(self._rows.get(record.key), record, content)
            except FieldError as err:
                refused.append(Refusal(position, str(err)))
                continue
            if after is not None:
                self._rows[record.key] = self._sketched(after, content)
                self._seen[record.key] = _slim(record.row)
                kinds_of(record.row, self._kinds)
        self.watermark_ms = max(self.watermark_ms, watermark_ms)
        return refused

    def finish(self, selector: Selector) -> tuple[Tally, dict[str, int]]:
        """Where each row would stand, and the members by side of the split: train, heldout."""
        settled = [key for key, meta in self._rows.items() if meta.settled]
        decided = dict(self._rows)
        for start in range(0, len(settled), _BLOCK_ROWS):
            block = settled[start : start + _BLOCK_ROWS]
            found = selector.select([self._seen[key] for key in block])
            for key, decision in zip(block, found, strict=True):
                decided[key] = msgspec.structs.replace(decided[key], decision=decision)
        after = _with(decided, decide(decided, self.policy, self.watermark_ms))
        sides = Counter(meta.side for meta in after if meta.status == "member")
        return Tally.of(after), {side: sides[side] for side in ("train", "heldout")}

    def _sketched(self, meta: RowMeta, content: object) -> RowMeta:
        if self.policy.near is None or not isinstance(content, GradedRow) or meta.drop:
            return meta
        from treadle_corpus._sketch import is_present, sketch

        return (
            meta
            if is_present(meta.sketch)
            else msgspec.structs.replace(meta, sketch=sketch(content.interaction["messages"]))
        )


def _slim(row: GradedRow) -> GradedRow:
    small: dict[str, Any] = {name: value for name, value in row.interaction.items() if name not in _LARGE}
    return msgspec.structs.replace(row, interaction=small)


def _with(rows: Mapping[Key, RowMeta], statuses: Mapping[Key, Any]) -> list[RowMeta]:
    return [msgspec.structs.replace(meta, status=statuses[key]) for key, meta in rows.items()]
