"""`consume`: a workspace's events, graded rows, progress, versions or releases as typed values, for programs of your own.

    with treadle.consume("shop", "graded", name="warehouse") as rows:
        for row in rows:
            ...
            rows.commit()

Where a reader goes on after a restart is either its own matter (`positions`, `start=`), best stored together with what it makes of the
values, or Kafka's (`name=`, `commit`).
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict, Unpack, overload

from treadle_schemas.events import Interaction, Outcome
from treadle_schemas.records import GradedRow, Progress, ReleaseEvent, SnapshotRecord

from treadle.consuming._consumed import AsyncConsumed, Consumed
from treadle.consuming._feed import Feed, group_of
from treadle.consuming._kinds import TYPES, Kind, Revisions, Start
from treadle.settings import Settings

__all__ = ["AsyncConsumed", "Consumed", "Options", "aconsume", "consume", "group_of"]


class Options(TypedDict, total=False):
    """What `consume` and `aconsume` take beside workspace and kind; see `consume`."""

    name: str | None
    start: Start
    revisions: Revisions
    idle_s: float | None
    bootstrap_servers: str | None


@overload
def consume(
    workspace: str | None, kind: Literal["interactions"], **options: Unpack[Options]
) -> Consumed[Interaction]: ...
@overload
def consume(workspace: str | None, kind: Literal["outcomes"], **options: Unpack[Options]) -> Consumed[Outcome]: ...
@overload
def consume(workspace: str | None, kind: Literal["graded"], **options: Unpack[Options]) -> Consumed[GradedRow]: ...
@overload
def consume(workspace: str | None, kind: Literal["progress"], **options: Unpack[Options]) -> Consumed[Progress]: ...
@overload
def consume(
    workspace: str | None, kind: Literal["snapshots"], **options: Unpack[Options]
) -> Consumed[SnapshotRecord]: ...
@overload
def consume(workspace: str | None, kind: Literal["releases"], **options: Unpack[Options]) -> Consumed[ReleaseEvent]: ...
def consume(
    workspace: str | None,
    kind: Kind,
    *,
    name: str | None = None,
    start: Start = "beginning",
    revisions: Revisions = "all",
    idle_s: float | None = None,
    bootstrap_servers: str | None = None,
) -> Consumed[Any]:
    """The values of one topic of a workspace, first what is there, then each new one as it comes. Use it with `with`.

    name       the reader's name: Kafka keeps its positions as those of the consumer group `treadle.WORKSPACE.consume-NAME`, as far as
               `commit` was called. Processes of one name share the partitions. After a kill, values since the last commit come again
    start      "beginning", "end" or offsets by partition; with a name only where that name has no position yet
    revisions  "all", or of what is there now only the newest of each row ("latest": graded and progress; the topic is read twice), then
               each new revision as it comes
    idle_s     ends the iteration after so many quiet seconds; None: never

    Long contexts are put back from their parts: values share messages, do not change them. Where the parts came before `start` the
    partition is searched for them from its beginning. An interaction whose parts are not there (yet) keeps its `transcript` and `claims`.
    Raises TopicMissing, LogUnreachable, FieldError for a name that is none, and ValueError for another kind.
    """
    if kind not in TYPES:
        raise ValueError(f"no kind {kind!r}; expected one of {', '.join(TYPES)}")
    settings = Settings.load()
    servers = bootstrap_servers or settings.bootstrap_servers
    return Consumed(Feed(servers, workspace or settings.workspace or "", kind, start, name, revisions), idle_s)


@overload
def aconsume(
    workspace: str | None, kind: Literal["interactions"], **options: Unpack[Options]
) -> AsyncConsumed[Interaction]: ...
@overload
def aconsume(
    workspace: str | None, kind: Literal["outcomes"], **options: Unpack[Options]
) -> AsyncConsumed[Outcome]: ...
@overload
def aconsume(
    workspace: str | None, kind: Literal["graded"], **options: Unpack[Options]
) -> AsyncConsumed[GradedRow]: ...
@overload
def aconsume(
    workspace: str | None, kind: Literal["progress"], **options: Unpack[Options]
) -> AsyncConsumed[Progress]: ...
@overload
def aconsume(
    workspace: str | None, kind: Literal["snapshots"], **options: Unpack[Options]
) -> AsyncConsumed[SnapshotRecord]: ...
@overload
def aconsume(
    workspace: str | None, kind: Literal["releases"], **options: Unpack[Options]
) -> AsyncConsumed[ReleaseEvent]: ...
def aconsume(workspace: str | None, kind: Kind, **options: Unpack[Options]) -> AsyncConsumed[Any]:
    """`consume` for asyncio: `async with`, `async for`, and `await rows.commit()`. The connection is made at the first use."""
    return AsyncConsumed(lambda: consume(workspace, kind, **options))
