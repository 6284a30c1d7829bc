"""A workspace's place in a pool for as long as nothing fails: its lane, its app, and what the pool gives them."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from confluent_kafka import Consumer
from treadle.log import Admin
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.join import Input
from treadle_streams.worker import _faust_hooks as hooks
from treadle_streams.worker._clockwork import Reading, View, report
from treadle_streams.worker._faults import Faults
from treadle_streams.worker._lane import Lane
from treadle_streams.worker._pool_faust import PoolApp, Storage, make_pool_app
from treadle_streams.worker._pool_fetch import Feed, SharedFetch
from treadle_streams.worker._pool_producer import REST_AFTER_S, RestingProducer
from treadle_streams.worker._pool_turns import Turns
from treadle_streams.worker._ports import REAL, Ports, ProducerPort
from treadle_streams.worker._settings import WorkerSettings
from treadle_streams.worker._status import StatusFile
from treadle_streams.worker.errors import TransactionFailed, WorkerStuck

__all__ = ["PoolSeat", "Shared"]

BATCH_RECORDS: Final = 500
BATCH_BYTES: Final = 2 << 20
"""Of one turn, which is one transaction; a workspace that has more waits for its next turn. One larger event is a turn by itself."""
INBOX_RECORDS: Final = 2 * BATCH_RECORDS
INBOX_BYTES: Final = 2 * BATCH_BYTES
STATUS_S: Final = 4.0
"""How often a status file is written that says nothing new; readers call it stale after 10 s."""
_BEGIN_S: Final = 30.0
END_S: Final = 20.0
"""How long an app may take to leave its group."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all seats of a process use together."""

    admin: Admin
    fetch: SharedFetch
    turns: Turns
    storage: Storage
    fired: threading.Event
    """Set when a fault test has stopped the process."""
    fatal: Callable[[BaseException], None]
    """Ends the process."""


class _Mail:
    """A lane's mailbox, whose lane is woken instead of waiting."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._messages: deque[Any] = deque()

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, item: Any, /) -> None:
        """See SimpleQueue."""
        self._messages.append(item)
        self._wake()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The next message; raises queue.Empty at once where there is none."""
        try:
            return self._messages.popleft()
        except IndexError:
            raise queue.Empty from None

    def get_nowait(self) -> Any:
        """See `get`."""
        return self.get()


