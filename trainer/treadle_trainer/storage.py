"""What the trainer keeps on disk, what of it nobody needs, and room for the next job within a budget.

The budget is of the machine, not of a slot: all slots of a TREADLE_HOME share one disk, and a slot's own share would have to be given up
whenever another one grows. It counts

    the folders of jobs (checkpoints, models on their way)  +  token columns beside corpora  +  releases

Freed are, in this order and only as far as room is wanted: what jobs left that are done or superseded, token columns of older versions,
what jobs left that failed or were cancelled (resumed, they begin anew), and with a budget the releases that `treadle release gc` would
collect. Trainings by hand are left alone: nobody but their owner knows whether they are over.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from treadle_trainer._files import locked
from treadle_trainer.errors import DiskFull, TrainerError
from treadle_trainer.jobs import CHECKPOINTS, MODEL, remove, rows_in, size_of
from treadle_trainer.queue import Job, JobQueue
from treadle_trainer.registry import Registry, collectable, slots

if TYPE_CHECKING:
    from treadle_trainer.policy import TrainingPolicy

__all__ = ["Leftover", "Storage", "Use", "bytes_text", "wanted_by"]

MODELS: Final = 2
"""Copies of the model that a job makes: its own, and the release."""
CHECKPOINTS_AT_ONCE: Final = 3
"""With `save_steps`: two that are kept, and one that is being written."""
CHECKPOINT_MODELS: Final = 3
"""A checkpoint of all weights: these, and two moments of the optimiser for each."""
_COLUMNS: Final = re.compile(r"v(\d+)-(\w+)-")
_RELEASES_KEPT: Final = 3


class Leftover(NamedTuple):
    """Something that can be made again, or that nobody will ask for."""

    kind: Literal["checkpoints", "model", "rows", "columns", "release"]
    place: str
    bytes: int
    of: str
    """Whose it was, in words."""
    quiet: bool = False
    """Whether a job that runs now may be using it."""


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes."""

    jobs: int
    columns: int
    releases: int
    free: int
    """On the file system of the jobs."""
    budget: int | None

    @property
    def total(self) -> int:
        """What counts against the budget."""
        return self.jobs + self.columns + self.releases

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {bytes_text(getattr(self, name))}" for name in ("jobs", "columns", "releases"))
        return f"{bytes_text(self.total)} ({parts})"


