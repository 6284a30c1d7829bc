"""The settings of one worker process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from treadle.log import MAX_MESSAGE_BYTES
from treadle_schemas import topics
from treadle_schemas.errors import SettingError

from treadle_streams.join import INPUTS

__all__ = ["CHANGELOG_CONFIG", "WorkerSettings", "wanted_standbys"]

CHANGELOG_CONFIG: Final[Mapping[str, str]] = {
    # rows are overwritten in place and end with a null, so compaction alone bounds it
    "cleanup.policy": "compact",
    "max.message.bytes": str(MAX_MESSAGE_BYTES),
}

SESSION_TIMEOUT_S: Final = 6.0
"""A member that is silent for so long is out of the group. The least that brokers accept by default, so takeover is quick."""
MOST_STANDBYS: Final = 8
"""Each copy costs another worker about as much as the owner's own writes."""
TRANSACTION_TIMEOUT_MS: Final = 5_000
"""Below the session timeout: when a new owner reads the changelog, the old one's open transaction is gone or about to be."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Where a worker works, and how much it takes at a time."""

    workspace: str
    """The workspace whose events it joins."""
    servers: str
    """Kafka, `host:port,host:port`."""
    home: Path
    """Folder of all local state; this worker's lies in `state/WORKSPACE/N`."""
    once_caught_up: bool = False
    """Stop with exit code 0 as soon as everything that was there is joined."""
    parent_pid: int | None = None
    """End in order when this process is no longer the parent."""
    standbys: int = 0
    """How many other workers keep a warm copy of each partition; the group's leader decides for all."""
    batch_records: int = 2_000
    """Most input records in one transaction."""
    batch_bytes: int = 16 * 1024 * 1024
    """Most input bytes in one transaction."""
    gather_s: float = 0.02
    """How long a batch waits for more records: latency against records a transaction."""
    tick_s: float = 1.0
    """How often clock records and the status file are written."""
    transaction_patience_s: float = 20.0
    """A transaction that takes longer ends the process: the broker has long given it up. librdkafka's own timeout does not always fire; a
    broker that restarts under a call to send offsets can leave it waiting for good."""
    stuck_after_s: float = 120.0
    """A lane without a turn for so long ends the process."""

    @property
    def group(self) -> str:
        """The consumer group, which is the Faust app's id as well."""
        return topics.group(self.workspace, "join")

    @property
    def changelog(self) -> str:
        """The changelog topic: rows and META, compacted."""
        return f"{self.group}-rows-changelog"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The topics that are joined."""
        return tuple(topics.topic(self.workspace, kind) for kind in INPUTS)


def wanted_standbys(environment: Mapping[str, str]) -> int:
    """What `TREADLE_STANDBY` says, 0 where it is not set. Raises SettingError."""
    text = environment.get("TREADLE_STANDBY") or "0"
    if not text.isascii() or not text.isdigit() or int(text) > MOST_STANDBYS:
        raise SettingError(f"TREADLE_STANDBY={text!r}: expected a number of workers, 0 to {MOST_STANDBYS}")
    return int(text)
