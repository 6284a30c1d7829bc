"""What the registry decided, told on `.releases`: every audit entry, in order, at least once.

`published.json` says how far the topic has the audit log. It is written after the broker's acknowledgement, so a crash between the
two publishes an entry again; readers know it by its sequence number.
"""

from __future__ import annotations

import msgspec
from treadle.log import Admin, Sender
from treadle_schemas.codec import RELEASE, encode, make_headers, to_json
from treadle_schemas.topics import topic

from treadle_trainer._files import locked, write_atomically
from treadle_trainer.registry._registry import Registry

__all__ = ["Outbox"]


class Outbox:
    """Publishes the audit log of one slot. Any process may; a lock keeps the order."""

    def __init__(self, registry: Registry, bootstrap_servers: str, *, timeout_s: float = 15.0) -> None:
        self._registry = registry
        self._servers = bootstrap_servers
        self._timeout_s = timeout_s
        self._cursor = registry.path / "published.json"
        self._checked = False

    @property
    def published(self) -> int:
        """Sequence number of the newest entry known to be on the topic, -1 before the first."""
        try:
            return int(msgspec.json.decode(self._cursor.read_bytes())["sequence"])
        except (FileNotFoundError, msgspec.DecodeError, KeyError, TypeError, ValueError):
            return -1  # publishing anew is harmless, skipping is not

    def publish(self) -> int:
        """Publish what is not yet. Returns how many entries. Raises NotDelivered or another LogError; then nothing is skipped."""
        registry = self._registry
        if not self._checked:
            self._check_topic()
        if not registry.events(self.published):
            return 0
        with locked(registry.path / "published.lock"):
            pending = registry.events(self.published)
            if not pending:
                return 0
            sender = Sender(self._servers, timeout_s=self._timeout_s)
            for event in pending:
                headers = make_headers(
                    RELEASE,
                    registry.workspace,
                    source=f"registry/{registry.slot}",
                    event_id=f"{registry.workspace}/{registry.slot}/{event.sequence}",
                )
                sender.send(
                    topic(registry.workspace, "releases"), registry.slot.encode(), encode(to_json(event)), headers
                )
            sender.flush(self._timeout_s)
            write_atomically(self._cursor, msgspec.json.encode({"sequence": pending[-1].sequence}))
            return len(pending)

    def _check_topic(self) -> None:
        """Begin anew where the topic has nothing of what the cursor says: a workspace that was deleted and made again."""
        if self.published >= 0:
            where = (topic(self._registry.workspace, "releases"), 0)
            if Admin(self._servers).end_offsets([where])[where] == 0:
                self._cursor.unlink(missing_ok=True)
        self._checked = True
