"""Which processes `treadle up` keeps running, and with what environment."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Final

from treadle.settings import Settings

from treadle_streams.supervisor._supervisor import ProcessSpec
from treadle_streams.workspaces import Listed

__all__ = ["PARTS", "POOL", "environment", "plan"]

PARTS: Final = ("worker", "snapshotter", "indexer", "trainer", "guard")
"""In the order of starting: each feeds the next."""

POOL: Final = "workers"
"""The process that joins all small workspaces."""

_BY_WORKSPACE: Final = ("worker", "snapshotter", "indexer")
"""These are one process a workspace, `worker-WORKSPACE`: one that fails shows with its own reason and takes no other down.
The workers of small workspaces are the exception: one process, `workers`, joins them all. Trainer and guard are one process each, since a
machine's device is for one job at a time; they find their workspaces in the registry."""

_NEEDS: Final = {"indexer": "tantivy"}
"""Parts of the plan that run only where a package is installed: it belongs to an extra of its own."""

_STOP_S: Final = {"worker": 20.0, "snapshotter": 10.0, "indexer": 10.0, "trainer": 20.0, "guard": 10.0}
"""The worker leaves its group in order, the trainer ends a running job; the others are quick."""


def plan(settings: Settings, parts: Iterable[str], workspaces: Mapping[str, Listed]) -> list[ProcessSpec]:
    """The processes for these workspaces, in the order of starting."""
    chosen = {part for part in parts if part not in _NEEDS or find_spec(_NEEDS[part]) is not None}
    return [spec for part in PARTS if part in chosen for spec in _processes(settings, part, workspaces)]


def environment(settings: Settings) -> dict[str, str | None]:
    """What makes another process load these very settings, for all workspaces. None removes a variable."""
    return {
        "TREADLE_HOME": str(settings.home),
        "TREADLE_BOOTSTRAP_SERVERS": settings.configured_servers,
        "TREADLE_CORPUS_ROOT": str(settings.corpus_root),
        "TREADLE_WORKSPACE": None,
        "PYTHONUNBUFFERED": "1",  # logs show what happens now
    }


def _processes(settings: Settings, part: str, workspaces: Mapping[str, Listed]) -> Iterator[ProcessSpec]:
    # -P: a folder that happens to be the working directory must not shadow a package
    command = (sys.executable, "-P", "-m", "treadle", part)
    env, stop_s = environment(settings), _STOP_S[part]
    if part in _BY_WORKSPACE:
        shared = {name for name, listed in workspaces.items() if part == "worker" and listed.small}
        if shared:
            yield ProcessSpec(name=POOL, argv=(*command, "--small"), env=env, stop_s=stop_s)
        for name in sorted(workspaces.keys() - shared):
            yield ProcessSpec(name=f"{part}-{name}", argv=(*command, "--workspace", name), env=env, stop_s=stop_s)
    else:
        yield ProcessSpec(name=part, argv=command, env=env, stop_s=stop_s)
