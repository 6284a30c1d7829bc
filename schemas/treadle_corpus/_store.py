"""The one place that speaks Deeplake (4.7.4 on local paths). What it must respect, each found by running it:

- Destroying a dataset object that has uncommitted rows commits them, whatever `auto_commit_enabled` says. So changes happen only inside
  `Store.change`, which commits at its end or rolls back, and a dirty dataset never goes out of scope.
- After a failed commit the handle is poisoned: it says OK and drops rows. So the process ends, at once and without destructors
  (`os._exit`), and the next one replays from the offsets in the control row.
- `tag` commits what is dirty: it is called on a clean dataset only.
- There is no fsync: `change(sync=True)` syncs before anyone is told.
- A second writer never conflicts, it silently overwrites: callers hold the lock (`_files`). Compaction is off: it rewrites files.
- Text columns copy their text into the commit log; Bytes columns do not.
- At import it starts a crash reporter that calls home. A regular file named `indra` in TMPDIR keeps it from starting.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from treadle_corpus._control import CONTROL_KEY
from treadle_corpus.errors import CorpusDamaged, VersionMissing

__all__ = ["Store", "StoredRow"]

_TAG_PREFIX = "v"
_BLOCK_ROWS = 4096
"""Rows read in one slice of a small column."""


class StoredRow(NamedTuple):
    """The columns of one row. `side` and `status` are small numbers for those who query the dataset; `reward` is NaN for null."""

    key: bytes
    status: int
    side: int
    revision: int
    reward: float
    meta: bytes
    body: bytes


_CONTROL_ROW = StoredRow(CONTROL_KEY, -1, -1, 0, float("nan"), b"", b"")


class Store:
    """One Deeplake dataset: row 0 is the control row, the others are graded rows in order of arrival."""

    def __init__(self, path: Path, dataset: Any) -> None:
        self._path = path
        self._ds = dataset
        self._changing = False

    @classmethod
    def create(cls, path: Path, control: bytes) -> Store:
        """A new dataset that holds `control` alone, committed and synced."""
        lake = _deeplake()
        types = lake.types
        dataset = lake.create(
            str(path),
            schema={
                "key": types.Bytes(),
                "status": types.Int8(),
                "side": types.Int8(),
                "revision": types.Int64(),
                "reward": types.Float64(),
                "meta": types.Bytes(),
                "body": types.Bytes(),
            },
        )
        store = cls(path, _prepared(lake, dataset))
        with store.change("create", sync=True):
            store.append([_CONTROL_ROW._replace(body=control)])
        return store

    @classmethod
    def open(cls, path: Path) -> Store:
        """The newest state, to write. Raises CorpusDamaged."""
        lake = _deeplake()
        with _damage(path):
            dataset = lake.open(str(path))
        return cls(path, _prepared(lake, dataset))

    @classmethod
    def read(cls, path: Path, version: int | None) -> Store:
        """One tagged version, or the head, to read. Raises CorpusDamaged, VersionMissing."""
        lake = _deeplake()
        with _damage(path):
            head = lake.open_read_only(str(path))
        if version is None:
            return cls(path, head)
        if version not in _versions(head):
            raise VersionMissing(path.parent, version, sorted(_versions(head)))
        with _damage(path):
            return cls(path, head.tags[f"{_TAG_PREFIX}{version}"].open())

    def __len__(self) -> int:
        """Rows, without the control row."""
        return len(self._ds) - 1

    def versions(self) -> list[int]:
        """Tagged versions, ascending."""
        return sorted(_versions(self._ds))

    def control(self) -> bytes:
        """The control row. Raises CorpusDamaged."""
        with _damage(self._path):
            if len(self._ds) < 1 or bytes(self._ds["key"][0]) != CONTROL_KEY:
                raise CorpusDamaged(self._path, "row 0 is not the control row")
            return bytes(self._ds["body"][0])

    def keys_and_metas(self) -> Iterator[tuple[bytes, bytes]]:
        """(key, meta) of each row, in order. Raises CorpusDamaged."""
        for start in range(1, len(self._ds), _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, len(self._ds))
            with _damage(self._path):
                keys, metas = self._ds["key"][start:stop], self._ds["meta"][start:stop]
            yield from zip(keys, metas, strict=True)

    def bodies(self, rows: Sequence[int]) -> list[bytes]:
        """Bodies of rows, counted from 0, in the order asked for. Raises CorpusDamaged."""
        if not rows:
            return []
        with _damage(self._path):
            return list(self._ds["body"][[r + 1 for r in rows]])

    @contextmanager
    def change(self, message: str, *, sync: bool = False) -> Iterator[None]:
        """Everything changed inside is committed together at the end, or rolled back when an exception leaves it.

        1. the changes; an exception among them rolls back
        2. commit; from here on a failure ends the process
        3. sync to disk, when asked
        """
        assert not self._changing, "changes do not nest"
        self._changing = True
        try:
            yield  # 1
        except BaseException:
            self._ds.rollback()
            raise
        finally:
            self._changing = False
        try:
            self._ds.commit(message)  # 2
            if sync:
                os.sync()  # 3
        except BaseException as err:
            _end_process(self._path, err)

    def append(self, rows: Sequence[StoredRow]) -> None:
        """Add rows at the end. Only inside `change`."""
        import numpy as np

        assert self._changing
        columns = list(zip(*rows, strict=True))
        kinds = {"status": np.int8, "side": np.int8, "revision": np.int64, "reward": np.float64}
        self._ds.append(
            {
                name: np.array(values, kinds[name]) if name in kinds else list(values)
                for name, values in zip(StoredRow._fields, columns, strict=True)
            }
        )

    def put(self, column: str, values: Mapping[int, Any]) -> None:
        """Overwrite cells of one column by row, counted from 0. Only inside `change`."""
        import numpy as np

        assert self._changing
        numeric = {"status": np.int8, "side": np.int8, "revision": np.int64, "reward": np.float64}.get(column)
        cells = self._ds[column]
        for start, run in _runs(values):
            if len(run) == 1:
                cells[start + 1] = run[0]
            else:
                cells[start + 1 : start + 1 + len(run)] = np.array(run, numeric) if numeric else run

    def put_control(self, control: bytes) -> None:
        """Overwrite the control row. Only inside `change`."""
        assert self._changing
        self._ds["body"][0] = control

    def tag(self, version: int) -> None:
        """Tag the head as a version. Everything is committed by then."""
        assert not self._changing
        try:
            self._ds.tag(f"{_TAG_PREFIX}{version}")
            os.sync()
        except BaseException as err:
            _end_process(self._path, err)

    def revert(self, version: int) -> None:
        """Make the head what a tagged version is."""
        assert not self._changing
        try:
            self._ds.revert_to(self._ds.tags[f"{_TAG_PREFIX}{version}"].version)
            os.sync()
        except BaseException as err:
            _end_process(self._path, err)


def _prepared(lake: Any, dataset: Any) -> Any:
    dataset.auto_commit_enabled = False
    dataset.compaction_mode = lake.CompactionMode.Off
    return dataset


def _versions(dataset: Any) -> set[int]:
    names = (str(n) for n in dataset.tags.names())
    return {int(n[1:]) for n in names if n[:1] == _TAG_PREFIX and n[1:].isdecimal()}


def _runs(values: Mapping[int, Any]) -> Iterator[tuple[int, list[Any]]]:
    """Runs of neighbouring rows: one slice costs what one cell does."""
    start = 0
    run: list[Any] = []
    for row in sorted(values):
        if run and row == start + len(run):
            run.append(values[row])
            continue
        if run:
            yield start, run
        start, run = row, [values[row]]
    if run:
        yield start, run


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except CorpusDamaged:
        raise
    except Exception as err:  # Deeplake raises whatever its C++ side meets
        raise CorpusDamaged(path, f"Deeplake cannot read it ({type(err).__name__}: {str(err).strip()[:200]})") from err


def _end_process(path: Path, err: BaseException) -> NoReturn:
    sys.stderr.write(
        f"error: {path}: writing failed ({type(err).__name__}: {str(err).strip()[:300]}). The process ends here, so that nothing "
        "wrong is written. Nothing is lost: start it again once the cause is gone\n"
    )
    sys.stderr.flush()
    os._exit(1)


@cache
def _deeplake() -> Any:
    quiet = Path(__file__).parent / "_quiet"
    tempfile.gettempdir()  # remembered now, so that nobody takes our folder for the temporary one
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(quiet)
    try:
        import deeplake
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
    return deeplake
