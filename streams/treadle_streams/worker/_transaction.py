"""One batch, one transaction, fenced by the consumer group's generation (semantics.md, Fencing of the join).

The order of the steps is what makes it correct:

1. plan     made before, from state and records of this assignment alone
2. begin    a transaction of a producer that only this process has
3. produce  outputs, then the changelog's rows, META last in each partition
4. flush    all of it is in the log before the generation is checked, so the end that a new owner sees covers what can still commit
5. send     the positions of every partition touched, with the generation and member id that belong to the state planned on; a stale
            generation is refused here and the batch is aborted
6. commit
7. local    one RocksDB write batch a partition, by the caller, only if the generation has not moved on

A process stopped between any two of them and woken later changes nothing that counts: before 6 the coordinator has aborted its transaction
or refuses it, after 6 the changelog already says what it would write locally.
"""

# The names below are confluent-kafka's documented public ones; its type information marks the re-exports as private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from treadle.log import MAX_MESSAGE_BYTES
from treadle_schemas import codec, topics
from treadle_schemas.moments import now

from treadle_streams.join import INPUTS, META_KEY, Plan
from treadle_streams.worker._faults import Faults
from treadle_streams.worker._ports import REAL, Ports, ProducerPort
from treadle_streams.worker._settings import TRANSACTION_TIMEOUT_MS, WorkerSettings
from treadle_streams.worker.errors import TransactionFailed

__all__ = ["Membership", "Transactions"]

