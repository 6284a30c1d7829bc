"""Workspaces: isolated wheels, each with its own topics, settings, groups and state.

A workspace exists when its settings topic holds a settings record. `create` makes the topics, waits until they can be used, and writes
that record together with the operators' one on `treadle.workspaces` in a single transaction.
"""

from treadle_streams.workspaces._follower import Follower, Listed
from treadle_streams.workspaces._life import create, delete, get, names, update
from treadle_streams.workspaces._metrics import parse_metric
from treadle_streams.workspaces._privacy import parse_right
from treadle_streams.workspaces._topics import topic_plan

__all__ = [
    "Follower",
    "Listed",
    "create",
    "delete",
    "get",
    "names",
    "parse_metric",
    "parse_right",
    "topic_plan",
    "update",
]
