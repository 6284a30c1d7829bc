"""Every private thing of faust-streaming 0.15.3 and aiokafka 0.14.0 that the worker leans on; those of pools are in _pool_faust.

Faust keeps group membership, assignment, the changelog topic's place in the assignment, and the RocksDB files. The lane does the rest: it
fetches, recovers and commits by itself, so Faust's fetching, recovery and commits are cut out here:

- `Consumer._drain_messages`, `perform_seek`, `commit`, `verify_event_path`: nothing is fetched, sought or committed by Faust;
- `tables.recovery.Recovery`: reduced to its calls around `Lane.assign`;
- `Store._db_for_partition`: the partition's database, opened and let go by Faust;
- `_thread._consumer._coordinator`: generation and member id, read once an assignment;
- `SubscriptionState._last_fetch_ended`: aiokafka's measure of idleness, fed from the lane's progress, so that a lane that hangs loses
  its partitions after the poll interval as any consumer does.

An upgrade of either library runs the fault tests first.
"""

# Neither library is typed to be subclassed like this.
# mypy: disable-error-code="misc, untyped-decorator"
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

import faust
from faust.stores import rocksdb as _rocksdb
from faust.tables import manager as _manager
from faust.tables import recovery as _recovery
from faust.transport.drivers import aiokafka as _driver
from rocksdict import DBCompressionType, Options

from treadle_streams.worker._lane import Lane
from treadle_streams.worker._settings import SESSION_TIMEOUT_S, WorkerSettings
from treadle_streams.worker.errors import TransactionFailed, WorkerError, WorkerStuck

__all__ = ["LaneApp", "LaneConsumer", "LaneTransport", "generation_of", "make_app", "run_app"]

_log = logging.getLogger(__name__)

MAX_POLL_INTERVAL_S: Final = 300.0
_HEARTBEAT_S: Final = 1.0
_WATCH_S: Final = 0.5
_STORE_OPTIONS: Final = {"block_cache_size": 32 << 20, "write_buffer_size": 16 << 20, "max_write_buffer_number": 2}
"""One database a partition: Faust's defaults (2 GiB of cache, 3 x 64 MiB of memtables each) are for one big table."""


class _Options(_rocksdb.RocksDBOptions):
    def as_options(self) -> Options:
        """Faust's, without compression of the youngest files: they are soon written again, and it was half of the work of writing them."""
        options: Options = super().as_options()
        options.set_compression_per_level([DBCompressionType.none(), DBCompressionType.snappy()])
        return options


class LaneConsumer(_driver.Consumer):
    """Holds the membership; fetches and commits nothing."""

    watch_s = _WATCH_S

    async def _drain_messages(self, fetcher: Any) -> None:
        app = self.app
        while not (self._stopped.is_set() or fetcher._stopped.is_set()):
            lane: Lane = app.lane
            consumer = self._thread._consumer
            if consumer is not None:
                consumer._subscription._last_fetch_ended = lane.ticked
            app.watch()
            await asyncio.sleep(self.watch_s)

    async def perform_seek(self) -> None:
        """The lane reads from META, never from the group's offsets."""

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Offsets travel in the lane's transactions only."""
        return False

    def verify_event_path(self, now: float, tp: Any) -> None:
        """Faust's own event path is not in use."""


class LaneTransport(_driver.Transport):
    """Makes that consumer."""

    Consumer = LaneConsumer


class _Recovery(_recovery.Recovery):
    """Stock recovery reduced to its calls: the lane rebuilds the state of an assignment and starts on it."""

    def need_recovery(self) -> bool:
        """Faust replays nothing."""
        return False

    async def _build_highwaters(self, consumer: Any, tps: Any, destination: Any, title: str) -> None:
        destination.clear()

    async def _build_offsets(self, consumer: Any, tps: Any, destination: Any, title: str) -> None:
        pass

    async def _seek_offsets(self, consumer: Any, tps: Any, offsets: Any, title: str) -> None:
        pass

    def add_standby(self, table: Any, tp: Any) -> None:
        """The lane feeds standbys."""

    async def on_recovery_completed(self, generation_id: int = 0) -> None:
        """Hand the assignment to the lane; then tell Faust that it is done."""
        app: Any = self.app
        if not await app.take_over(generation_id):
            return
        await app.on_rebalance_complete.send()
        self._set_recovery_ended()
        if app.consumer_generation_id != generation_id:
            return
        self.completed.set()
        app.flow_control.resume()
        app.consumer.resume_flow()
        await app._fetcher.maybe_start()
        self.tables.on_actives_ready()
        self.tables.on_standbys_ready()
        app.on_rebalance_end()