_TYPES: Final[Mapping[str, str]] = {
    "graded": codec.GRADED,
    "part": codec.PART,
    "progress": codec.PROGRESS,
    "dead-letter": codec.DEAD_LETTER,
    "announcement": codec.REFERENCE,
    "rekeyed": codec.OUTCOME,
    "regraded": codec.REGRADED,
    "regraded-progress": codec.REGRADED,
}
_KINDS: Final[Mapping[str, str]] = {
    "part": "graded",
    "announcement": "references",
    "rekeyed": "references",
    "regraded": "graded",
    "regraded-progress": "progress",
}
"""Where a stream is no topic of its own."""
_STALE: Final = frozenset({"ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "REBALANCE_IN_PROGRESS", "FENCED_INSTANCE_ID"})
"""What a coordinator says to a generation that is not the group's: another owner has the partitions, or will have them."""
_STEP_TIMEOUT_S: Final = 10.0
_COMMIT_TRIES: Final = 5


class Membership(tuple[int, str]):
    """Generation and member id, kept with the state that was rebuilt under them and never read anew."""

    __slots__ = ()

    def __new__(cls, generation: int, member_id: str) -> Membership:
        """`generation` and `member_id` as the group's coordinator gave them."""
        return super().__new__(cls, (generation, member_id))

    def metadata(self, group: str) -> bytes:
        """librdkafka's serialised consumer group metadata, version 2, without a static instance id."""
        generation, member_id = self
        return b"CGMDv2:" + struct.pack("<i", generation) + group.encode() + b"\0" + member_id.encode() + b"\0\1"


class Transactions:
    """The process's transactional producer. `run` is one transaction over the plans of several partitions."""

    def __init__(self, settings: WorkerSettings, faults: Faults, ports: Ports = REAL) -> None:
        """Raises TransactionFailed when the producer cannot be initialised."""
        self._settings = settings
        self._faults = faults
        self._ports = ports
        outputs = {stream: _KINDS.get(stream, stream) for stream in _TYPES}
        self._topics = {
            name: topics.topic(settings.workspace, kind)
            for name, kind in (outputs | {kind: kind for kind in INPUTS}).items()
        }
        self._heads = {
            stream: [
                (name, value)
                for name, value in codec.make_headers(kind, settings.workspace, source="treadle/join")
                if name not in ("ce_id", "ce_time")
            ]
            for stream, kind in _TYPES.items()
        }
        self._error: KafkaError | None = None
        self._last: dict[int, int] = {}
        self._disconnected = False
        self._producer = self._new_producer()

    def _new_producer(self) -> ProducerPort:
        self._disconnected = False
        producer = self._ports.producer(
            {
                "bootstrap.servers": self._settings.servers,
                # fencing is by the group's generation; the id only has to differ between live processes
                "transactional.id": f"{self._settings.group}.{uuid.uuid4().hex}",
                "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
                "compression.type": "zstd",
                "compression.level": 1,  # about half the CPU time of the default for a few per cent more bytes
                "linger.ms": 5,
                "batch.size": 1_000_000,
                "message.max.bytes": MAX_MESSAGE_BYTES,
                "queue.buffering.max.messages": 1_000_000,
                "queue.buffering.max.kbytes": 512 * 1024,
                "reconnect.backoff.max.ms": 1_000,
                "log_level": 0,
                "error_cb": self._troubled,
            }
        )
        try:
            producer.init_transactions(30)
        except KafkaException as err:
            raise TransactionFailed(f"starting a transactional producer: {err.args[0].str()}") from err
        return producer

    def _troubled(self, error: KafkaError) -> None:
        self._disconnected = True

    def run(self, plans: Sequence[Plan], metas: Mapping[int, bytes], member: Membership) -> dict[int, int] | None:
        """Commit the plans. Returns the last changelog offset of each partition; None: refused, the assignment is stale.

        Raises TransactionFailed for everything else: the process must end, since it cannot know what counts.
        """
        self._producer.poll(0)
        if self._disconnected:
            # librdkafka 2.16 sends the offsets of a producer that saw its broker go to the old coordinator connection, for good
            self._producer = self._new_producer()
        producer = self._producer
        self._error = None
        self._last = {}
        try:
            self._faults.after("plan")
            # 2. begin
            producer.begin_transaction()
            self._faults.after("begin")
            # 3. produce: outputs, changelog, META last. Only META's place is asked for: a record that is not taken fails the transaction
            changelog, name, at = self._settings.changelog, uuid.uuid4().hex, ("ce_time", now().encode())
            for made in plans:
                for n, emission in enumerate(made.outputs):
                    own = ("ce_id", b"%s-%d-%d" % (name.encode(), made.partition, n))
                    headers = [*self._heads[emission.stream], own, at, *emission.headers]
                    to = made.partition if emission.partition is None else emission.partition
                    self._produce(self._topics[emission.stream], to, emission.key, emission.value, headers)
                for key, value in made.puts.items():
                    self._produce(changelog, made.partition, key, value)
                for key in made.deletes:
                    self._produce(changelog, made.partition, key, None)
                self._produce(changelog, made.partition, META_KEY, metas[made.partition], None, self._logged)
            self._faults.after("produce")
            # 4. flush
            left = producer.flush(_STEP_TIMEOUT_S)
            if self._error is not None:
                raise KafkaException(self._error)
            if left:
                raise TransactionFailed(f"{left} records of a batch were not acknowledged in {_STEP_TIMEOUT_S:g} s")
            self._faults.after("flush")
            # 5. send: never an empty list, which would commit unchecked
            positions = [
                TopicPartition(self._topics[kind], made.partition, made.meta.offsets.get(kind, 0))
                for made in plans
                for kind in INPUTS
            ]
            producer.send_offsets_to_transaction(positions, member.metadata(self._settings.group), _STEP_TIMEOUT_S)
            self._faults.after("send")
            # 6. commit
            self._commit()
            self._faults.after("commit")
        except KafkaException as err:
            self._abort_if_refused(err.args[0])
            return None
        return self._last

    def _abort_if_refused(self, error: Any) -> None:
        name = error.name()
        if name in _STALE and error.txn_requires_abort():
            try:
                self._producer.abort_transaction(_STEP_TIMEOUT_S)
                return
            except KafkaException as err:
                error = err.args[0]
        raise TransactionFailed(f"a batch was not committed: {name}: {error.str()}")

    def _commit(self) -> None:
        for attempt in range(1, _COMMIT_TRIES + 1):
            try:
                self._producer.commit_transaction(_STEP_TIMEOUT_S)
                return
            except KafkaException as err:
                if not err.args[0].retriable() or attempt == _COMMIT_TRIES:
                    raise

    def _produce(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: codec.Headers | None = None,
        on_delivery: Callable[[KafkaError | None, Message], None] | None = None,
    ) -> None:
        more: dict[str, Any] = {} if on_delivery is None else {"on_delivery": on_delivery}
        if headers:
            more["headers"] = headers
        while True:
            try:
                self._producer.produce(topic, value, key, partition, **more)
                return
            except BufferError:
                self._producer.poll(0.05)

    def _logged(self, err: KafkaError | None, message: Message) -> None:
        if err is not None:
            self._error = self._error or err
        else:
            self._last[message.partition() or 0] = message.offset() or 0