class Storage:
    """Everything of one TREADLE_HOME. `budget` in bytes; None: as much as the disk has."""

    def __init__(self, registry_root: Path, jobs_root: Path, corpus_root: Path, budget: int | None = None) -> None:
        self._registry, self._jobs, self._corpora, self.budget = registry_root, jobs_root, corpus_root, budget

    def use(self) -> Use:
        """Measure."""
        self._jobs.mkdir(parents=True, exist_ok=True)
        return Use(
            jobs=size_of(self._jobs),
            columns=sum(size_of(folder) for folder in self._token_folders()),
            releases=size_of(self._registry),
            free=shutil.disk_usage(self._jobs).free,
            budget=self.budget,
        )

    def leftovers(self, *, by_hand: bool = False) -> Iterator[Leftover]:
        """What may be freed but for releases, in the order in which it is. `by_hand`: also what trainings by hand left unfinished."""
        jobs = {job.key: job for job in self._all_jobs() if job.key}
        ended: list[Leftover] = []
        for folder in sorted(path for path in self._jobs.glob("*") if path.is_dir()):
            job = jobs.get(folder.name.rpartition("-")[0])
            if job is None and by_hand:
                # a model that was trained by hand is what somebody wanted
                left = _of_folder(folder, f"{folder.name}, by hand", (CHECKPOINTS,))
                ended += [one._replace(quiet=True) for one in left]
            elif job is not None and job.state in ("done", "superseded"):
                yield from _of_folder(folder, f"job {job.number}, {job.state}", (CHECKPOINTS, MODEL))
            elif job is not None and job.state in ("failed", "cancelled"):
                ended += _of_folder(folder, f"job {job.number}, {job.state}", (CHECKPOINTS, MODEL))
        yield from self._old_columns()
        yield from ended

    def free(self, found: Leftover) -> bool:
        """Free one of them; what a job may be using only while none runs."""
        if not found.quiet:
            remove(Path(found.place))
            return True
        with locked(self._jobs / "device.lock", wait=False) as idle:
            if idle:
                remove(Path(found.place))
            return idle

    def make_room(self, wanted: int, whose: str) -> tuple[list[Leftover], Use]:
        """See that `wanted` bytes more fit on the disk and into the budget, freeing what that takes. Returns what was freed, and what is
        kept now.

        Raises DiskFull where they do not fit all the same.
        """
        use = self.use()
        lacking = self._lacking(use, wanted)
        freed: list[Leftover] = []
        if lacking <= 0:
            return freed, use
        for found in self.leftovers():
            if lacking > 0 and self.free(found):
                freed.append(found)
                lacking -= found.bytes
        if lacking > 0 and self.budget is not None:
            freed += self._collected(lacking)
        if freed:
            use = self.use()
            lacking = self._lacking(use, wanted)
        if lacking > 0:
            raise DiskFull(
                f"{whose} wants {bytes_text(wanted)} on the disk, and {bytes_text(lacking)} of that are missing: the trainer keeps {use}, "
                + (f"may keep {bytes_text(self.budget)} (TREADLE_TRAINER_BYTES), " if self.budget is not None else "")
                + f"and {self._jobs} has {bytes_text(use.free)} free. `treadle job prune` and `treadle release gc` show what can go"
            )
        return freed, use

    def _lacking(self, use: Use, wanted: int) -> int:
        lacking = wanted - use.free
        return lacking if self.budget is None else max(lacking, use.total + wanted - self.budget)

    def _collected(self, lacking: int) -> Iterator[Leftover]:
        """Collect releases by the rules of `treadle release gc`, the oldest first, until that is enough."""
        found = [
            (registry.manifest(release).created_at, registry, release, size)
            for registry in (Registry(self._registry, *names) for names in slots(self._registry))
            for release, size in collectable(registry, keep_newest=_RELEASES_KEPT)
        ]
        for _, registry, release, size in sorted(found, key=lambda each: each[0]):
            if lacking <= 0:
                return
            if registry.collect([release], actor="trainer", reason="the trainer's disk budget"):
                lacking -= size
                yield Leftover("release", str(registry.folder(release)), size, str(release))

    def _all_jobs(self) -> Iterator[Job]:
        for workspace, slot in slots(self._registry):
            yield from JobQueue(self._registry / workspace / slot).jobs()

    def _token_folders(self) -> list[Path]:
        below = [path for depth in ("*", "*/*") for path in self._corpora.glob(f"{depth}/tokens")]
        named = [Path(job.corpus) / "tokens" for job in self._all_jobs()]
        return sorted({path.resolve() for path in [*below, *named] if path.is_dir()})

    def _old_columns(self) -> Iterator[Leftover]:
        """Columns of versions that are not the newest of their view and that no waiting job wants."""
        waiting = {
            (Path(job.corpus).resolve(), job.version) for job in self._all_jobs() if job.state in ("queued", "running")
        }
        for tokens in self._token_folders():
            for kind in sorted(path for path in tokens.iterdir() if path.is_dir()):
                found = [(int(m[1]), m[2], path) for path in kind.iterdir() if (m := _COLUMNS.match(path.name))]
                newest = {view: max(v for v, other, _ in found if other == view) for _, view, _ in found}
                for version, view, path in sorted(found):
                    if version < newest[view] and (tokens.parent, version) not in waiting:
                        yield Leftover("columns", str(path), size_of(path), f"{view} of v{version}", quiet=True)


def wanted_by(policy: TrainingPolicy, registry: Registry, folder: Path) -> int:
    """Bytes that a job of this policy will write at most, beside what an earlier try left in its `folder`. An estimate from the model that
    it begins with; 0 where there is none, which the job then says.
    """
    try:
        base = Path(policy.base) if policy.base not in (None, "previous") else None
        if base is None:
            if registry.champion is None:
                return 0
            base = registry.folder(registry.champion)
    except TrainerError:
        return 0
    model = size_of(base)
    checkpoints = 0 if policy.lora_rank is not None else CHECKPOINT_MODELS * model
    at_once = CHECKPOINTS_AT_ONCE if policy.save_steps is not None else 1
    return max(0, MODELS * model + at_once * checkpoints - size_of(folder))


def _of_folder(folder: Path, of: str, weights: tuple[str, ...]) -> Iterator[Leftover]:
    for path in rows_in(folder):
        yield Leftover("rows", str(path), size_of(path), of)
    for name in weights:
        if (folder / name).exists():
            kind: Literal["checkpoints", "model"] = "checkpoints" if name == CHECKPOINTS else "model"
            yield Leftover(kind, str(folder / name), size_of(folder / name), of)


def bytes_text(size: int) -> str:
    """A size for people."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