_manager.Recovery = _Recovery


class LaneApp(faust.App):
    """A Faust app whose events go through a lane."""

    lane: Lane
    settings: WorkerSettings
    table: Any
    failed: Callable[[BaseException], None]

    def _new_transport(self) -> Any:
        return LaneTransport(self.conf.broker_consumer, self)

    async def take_over(self, generation: int) -> bool:
        """Give this generation's partitions to the lane and wait until it runs on them."""
        coordinator = self.consumer._thread._consumer._coordinator
        member_id = coordinator.member_id
        if coordinator.generation != generation or not member_id:
            return False
        actives = self.assignor.assigned_actives()
        mine = {tp.partition for tp in actives if tp.topic == self.settings.changelog}
        for name in self.settings.inputs:
            theirs = {tp.partition for tp in actives if tp.topic == name}
            if theirs != mine:
                self.failed(
                    WorkerError(f"the group assigned partitions {sorted(theirs)} of {name}, but state {sorted(mine)}")
                )
                return False
        copies = {tp.partition for tp in self.assignor.assigned_standbys() if tp.topic == self.settings.changelog}
        databases, standbys = (
            {p: self.table.data._db_for_partition(p) for p in which} for which in (mine, copies - mine)
        )
        return await self.answer(self.lane.assign(generation, member_id, databases, standbys))

    async def answer(self, future: Future[bool]) -> bool:
        """What the lane answers. It does, whether or not somebody still waits."""
        return await asyncio.shield(asyncio.wrap_future(future))

    def watch(self) -> None:
        """A lane that ended or hangs ends the process."""
        if not self.lane.is_alive():
            self.failed(WorkerStuck("the lane has ended"))
        since = self.lane.committing_since
        if since is not None and (took_s := time.monotonic() - since) > self.settings.transaction_patience_s:
            self.failed(TransactionFailed(f"a batch was not committed in {took_s:.0f} s"))
        idle_s = time.monotonic() - self.lane.ticked
        if idle_s > self.settings.stuck_after_s:
            self.failed(WorkerStuck(f"the lane has made no turn for {idle_s:.0f} s"))


_A = TypeVar("_A", bound=LaneApp)


def make_app(
    settings: WorkerSettings,
    datadir: Path,
    failed: Callable[[BaseException], None],
    cls: type[_A],
    **options: Any,
) -> _A:
    """The app, its table and its subscription. `lane` is to be set before it runs. `options` go before the usual ones."""
    usual: dict[str, Any] = {
        "broker": ";".join(f"kafka://{server.strip()}" for server in settings.servers.split(",")),
        "store": "rocksdb://",
        "datadir": str(datadir),
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "web_enabled": False,
        "consumer_auto_offset_reset": "earliest",
        # aiokafka prefetches what nobody reads: one record a partition at most
        "consumer_max_fetch_size": 1,
        "table_standby_replicas": settings.standbys,
        "stream_recovery_delay": 0.0,
        "stream_wait_empty": False,
        "broker_session_timeout": SESSION_TIMEOUT_S,
        "broker_heartbeat_interval": _HEARTBEAT_S,
        "broker_max_poll_interval": MAX_POLL_INTERVAL_S,
        "broker_request_timeout": 60.0,
        "worker_redirect_stdouts": False,
    }
    app = cls(settings.group, **(usual | options))
    app.settings = settings
    app.failed = failed
    inputs = app.topic(*settings.inputs, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
    app.table = app.Table("rows", key_type=bytes, value_type=bytes, options=dict(_STORE_OPTIONS))
    app.table.data.rocksdb_options = _Options(**_STORE_OPTIONS)

    @app.agent(inputs, name="join")
    async def subscribe(stream: Any) -> None:
        # declares the subscription; the lane reads, so nothing ever comes this way
        async for _ in stream:
            failed(WorkerError("Faust delivered an event past the lane"))

    async def let_go(_app: Any, revoked: Any = None, **_: Any) -> None:
        await app.answer(app.lane.revoke())

    app.on_partitions_revoked.connect(let_go, weak=False)
    return app


def generation_of(app: LaneApp) -> Callable[[], int]:
    """The group's generation as Faust knows it now."""
    return lambda: int(app.consumer_generation_id)


def run_app(app: LaneApp) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code: 0 after an orderly end."""
    worker = faust.Worker(app, loglevel="WARN", override_logging=False, redirect_stdouts=False, quiet=True)
    worker.spinner = None
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
