"""Waiting until the join has taken in everything that was there when the run began.

A run waits in rounds: to the present ends of interactions, outcomes and references; then twice more to the ends that these have by then,
since the join announces names on references, and re-keys to references what waited for them. An end is passed when the join's group has
committed a position at or above it: the join commits its position over transaction markers and on idle partitions too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from treadle.log import Admin, Partition
from treadle_schemas.topics import group, topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.snapshot._pending import PendingRows
from treadle_streams.snapshot.errors import JoinBehind, RegradeBehind

__all__ = ["wait_for_join", "wait_regraded"]

_ROUNDS: Final = 3
"""The second one covers what the first one's interactions announced, the third what was re-keyed then; that is not re-keyed again."""
_PAUSE_S: Final = 0.1
_REGRADE_PAUSE_S: Final = 0.5
_INPUTS: Final = ("interactions", "outcomes", "references")


def wait_for_join(
    admin: Admin, workspace: WorkspaceSettings, wait_s: float, tell: Callable[[str], None] | None = None
) -> None:
    """Return when the join has passed the present inputs. `tell` hears once a second what is waited for.

    Raises JoinBehind naming the partition after `wait_s`, LogError.
    """
    began = time.monotonic()
    inputs = [(topic(workspace.workspace, kind), p) for kind in _INPUTS for p in range(workspace.partitions)]
    reader = group(workspace.workspace, "join")
    for _ in range(_ROUNDS):
        _pass(admin, workspace.workspace, reader, admin.end_offsets(inputs), began, wait_s, tell)


def wait_regraded(
    admin: Admin,
    workspace: WorkspaceSettings,
    pending: PendingRows,
    began: float,
    wait_s: float,
    tell: Callable[[str], None] | None = None,
) -> None:
    """Read `.progress` until its markers say that every kept row is graded by the present settings. `began` is on the monotonic clock.

    Raises RegradeBehind naming the partition after `wait_s`, LogError.
    """
    pending.advance(admin)
    while left := pending.ungraded(workspace.grading_version):
        if time.monotonic() - began > wait_s:
            raise RegradeBehind(workspace.workspace, workspace.grading_version, left[0], wait_s)
        if tell is not None:
            tell(
                f"waiting for kept rows to be graded by version {workspace.grading_version}: {len(left)} partitions left"
            )
        time.sleep(_REGRADE_PAUSE_S)
        pending.advance(admin)


def _pass(
    admin: Admin,
    workspace: str,
    reader: str,
    ends: dict[Partition, int],
    began: float,
    wait_s: float,
    tell: Callable[[str], None] | None,
) -> None:
    left = {where: end for where, end in ends.items() if end > 0}
    told = began
    while left:
        positions = admin.committed(reader, left)
        left = {where: end for where, end in left.items() if positions.get(where, 0) < end}
        if not left:
            return
        (name, partition), end = min(left.items())
        position = positions.get((name, partition), 0)
        now = time.monotonic()
        if now - began >= wait_s:
            raise JoinBehind(workspace, name, partition, position, end, wait_s)
        if tell is not None and now - told >= 1.0:
            told = now
            tell(f"waiting for the join: {name}[{partition}] at {position} of {end}, {len(left)} partitions behind")
        time.sleep(_PAUSE_S)
