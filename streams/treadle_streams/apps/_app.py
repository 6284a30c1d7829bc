"""The Faust app that a user's module builds on, with what plain Faust lacks for surviving kill -9.

Of faust-streaming 0.15.3 and aiokafka 0.14.0 it leans on, beside what is public:

- `Consumer._commit_offsets`, `ProducerBuffer`: before a commit all that was sent is acknowledged. Stock Faust stops waiting for its
  buffer after 0.1 s, only logs what could not be sent, and commits past either;
- `ConsumerThread._create_worker_consumer`: reads committed records only, which stock Faust does not on a topic written in transactions;
- tables are in memory, and rebuilt from their changelogs at each start: a local store may hold what its changelog lost.

An app runs in a process of its own: the worker's process has another recovery in Faust's place.
"""

# Neither library is typed to be subclassed like this.
# mypy: disable-error-code="misc"
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import faust
import msgspec
from faust.transport.drivers import aiokafka as _driver
from faust.transport.producer import ProducerBuffer
from treadle.log import MAX_MESSAGE_BYTES
from treadle_schemas.codec import GRADED, INTERACTION, OUTCOME, PROGRESS, RELEASE, SNAPSHOT, decode
from treadle_schemas.errors import ContractError
from treadle_schemas.events import read_interaction, read_outcome
from treadle_schemas.records import GradedRow, Progress, ReleaseEvent, SnapshotRecord
from treadle_schemas.topics import group, topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.apps.errors import AppSendFailed

__all__ = ["App", "once", "read"]

SESSION_TIMEOUT_S: Final = 6.0
"""As the join's: after a kill the partitions are given to the next process after so long."""
COMMIT_INTERVAL_S: Final = 1.0
_LOOK_S: Final = 0.01
_RECORDS: Final[Mapping[str, Callable[[dict[str, Any]], Any]]] = {
    INTERACTION: read_interaction,
    OUTCOME: read_outcome,
    GRADED: lambda data: msgspec.convert(data, GradedRow),
    PROGRESS: lambda data: msgspec.convert(data, Progress),
    SNAPSHOT: lambda data: msgspec.convert(data, SnapshotRecord),
    RELEASE: lambda data: msgspec.convert(data, ReleaseEvent),
}


class _ConsumerThread(_driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        made = super()._create_worker_consumer(transport)
        made._isolation_level = "read_committed"
        return made


class _Consumer(_driver.Consumer):
    def _new_consumer_thread(self) -> Any:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _commit_offsets(self, offsets: Any, start_new_transaction: bool = True) -> bool:
        # 1. what these offsets caused was handed over before they were acknowledged in the process, so it is all in the buffers now
        # 2. wait until Kafka has it  3. commit
        await self.app.sent_all()
        return bool(await super()._commit_offsets(offsets, start_new_transaction=start_new_transaction))


class _Buffer(ProducerBuffer):
    """Counts: a message that left the stock buffer's queue may not have reached the client yet."""

    taken = 0
    handed_over = 0

    def put(self, fut: Any) -> None:
        self.taken += 1
        super().put(fut)

    async def _send_pending(self, fut: Any) -> None:
        await super()._send_pending(fut)
        self.handed_over += 1


class _Producer(_driver.Producer):
    buffer: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        app = self.buffer.app
        self.buffer = _Buffer(loop=self.loop, beacon=self.beacon)
        self.buffer.app = app


class _Transport(_driver.Transport):
    Consumer = _Consumer
    Producer = _Producer


class _FailedSends(faust.Sensor):
    """Stock Faust only logs what could not be sent."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        super().__init__()
        self._failed = failed

    def on_send_error(self, producer: Any, exc: BaseException, state: Any) -> None:
        self._failed(AppSendFailed(f"Kafka did not take a message: {exc}"))


class App(faust.App):
    """A Faust app on one workspace. Its consumer group, which is also the first part of its topics' names, is `treadle.WS.app-NAME`."""

    workspace: WorkspaceSettings

    def workspace_topic(self, kind: str) -> Any:
        """The workspace's topic of `kind` as a Faust topic of raw bytes; see `read`."""
        name = topic(self.workspace.workspace, kind)
        return self.topic(name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)

    async def sent_all(self) -> None:
        """Wait until all that was sent is acknowledged."""
        producer = self.producer
        wanted = producer.buffer.taken
        while producer.buffer.handed_over < wanted:
            await asyncio.sleep(_LOOK_S)
        await producer._producer.flush()
        # the callbacks of what failed run in the next turns of the loop, and end the process
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def make_app(
    workspace: WorkspaceSettings, name: str, servers: str, datadir: str, failed: Callable[[BaseException], None]
) -> App:
    """An app without agents yet. `failed` ends the process."""
    app = App(
        group(workspace.workspace, f"app-{name}"),
        broker=";".join(f"kafka://{server.strip()}" for server in servers.split(",")),
        store="memory://",
        datadir=datadir,
        topic_partitions=workspace.partitions,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        consumer_auto_offset_reset="earliest",
        producer_request_timeout=60.0,
        producer_max_request_size=MAX_MESSAGE_BYTES,
        table_standby_replicas=0,
        stream_recovery_delay=0.0,
        stream_wait_empty=False,
        broker_commit_interval=COMMIT_INTERVAL_S,
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=1.0,
        broker_request_timeout=60.0,
        worker_redirect_stdouts=False,
    )
    app.workspace = workspace
    app.sensors.add(_FailedSends(failed))
    return app


def read(event: Any) -> Any:
    """The typed value of a Faust event from `App.workspace_topic`.

    None for clock records, import markers, parts, and what is no event of treadle. Parts are not put back: a row whose messages are stored
    once has `transcript` in their place.
    """
    message = event.message
    try:
        found = decode(message.value, list(message.headers or ()))
        make = _RECORDS.get(found.type)
        return None if make is None else make(found.data)
    except (ContractError, msgspec.ValidationError):
        return None


def once(op: Callable[[Any, Any], Any]) -> Callable[[Any, tuple[int, Any]], Any]:
    """An operator on `[sequence, value]`: `op(value, change)` for a higher sequence than the last one, else nothing is changed.

    For `table[key].apply(once(op), (sequence, change))` and the like: a repeated event then changes nothing. Offsets are sequences as long
    as a key takes changes of one partition only: put the partition into the key.
    """

    def apply(cell: Any, change: tuple[int, Any]) -> Any:
        last, value = cell
        sequence, by = change
        return cell if sequence <= last else [sequence, op(value, by)]

    return apply
