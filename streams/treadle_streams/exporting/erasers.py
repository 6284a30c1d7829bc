"""The exports' part of an erasure, see `treadle_schemas.erasing`: it comes after that of the corpora."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from treadle_corpus import CorpusError, workspace_of
from treadle_corpus.erasers import corpora_of
from treadle_corpus.erasure import rows_of
from treadle_corpus.exports import exports, state_of
from treadle_corpus.objects.place import name_of
from treadle_schemas.erasing import ErasureRequest, StoreReport

from treadle_streams.exporting.rewriting import rewrite_exports

__all__ = ["ERASERS", "erase_exports"]

ERASERS: Final[tuple[tuple[str, str], ...]] = (("exports", "treadle_streams.exporting.erasers:erase_exports"),)


def erase_exports(request: ErasureRequest) -> Iterator[StoreReport]:
    """Write the exports of changed versions again, and name those that are not as they were written."""
    for path in corpora_of(request):
        if not exports(path):
            continue
        try:
            if workspace_of(path) != request.workspace:
                continue
            if request.dry_run:
                yield from _planned(path, rows_of(path, request.episodes).removed)
                continue
            for done in rewrite_exports(path):
                remains = (done.remains,) if done.remains else ()
                yield StoreReport(store="export", place=done.export.file, rows=max(0, done.removed), remains=remains)
        except (CorpusError, OSError) as err:
            yield StoreReport(
                store="export", place=name_of(path), remains=(f"its exports were not written again: {err}",)
            )


def _planned(path: Path, versions: dict[int, int]) -> Iterator[StoreReport]:
    for export in exports(path):
        if versions.get(export.version):
            note = f"v{export.version} as {export.view}, {state_of(export)}"
            yield StoreReport(store="export", place=export.file, notes=(note,))
