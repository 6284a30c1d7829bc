"""One recorder a workspace, as the receiver needs it: it takes finished events, and accepts them into a file or not at all."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from treadle._delivery import KafkaDelivery
from treadle._sendable import Sendable
from treadle.errors import RecorderClosed, RedactionRefused, SpoolFull, SpoolUnwritable
from treadle.recorder import Recorder
from treadle.settings import Settings
from treadle_schemas.errors import FieldError, TreadleError

from treadle_streams.ingest._events import Prepared
from treadle_streams.ingest.errors import Invalid, NotNow

__all__ = ["Desk", "EventRecorder"]

_LOG = logging.getLogger(__name__)
SOURCE_AGENT: Final = "ingest"
FULL_RETRY_S: Final = 30


class _FileDelivery(KafkaDelivery):
    """Into the file, or refused: what is only in memory cannot be acknowledged to another machine."""

    def open(self, done: Callable[[str | None], None]) -> None:
        """Look after the folder from now on: what a process before left is sent without waiting for an event."""
        if self._spool is None:
            self._open(done)

    def sync(self) -> None:
        """Wait until everything appended is on the disk. Raises OSError."""
        spool = self._spool
        for segment in spool.segments if spool is not None else ():
            try:
                spool.sync_to(segment, segment.size)  # type: ignore[union-attr]
            except OSError:
                if segment.fd >= 0:
                    raise  # else Kafka has all of it, and the file is gone

    def _to_kafka(self, events: Sequence[Sendable], done: Callable[[str | None], None]) -> None:
        raise SpoolUnwritable(f"the spool folder {self.folder} cannot be written")


class EventRecorder(Recorder):
    """A recorder of events that are in their schema's form already. Its `take` raises what is wrong."""

    _delivery_type: ClassVar[type[KafkaDelivery]] = _FileDelivery

    def take(self, kind: str, value: dict[str, Any], key: str) -> None:
        """Rights, redaction, file. Raises TreadleError."""
        self._ledger.open()
        try:
            self._check_ready()
            self._publish(kind, value, key)
        except BaseException:
            self._ledger.refuse()
            raise

    def open(self) -> None:
        """Begin to work without an event: follow the policy, send what a process before left."""
        self._check_ready()
        assert isinstance(self._delivery, _FileDelivery)
        self._delivery.open(self._ledger.settle)

    def complain(self, err: Exception) -> None:
        """Log why events are refused, at most once in ten seconds."""
        self._complain(f"workspace {self.workspace}: events are refused, {type(err).__name__}", err)

    def sync(self) -> None:
        """Wait for the disk. Raises OSError."""
        assert isinstance(self._delivery, _FileDelivery)
        self._delivery.sync()


class Desk:
    """Takes events for any workspace. May be used from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._recorders: dict[str, EventRecorder] = {}
        self._lock = threading.Lock()
        self._closed = False

    def open(self, workspaces: Iterable[str]) -> None:
        """Work for these from now on, and for those whose spool holds something."""
        for workspace in sorted({*workspaces, *_left_behind(self._settings.spool_folder)}):
            try:
                self._of(workspace).open()
            except TreadleError as err:
                _LOG.warning("workspace %s: %s", workspace, err)

    @property
    def writable(self) -> bool:
        """Whether the spool's folder can be written, or made."""
        folder = self._settings.spool_folder
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return folder.is_dir() and os.access(folder, os.W_OK)

    def take(self, workspace: str, event: Prepared) -> None:
        """Accept one event into the workspace's file. Call `sync` before it is acknowledged. Raises Invalid, NotNow."""
        try:
            self._of(workspace).take(event.kind, event.value, event.key)
        except RedactionRefused as err:
            raise Invalid(str(err), code="redaction_refused") from None
        except FieldError as err:
            raise Invalid(err.problem, field=err.field) from None
        except (SpoolFull, SpoolUnwritable) as err:
            # the message names a folder of this machine: for the log only
            self._of(workspace).complain(err)
            if isinstance(err, SpoolFull):
                raise NotNow("the receiver's spool is full", code="spool_full", retry_after_s=FULL_RETRY_S) from None
            raise _unwritable() from None
        except RecorderClosed:
            raise NotNow("the receiver is stopping", code="stopping") from None

    def sync(self, workspace: str) -> None:
        """Wait until what was taken is on the disk. Raises NotNow."""
        try:
            self._of(workspace).sync()
        except OSError as err:
            self._of(workspace).complain(err)
            raise _unwritable() from None

    def close(self, timeout_s: float) -> int:
        """Wait for Kafka for at most `timeout_s` over all workspaces; how many events stay in the spool."""
        with self._lock:
            self._closed = True
        deadline = time.monotonic() + timeout_s
        for recorder in self._recorders.values():
            recorder._delivery.flush(0.0)
        return sum(recorder.close(max(0.1, deadline - time.monotonic())) for recorder in self._recorders.values())

    def _of(self, workspace: str) -> EventRecorder:
        found = self._recorders.get(workspace)
        if found is not None:
            return found
        with self._lock:
            if self._closed:
                raise NotNow("the receiver is stopping", code="stopping")
            found = self._recorders.get(workspace)
            if found is None:
                found = EventRecorder(workspace, agent=SOURCE_AGENT, settings=self._settings, raise_errors=True)
                self._recorders[workspace] = found
            return found


def _unwritable() -> NotNow:
    return NotNow("the receiver cannot write its spool", code="spool_unwritable", retry_after_s=FULL_RETRY_S)


def _left_behind(spool: Path) -> set[str]:
    return {path.parent.name for path in spool.glob("*/*.seg")} if spool.is_dir() else set()
