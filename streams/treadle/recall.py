"""Recall: what agents did before that is like what is asked now, through the live index of this machine.

The light side of it, behind `Recorder.recall`: the index itself, and its libraries, are loaded at the first call.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from treadle_schemas.records import MetricState

from treadle.errors import MissingExtra
from treadle.settings import Settings

__all__ = ["Hit", "recall"]

_NEEDED: Final = ("tantivy", "duckdb", "pyarrow", "sqlglot", "numpy")
"""Packages of the extra `recall`."""


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """One interaction that was found, with its grade at this moment."""

    handle: str
    """What `outcome` takes: workspace/episode/interaction."""
    score: float
    """Higher is better. Comparable within one answer only."""
    snippet: str
    """The place of the text where most words of the query are."""
    request: str
    """What was asked: the first message of the user and the newest ones, up to 6,000 characters."""
    response: str
    """What was answered, up to 6,000 characters."""
    agent: str
    slot: str
    model: str | None = None
    release: str | None = None
    task_id: str | None = None
    status: str = "ok"
    started_at: str
    ended_at: str
    tags: Mapping[str, Any] = {}
    state: Literal["unknown", "pending", "settled"]
    """Whether its grade is final. unknown: the join has not graded it yet."""
    reward: float | None = None
    metrics: Mapping[str, MetricState] = {}
    """By name [state, value]; the state is pending, observed or absent."""

    def __str__(self) -> str:
        return self.handle


_lock = threading.Lock()
_opened: dict[tuple[Path, str], Any] = {}


def recall(
    query: str, n: int = 5, filter: str | None = None, *, workspace: str | None = None, settings: Settings | None = None
) -> list[Hit]:
    """The `n` interactions of a workspace that fit best, the best first.

    `query` are plain words, of any length: a question, a task, an error message. `filter` is a condition as of snapshots (`reward > 0.5 AND
    agent = 'desk'`); only true selects. Reads the index that `treadle indexer` keeps under TREADLE_HOME on this machine.

    Raises MissingExtra, IndexMissing (treadle_streams.live), FilterError, SettingError.
    """
    loaded = settings or Settings.load()
    name = workspace or loaded.workspace
    if not name:
        from treadle_schemas.errors import SettingError

        raise SettingError("no workspace: recall(..., workspace='NAME'), or set TREADLE_WORKSPACE")
    found: list[Hit] = _index(loaded.home, name).search(query, n, filter)
    return found


def _index(home: Path, workspace: str) -> Any:
    # not an import: the SDK is below the streams side, which may not be installed
    try:
        live = importlib.import_module("treadle_streams.live")
        searching = live.Recall
    except ModuleNotFoundError as err:
        package = (err.name or "").partition(".")[0]
        if package in _NEEDED or package == "treadle_streams":
            raise MissingExtra("recall", package, "recall") from err
        raise
    with _lock:
        known = _opened.get((home, workspace))
        if known is None:
            known = _opened[home, workspace] = searching(home, workspace)
        return known


def _forget() -> None:
    """In a forked child: connections to the database must not be shared, and the lock may be held by a thread that is not here."""
    global _lock
    _lock = threading.Lock()
    _kept.extend(_opened.values())
    _opened.clear()


_kept: list[Any] = []
"""The parent's connections, in a child: closing them there would release the parent's locks on the database."""
os.register_at_fork(after_in_child=_forget)
