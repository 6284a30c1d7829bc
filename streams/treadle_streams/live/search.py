"""Searching a live index: rank by words, and by likeness where there is an embedder; then grade, filter and cut.

Two rankings are fused by reciprocal rank: the score of a row is the sum over rankings of weight / (60 + rank) (Cormack, Clarke,
Buettcher: Reciprocal Rank Fusion, SIGIR 2009).
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from treadle.recall import Hit
from treadle_schemas.canonical import loads
from treadle_schemas.ids import Handle
from treadle_schemas.records import Grade, GradedRow, Progress, Provenance
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams import filter as filters
from treadle_streams.live.embedding import Embedder, load_embedder
from treadle_streams.live.errors import EmbedderError, IndexDamaged, IndexMissing
from treadle_streams.live.extract import ASKED_CHARS
from treadle_streams.live.folder import IndexFolder
from treadle_streams.live.pushdown import equalities
from treadle_streams.live.snippets import snippet
from treadle_streams.live.store import FORMAT, Row, Rows
from treadle_streams.live.text import TextIndex
from treadle_streams.live.vectors import VectorIndex

__all__ = ["MAX_HITS", "Recall", "fused"]

_LOG: Final = logging.getLogger("treadle")

MAX_HITS: Final = 1_000
_FUSION: Final = 60
_FIRST_LOOK: Final = 200
"""Fewest candidates of a ranking. Fusion of fewer is worse, and a filter that selects one of ten is then mostly satisfied at once."""
_WIDER: Final = 8
"""How many times more candidates are looked at when too few passed the filter."""
_MOST_LIKE: Final = 3_200
"""Most candidates of likeness: every row is like any other to some degree, and far down it means nothing."""
_LIKENESS: Final = 0.35
"""Weight of the ranking by likeness; that of words is 1. From 0.2 to 0.5 it makes little difference (docs/recall.md)."""
_FILTERS: Final = 16
_PROGRESS: Final = msgspec.json.Decoder(Progress)


class Recall:
    """The index of one workspace, opened for searching. For any thread of one process; make a new one in a forked child."""

    def __init__(self, home: Path, workspace: str, *, embedder: Embedder | None = None, hybrid: bool = True) -> None:
        """`embedder` takes the place of the one that the indexer was started with, by name; without `hybrid` only words count.

        Raises IndexMissing, IndexDamaged.
        """
        self._folder = IndexFolder(home, workspace)
        self._lock = threading.Lock()
        self._hybrid = hybrid
        self._embedder = embedder
        self._rows: Rows | None = None
        self._filters: dict[tuple[Any, ...], filters.Filter] = {}
        with self._lock:
            self._open()

    def search(self, query: str, n: int = 10, filter: str | None = None) -> list[Hit]:
        """The `n` rows that fit best, the best first. Raises FilterError, IndexMissing, ValueError for an `n` that is none."""
        if not 1 <= n <= MAX_HITS:
            raise ValueError(f"n: {n} is not from 1 to {MAX_HITS}")
        with self._lock:
            self._refresh()
            try:
                return self._search(query, n, filter)
            except (sqlite3.Error, ValueError, OSError):
                # its files were replaced in between
                self._open()
                return self._search(query, n, filter)

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            if self._rows is not None:
                self._rows.close()
                self._rows = None

    def _search(self, query: str, n: int, text: str | None) -> list[Hit]:
        assert self._rows is not None
        wanted = None if text is None else self._filter(text)
        facets = {} if text is None else equalities(text)
        vector = self._vector(query)
        limit = max(_FIRST_LOOK, 4 * n)
        judged: dict[int, bool] = {}
        while True:
            ranked, exhausted = self._ranked(query, vector, limit, facets)
            scores = dict(fused(ranked))
            fresh = [number for number in scores if number not in judged]
            # rows that are not shown any more pass no filter
            judged.update(dict.fromkeys(fresh, False))
            if wanted is None:
                judged.update(dict.fromkeys(self._rows.visible(fresh), True))
            else:
                rows = self._rows.by_ids(fresh, texts=False)
                matches = wanted.matches([self._graded(row) for row in rows])
                judged.update((row.id, match is True) for row, match in zip(rows, matches, strict=True))
            passed = [number for number in scores if judged[number]]
            if len(passed) >= n or exhausted:
                break
            limit *= _WIDER
        best = self._rows.by_ids(passed[:n])
        return [self._hit(row, scores[row.id], query) for row in best]

    def _ranked(
        self, query: str, vector: Any, limit: int, facets: Mapping[str, str]
    ) -> tuple[list[tuple[float, list[int]]], bool]:
        """The rankings with their weights, and whether looking at more candidates would give no more."""
        assert self._rows is not None
        found = self._text.search(query, limit, facets)
        rankings = [(1.0, [number for number, _ in found])]
        exhausted = len(found) < limit
        if vector is not None and self._vectors is not None:
            near = self._vectors.search(vector, min(limit, _MOST_LIKE))
            rankings.append((_LIKENESS, self._rows.in_slots([slot for slot, _ in near])))
            exhausted = exhausted and (len(near) < limit or limit >= _MOST_LIKE)
        return rankings, exhausted

    def _hit(self, row: Row, score: float, query: str) -> Hit:
        said = loads((row.captured or "{}").encode())
        progress = None if row.progress is None else _PROGRESS.decode(row.progress)
        grade = self._graded(row).grade
        request, response = row.request or "", row.response or ""
        return Hit(
            handle=str(Handle(self._settings.workspace, row.episode, row.interaction)),
            score=score,
            snippet=snippet(row.text, query),
            request=request,
            response=response,
            agent=said.get("agent", ""),
            slot=said.get("slot", "main"),
            model=said.get("model"),
            release=said.get("release"),
            task_id=said.get("task_id"),
            status=said.get("status", "ok"),
            started_at=said.get("started_at", ""),
            ended_at=said.get("ended_at", ""),
            tags=said.get("tags") or {},
            state="unknown" if progress is None else "settled" if grade.settled else "pending",
            reward=grade.reward,
            metrics=grade.metrics,
        )

    def _graded(self, row: Row) -> GradedRow:
        """The row as filters read it. The metrics of one that the join has not graded yet are pending."""
        progress = None if row.progress is None else _PROGRESS.decode(row.progress)
        ungraded = Grade(
            metrics={metric.name: ("pending", None) for metric in self._settings.metrics},
            reward=None,
            completeness=0.0,
            settled=False,
            grading_version=self._settings.grading_version,
        )
        return GradedRow(
            episode_id=row.episode,
            interaction_id=row.interaction,
            interaction=loads((row.captured or "{}").encode()),
            grade=ungraded if progress is None else progress.grade,
            split="heldout" if (progress.split if progress else row.side) == "heldout" else "train",
            split_group="",
            provenance=Provenance(
                revision=row.revision or 0,
                graded_at="",
                append_ms=row.append_ms or 0,
                interaction_offset=row.position or 0,
                partition=row.partition or 0,
                outcome_ids=[],
            ),
        )

    def _vector(self, query: str) -> Any:
        if self._vectors is None or self._embedder is None:
            return None
        return self._embedder([query[:ASKED_CHARS]])[0]

    # ---- opening

    def _refresh(self) -> None:
        try:
            if self._rows is None or self._rows.meta("generation") != self._generation:
                self._open()
        except sqlite3.Error:
            self._open()

    def _open(self) -> None:
        if self._rows is not None:
            self._rows.close()
            self._rows = None
        if not self._folder.rows.exists():
            raise IndexMissing(self._folder.workspace, self._folder.path)
        try:
            rows = Rows(self._folder.rows, writable=False)
            problem = rows.unusable({"format": FORMAT, "workspace": self._folder.workspace})
            if problem is not None:
                rows.close()
                raise IndexDamaged(self._folder.path, problem)
            self._generation = rows.meta("generation")
            self._settings = msgspec.convert(loads((rows.meta("settings") or "{}").encode()), WorkspaceSettings)
            generation = int(self._generation or 1)
            self._text = TextIndex(self._folder.text(generation))
            self._vectors = self._opened_vectors(rows, generation)
        except (sqlite3.Error, ValueError, msgspec.ValidationError) as err:
            raise IndexDamaged(self._folder.path, str(err)) from err
        self._rows = rows

    def _opened_vectors(self, rows: Rows, generation: int) -> VectorIndex | None:
        name, dimension = rows.meta("embedder") or "", int(rows.meta("dimension") or 0)
        if not (self._hybrid and name and dimension):
            return None
        if self._embedder is None or self._embedder.name != name:
            try:
                self._embedder = load_embedder(name)
            except EmbedderError as err:
                _LOG.warning("recall ranks by words alone: %s", err)
                return None
        return VectorIndex(self._folder.vectors(generation), dimension)

    def _filter(self, text: str) -> filters.Filter:
        assert self._rows is not None
        types = filters.metric_types(self._settings, self._rows.metrics())
        now_ms = math.ceil(time.time()) * 1000
        # a filter that asks for the time is compiled once a second, any other once
        stamp = now_ms if "now" in text.lower() else 0
        key = (text, tuple(sorted(types.items())), stamp)
        if key not in self._filters:
            made = filters.compile(text, types, now_ms)
            while len(self._filters) >= _FILTERS:
                del self._filters[next(iter(self._filters))]
            self._filters[key] = made
        return self._filters[key]


def fused(rankings: Sequence[tuple[float, Sequence[int]]]) -> list[tuple[int, float]]:
    """Rows with their scores, the best first, from rankings (weight, ids in order). A tie goes to the earlier ranking's order."""
    scores: dict[int, float] = {}
    for weight, ids in rankings:
        for rank, number in enumerate(ids, 1):
            scores[number] = scores.get(number, 0.0) + weight / (_FUSION + rank)
    return sorted(scores.items(), key=lambda item: -item[1])
