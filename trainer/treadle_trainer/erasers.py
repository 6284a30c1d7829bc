"""The trainer's part of an erasure: it names the releases that learnt from what goes. What a model learnt cannot be taken out of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from treadle_schemas.erasing import ErasureRequest, StoreReport

from treadle_trainer.concerned import concerned_releases

__all__ = ["ERASERS", "name_releases"]

ERASERS: Final[tuple[tuple[str, str], ...]] = (("releases", "treadle_trainer.erasers:name_releases"),)


def name_releases(request: ErasureRequest) -> Iterator[StoreReport]:
    """A report for each release that was trained on the rows, by itself or through another. Raises RegistryError."""
    root = Path(request.corpus_root) if request.corpus_root is not None else request.home / "corpora"
    problems: list[str] = []
    for entry in concerned_releases(
        request.home, root, request.workspace, request.rows, request.subjects, problems.append
    ):
        rows = "rows unknown" if entry["rows"] is None else f"{entry['rows']} of its rows"
        champion = ", the champion" if entry["champion"] else ""
        yield StoreReport(
            store="release",
            place=entry["release"],
            notes=(f"was trained on {entry['corpus']}, {rows}{champion}: train it anew, or retire it", *problems),
        )
