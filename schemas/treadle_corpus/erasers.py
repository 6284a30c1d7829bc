"""The corpora's part of an erasure, see `treadle_schemas.erasing`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from treadle_schemas.erasing import ErasureRequest, StoreReport

from treadle_corpus._moments import workspace_of
from treadle_corpus.erasure import erase, erasures, rows_of
from treadle_corpus.errors import CorpusError, CorpusMissing
from treadle_corpus.objects.eraser import bytes_written, rows_in_work, workspace_here
from treadle_corpus.objects.place import name_of, place_at, places_below

__all__ = ["ERASERS", "corpora_of", "erase_corpora"]

ERASERS: Final[tuple[tuple[str, str], ...]] = (("corpora", "treadle_corpus.erasers:erase_corpora"),)
WAIT_S: Final = 60.0
"""How long a snapshotter has to let go of its corpus. A run takes seconds."""


def corpora_of(request: ErasureRequest) -> list[Path]:
    """The corpora that may have rows of the workspace: below home and corpus root, in object stores that this home knows, and those that
    the request names.
    """
    roots = [request.home / "corpora", *([Path(request.corpus_root)] if request.corpus_root else [])]
    below = (marker.parent for root in roots for depth in ("*", "*/*") for marker in root.glob(f"{depth}/corpus.json"))
    known = places_below(request.home)
    named = (path for path in request.corpora if place_at(path) is not None or path.exists())
    return sorted(
        {
            path if place_at(path) is not None else path.resolve()
            for path in [*below, *known, *named]
            if path.name[0] != "."
        }
    )


def erase_corpora(request: ErasureRequest) -> Iterator[StoreReport]:
    """Erase the episodes from each corpus of the workspace, with its token columns. A corpus that cannot be erased now is reported."""
    for path in corpora_of(request):
        try:
            report = _erased(path, request)
        except CorpusMissing:
            report = _left_of(path, request)
        except CorpusError as err:
            report = StoreReport(store="corpus", place=name_of(path), remains=(f"{err}; then erase again",))
        if report is not None:
            yield report


def _left_of(path: Path, request: ErasureRequest) -> StoreReport | None:
    """Of a corpus that is not there any more a copy may be here."""
    place = place_at(path)
    if place is None or workspace_here(place) != request.workspace:
        return None
    remains = f"the corpus is not there any more, and what was fetched or made of it here is in {path}*: delete that"
    return StoreReport(store="corpus", place=name_of(path), remains=(remains,))


def _erased(path: Path, request: ErasureRequest) -> StoreReport | None:
    place = place_at(path)
    here = None if place is None else workspace_here(place)
    if (here or workspace_of(path)) != request.workspace:
        return None
    if request.dry_run:
        found = rows_of(path, request.episodes)
        if place is not None:
            found.rows |= rows_in_work(place, request.episodes).rows
        versions = tuple(f"v{n} has {count:,} of them" for n, count in sorted(found.removed.items()))
        return (
            None
            if found.nothing
            else StoreReport(store="corpus", place=name_of(path), rows=len(found.rows), notes=versions)
        )
    record = erase(path, request.episodes, reason=request.reason, erased_at=request.erased_at, wait_s=WAIT_S)
    # called again, it says what it did
    record = record or next((one for one in erasures(path) if one.erased_at == request.erased_at), None)
    if record is None or not (record.rows or record.versions):
        return None
    changed = ", ".join(f"v{n}" for n in sorted(record.versions))
    notes = (f"{changed} have other content now, as erasure {record.number} records",) if changed else ()
    size = 0 if place is None else bytes_written(place, record.number)
    return StoreReport(store="corpus", place=name_of(path), rows=len(record.rows), bytes=size, notes=notes)
