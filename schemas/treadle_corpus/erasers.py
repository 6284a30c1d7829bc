"""The corpora's part of an erasure, see `treadle_schemas.erasing`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from treadle_schemas.erasing import ErasureRequest, StoreReport

from treadle_corpus._moments import workspace_of
from treadle_corpus.erasure import erase, erasures, rows_of
from treadle_corpus.errors import CorpusError, CorpusMissing
from treadle_corpus.objects.place import name_of, place_at
from treadle_corpus.reader import Corpus

__all__ = ["ERASERS", "corpora_of", "erase_corpora"]

ERASERS: Final[tuple[tuple[str, str], ...]] = (("corpora", "treadle_corpus.erasers:erase_corpora"),)
WAIT_S: Final = 60.0
"""How long a snapshotter has to let go of its corpus. A run takes seconds."""


def corpora_of(request: ErasureRequest) -> list[Path]:
    """The corpora that may have rows of the workspace: below home and corpus root, and those that the request names."""
    roots = [request.home / "corpora", *([Path(request.corpus_root)] if request.corpus_root else [])]
    below = (marker.parent for root in roots for depth in ("*", "*/*") for marker in root.glob(f"{depth}/corpus.json"))
    named = (path for path in request.corpora if place_at(path) is not None or path.exists())
    return sorted(
        {path if place_at(path) is not None else path.resolve() for path in [*below, *named] if path.name[0] != "."}
    )


def erase_corpora(request: ErasureRequest) -> Iterator[StoreReport]:
    """Erase the episodes from each corpus of the workspace, with its token columns. A corpus that cannot be erased now is reported."""
    for path in corpora_of(request):
        try:
            report = _published(path, request) if place_at(path) is not None else _erased(path, request)
        except CorpusMissing:
            continue
        except CorpusError as err:
            report = StoreReport(store="corpus", place=name_of(path), remains=(f"{err}; then erase again",))
        if report is not None:
            yield report


def _erased(path: Path, request: ErasureRequest) -> StoreReport | None:
    if workspace_of(path) != request.workspace:
        return None
    if request.dry_run:
        found = rows_of(path, request.episodes)
        versions = tuple(f"v{n} has {count:,} of them" for n, count in sorted(found.removed.items()))
        return (
            None
            if found.nothing
            else StoreReport(store="corpus", place=str(path), rows=len(found.rows), notes=versions)
        )
    record = erase(path, request.episodes, reason=request.reason, erased_at=request.erased_at, wait_s=WAIT_S)
    # called again, it says what it did
    record = record or next((one for one in erasures(path) if one.erased_at == request.erased_at), None)
    if record is None or not (record.rows or record.versions):
        return None
    changed = ", ".join(f"v{n}" for n in sorted(record.versions))
    notes = (f"{changed} have other content now, as erasure {record.number} records",) if changed else ()
    return StoreReport(store="corpus", place=str(path), rows=len(record.rows), notes=notes)


def _published(path: Path, request: ErasureRequest) -> StoreReport | None:
    """A corpus in an object store is not made again there: say so where it has any of the rows."""
    with Corpus.open(path) as newest:
        if newest.manifest.workspace != request.workspace:
            return None
        keys = newest.keys()
    rows = sum(key[0] in request.episodes for key in keys)
    if not rows:
        return None
    return StoreReport(
        store="corpus",
        place=name_of(path),
        remains=(
            f"it has {rows:,} of the rows, and versions in an object store are never written again: snapshot to another prefix, and "
            "delete this one",
        ),
    )