class PoolSeat:
    """See the module. Made on the event loop; `turn` runs on the threads of `Turns`, `told` and `tick` on that of the clock."""

    def __init__(
        self, shared: Shared, settings: WorkerSettings, workspace: WorkspaceSettings, folder: Path, status: StatusFile
    ) -> None:
        self.workspace = settings.workspace
        self.queued = self.running = self.again = False
        self.reading = Reading()
        self.error: BaseException | None = None
        """What took it out."""
        self._shared = shared
        self._settings = replace(settings, batch_records=BATCH_RECORDS, batch_bytes=BATCH_BYTES, gather_s=0.0)
        self._status = status
        self._said: tuple[float, dict[str, Any]] = (0.0, {})
        self._lock = threading.Lock()
        self._closed = False
        self._begun = self._stale = False
        self._loop = asyncio.get_running_loop()
        self._taken_out = asyncio.Event()
        self._at_work = asyncio.Event()
        self._mail = _Mail(self.wake)
        self._feed: Feed = shared.fetch.feed(self.wake, INBOX_RECORDS, INBOX_BYTES)
        self._producers: list[RestingProducer] = []
        ports = Ports(
            producer=self._producer,
            consumer=lambda config: Consumer(dict(config)),
            inputs=lambda _: self._feed,
            admin=lambda _: shared.admin,
            mail=lambda: self._mail,
            faults=lambda: Faults(fired=shared.fired),
            write_batch=REAL.write_batch,
        )
        self._app: PoolApp = make_pool_app(self._settings, folder, self.fail, shared.storage)
        self._lane = Lane(
            self._settings, workspace, hooks.generation_of(self._app), lambda: self.reading, self.fail, ports
        )
        self._app.lane = self._lane
        self._lane.open()

    # On the event loop.

    async def run(self, quit_: asyncio.Event) -> None:
        """Work until `quit_` is set. Raises what took the seat out; then the group is left and nothing of it runs."""
        quitting = asyncio.ensure_future(quit_.wait())
        failing = asyncio.ensure_future(self._taken_out.wait())
        working = asyncio.ensure_future(self._work())
        try:
            await asyncio.wait([quitting, failing, working], return_when=asyncio.FIRST_COMPLETED)
            if working.done() and not self._taken_out.is_set():
                self.fail(working.exception() or WorkerStuck(f"the app of workspace {self.workspace} has ended"))
        finally:
            for waiting in (quitting, failing):
                waiting.cancel()
            await self._leave()
            working.cancel()
            await asyncio.wait([working])
        if self.error is not None:
            raise self.error

    async def begun(self, running: asyncio.Task[None]) -> None:
        """Wait until it was given partitions once, or `running` has ended, or it takes too long to be waited for."""
        at_work = asyncio.ensure_future(self._at_work.wait())
        await asyncio.wait([running, at_work], timeout=_BEGIN_S, return_when=asyncio.FIRST_COMPLETED)
        at_work.cancel()

    async def _work(self) -> None:
        await self._app.start()
        await self._app.wait_until_stopped()
        if self._app.crash_reason is not None:
            raise self._app.crash_reason

    async def _leave(self) -> None:
        """1. No turn any more. 2. Nothing is read for it. 3. The group is left. 4. Its databases are closed."""
        closing: asyncio.Future[Any] = asyncio.ensure_future(asyncio.wrap_future(self._lane.close()))
        if self.error is None:
            # 1. after the batch under way
            failing: asyncio.Future[Any] = asyncio.ensure_future(self._taken_out.wait())
            await asyncio.wait([closing, failing], timeout=END_S, return_when=asyncio.FIRST_COMPLETED)
            failing.cancel()
        self._closed = True
        self._app.over.set()
        if not await asyncio.to_thread(self._shared.turns.wait_idle, self, self._settings.transaction_patience_s):
            # its thread is inside the client library and will perhaps never come back
            self._shared.fatal(WorkerStuck(f"a batch of workspace {self.workspace} does not end"))
        # 2.
        self._feed.close()
        self._producers.clear()
        # 3. and 4.
        try:
            await asyncio.wait_for(self._app.stop(), END_S)
        except TimeoutError:
            # it would stay a member of the group that takes nothing over
            self._shared.fatal(WorkerStuck(f"the app of workspace {self.workspace} does not end"))
        await self._app.table.data.stop()

    # On any thread.

    def fail(self, err: BaseException) -> None:
        """Take the seat out for this reason; only the first one counts."""
        with self._lock:
            if self.error is not None or self._closed:
                return
            self.error = err
        self._loop.call_soon_threadsafe(self._taken_out.set)

    def wake(self) -> None:
        """There is something to do."""
        self._shared.turns.wake(self)

    # For the turns.

    @property
    def over(self) -> bool:
        """See Seat."""
        return self._closed or self.error is not None

    @property
    def long(self) -> bool:
        """See Seat: what messages ask for may replay a changelog."""
        return len(self._mail) > 0

    def turn(self, *, quick: bool) -> bool:
        """See Seat."""
        if quick and self.long:
            return True
        try:
            for producer in self._producers:
                producer.rest(0.0 if self._stale else REST_AFTER_S)
            self._stale = False
            if not self._lane.step():
                self._closed = True
            return self._feed.waiting or self.long or self._lane.regrading
        except BaseException as err:
            self.fail(err)
            return False

    # For the clock.

    @property
    def view(self) -> View:
        """See Ticking."""
        return self._lane.view if not self.over else View()

    def told(self, broker_ms: dict[int, int], ends: dict[tuple[Input, int], int], settings_end: int) -> None:
        """See Ticking."""
        self.reading = Reading(self.reading.number + 1, broker_ms, ends, settings_end)

    def renew(self) -> None:
        """See Ticking: the next batch makes its producer."""
        self._stale = True

    def tick(self) -> None:
        """See Ticking: let the lane take a turn, write the status, and see that the lane has not stopped."""
        if self.over:
            return
        self.wake()
        if not self._begun and self._lane.view.state == "running":
            self._begun = True
            self._loop.call_soon_threadsafe(self._at_work.set)
        self._write()
        since = self._lane.committing_since
        now = time.monotonic()
        if since is not None and now - since > self._settings.transaction_patience_s:
            self._shared.fatal(TransactionFailed(f"workspace {self.workspace}: a batch was not committed in time"))
        if now - self._lane.ticked > self._settings.stuck_after_s:
            self._shared.fatal(WorkerStuck(f"workspace {self.workspace}: the lane has made no turn"))

    def _write(self) -> None:
        view = self._lane.view
        known = self.reading if view.state == "running" and self.reading.number else None
        made = report(view, known)
        news = {k: v for k, v in made.items() if k not in ("updated_at", "monotonic_s", "clock_ms", "partitions")}
        at, said = self._said
        if news != said or time.monotonic() - at >= STATUS_S:
            self._said = (time.monotonic(), news)
            self._status.write(made | {"shared": True})

    def _producer(self, config: Mapping[str, Any]) -> ProducerPort:
        # a second one replaces the first, see Transactions
        self._producers[:] = [RestingProducer(config, REAL.producer)]
        return self._producers[0]
