"""The Faust app of a small workspace, stripped to what an idle one needs, so that hundreds run on one event loop.

As `_faust_hooks`, this file leans on private things of faust-streaming 0.15.3 and aiokafka 0.14.0:

- `AIOKafkaConsumerThread`: its coroutines run on the app's own loop instead of a thread and a loop each;
- `Fetcher._fetch_task`: ended, since the lane reads; otherwise each app would keep asking the broker;
- `BootStrategy.enable_kafka_producer`: off, since the lane writes;
- tasks that wake up each second to do nothing here (`_thread_keepalive`, `Monitor._sampler`): end at once;
- `Store`: options that share one block cache and one budget of write buffers; databases are closed when they are let go of.
"""

# Neither library is typed to be subclassed like this.
# mypy: disable-error-code="misc, untyped-decorator"
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from faust.app.base import BootStrategy
from faust.sensors.monitor import Monitor
from faust.stores import rocksdb as _rocksdb
from faust.transport.drivers import aiokafka as _driver
from mode import Service
from rocksdict import BlockBasedOptions, Cache, Options, WriteBufferManager

from treadle_streams.worker._faust_hooks import LaneApp, LaneConsumer, LaneTransport, make_app
from treadle_streams.worker._settings import WorkerSettings
from treadle_streams.worker.errors import WorkerDirectory

__all__ = ["PoolApp", "Storage", "make_pool_app"]

BLOCK_CACHE_BYTES: Final = 64 << 20
WRITE_BUFFERS_BYTES: Final = 64 << 20
"""Both for the whole process. A workspace that writes much takes its share from those that do not."""
_WRITE_BUFFER_BYTES: Final = 4 << 20
_ARENA_BYTES: Final = 64 << 10
"""A memtable grows in steps of this; the default would be half a MiB for each that holds one record."""
_OPEN_FILES: Final = 64
_HEARTBEAT_S: Final = 2.0
"""A third of the session, as Kafka advises."""
_WATCH_S: Final = 2.0
_NEVER_S: Final = 86_400.0


class Storage:
    """What the databases of a process share."""

    def __init__(self) -> None:
        self.cache = Cache(BLOCK_CACHE_BYTES)
        self.buffers = WriteBufferManager(WRITE_BUFFERS_BYTES, False)


class _Options(_rocksdb.RocksDBOptions):
    storage: Storage

    def as_options(self) -> Options:
        """Options of one small database."""
        table = BlockBasedOptions()
        table.set_bloom_filter(10, True)
        table.set_block_cache(self.storage.cache)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(table)
        options.set_write_buffer_manager(self.storage.buffers)
        options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
        options.set_max_write_buffer_number(2)
        options.set_arena_block_size(_ARENA_BYTES)
        options.set_max_open_files(_OPEN_FILES)
        options.set_stats_dump_period_sec(0)
        options.set_stats_persist_period_sec(0)
        options.set_keep_log_file_num(2)
        options.set_max_log_file_size(1 << 20)
        return options


class _Store(_rocksdb.Store):
    """Closes its databases. The stock one leaves that to a garbage collection, which takes long among hundreds of apps."""

    async def stop(self) -> None:
        """Close all; whoever stops the app has seen to it that the lane has let go."""
        while self._dbs:
            self._dbs.popitem()[1].close()

    def _open_for_partition(self, partition: int) -> Any:
        try:
            return super()._open_for_partition(partition)
        except Exception as err:
            folder = self.partition_path(partition)
            self.app.failed(
                WorkerDirectory(f"{folder} cannot be opened: {err}. Remove it: it is rebuilt from the changelog")
            )
            raise

    def revoke_partitions(self, table: Any, tps: Any) -> None:
        """Close those; the lane has let go of them before."""
        for tp in tps:
            if tp.topic in table.changelog_topic.topics and (db := self._dbs.pop(tp.partition, None)) is not None:
                db.close()


class _SameLoop(_driver.AIOKafkaConsumerThread):
    """The consumer "thread" as a task of the app's loop."""

    def __init__(self, consumer: Any, *, loop: Any, beacon: Any) -> None:
        super().__init__(consumer, loop=loop, thread_loop=loop, beacon=beacon)

    async def start(self) -> None:
        """Serve until stopped; returns once the consumer has started."""
        self._thread_started.set()
        running: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        thread: Any = self
        thread._thread_running = running
        self._serving = asyncio.create_task(self._serve())
        try:
            await running
        finally:
            thread._thread_running = None

    async def on_start(self) -> None:
        """Start the consumer, and end its fetching."""
        await super().on_start()
        consumer: Any = self._consumer
        consumer._fetcher._fetch_task.cancel()

    async def stop(self) -> None:
        """Leave the group."""
        await super().stop()
        await asyncio.wait([self._serving])

    async def _gather_remaining_tasks(self) -> None:
        """The loop is not ours alone."""

    @Service.task
    async def _thread_keepalive(self) -> None:
        """There is no thread to be kept awake."""


class _Consumer(LaneConsumer):
    watch_s = _WATCH_S

    def _new_consumer_thread(self) -> Any:
        return _SameLoop(self, loop=self.loop, beacon=self.beacon)


class _Transport(LaneTransport):
    Consumer = _Consumer


class _Monitor(Monitor):
    @Service.task
    async def _sampler(self) -> None:
        """Nobody asks for its figures."""


class _Boot(BootStrategy):
    enable_kafka_producer = False


class PoolApp(LaneApp):
    """A Faust app that shares its process with others."""

    BootStrategy = _Boot
    over: asyncio.Event
    """Set when the lane answers no more."""

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)

    async def answer(self, future: Any) -> bool:
        """What the lane answers; False when it is gone."""
        asked = asyncio.ensure_future(asyncio.wrap_future(future))
        gone = asyncio.ensure_future(self.over.wait())
        try:
            # neither is cancelled with us: the lane would fail to answer
            await asyncio.wait([asked, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        return bool(asked.done() and asked.result())

    def watch(self) -> None:
        """The pool's clock watches over all lanes."""


def make_pool_app(
    settings: WorkerSettings, datadir: Path, failed: Callable[[BaseException], None], storage: Storage
) -> PoolApp:
    """As `make_app`. `lane` is to be set before it runs; it runs on the loop that runs now."""
    app = make_app(
        settings,
        datadir,
        failed,
        PoolApp,
        broker_heartbeat_interval=_HEARTBEAT_S,
        broker_commit_interval=_NEVER_S,
        Monitor=_Monitor,
    )
    app.over = asyncio.Event()
    table = app.table
    store = _Store(
        app.conf.store, app, table, table_name=table.name, key_type=table.key_type, value_type=table.value_type
    )
    store.rocksdb_options = _Options()
    store.rocksdb_options.storage = storage
    table._data = store
    return app
