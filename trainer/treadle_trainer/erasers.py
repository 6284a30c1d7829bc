"""The trainer's part of an erasure: rows in the folders of jobs that were cut short, and the names of releases that learnt from what goes.

What a model learnt cannot be taken out of it. Rows in a job's folder are copies of what the corpus has, made again by the next try, so all
of them go, whoever said what is in them: that is cheaper than to look, and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from treadle_schemas.erasing import ErasureRequest, StoreReport

from treadle_trainer._files import locked
from treadle_trainer.concerned import concerned_releases

__all__ = ["ERASERS", "erase_job_rows", "name_releases"]

ERASERS: Final[tuple[tuple[str, str], ...]] = (
    ("releases", "treadle_trainer.erasers:name_releases"),
    ("jobs", "treadle_trainer.erasers:erase_job_rows"),
)


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


def erase_job_rows(request: ErasureRequest) -> Iterator[StoreReport]:
    """Remove the rows in the folders of jobs, or say which job reads them now."""
    from treadle_trainer.jobs import remove, rows_in, size_of

    root = request.home / "jobs"
    if not root.is_dir():
        return
    with locked(root / "device.lock", wait=False) as idle:
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            found = list(rows_in(folder))
            if not found:
                continue
            size = sum(map(size_of, found))
            if not idle:
                yield StoreReport(
                    store="job",
                    place=str(folder),
                    remains=("a job runs, and this may be what it reads: erase again when it is over, or cancel it",),
                )
                continue
            if not request.dry_run:
                for path in found:
                    remove(path)
            yield StoreReport(store="job", place=str(folder), bytes=size)
