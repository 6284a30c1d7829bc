"""Rebuilding lost join state from the log: what `treadle restore` writes, so that the next worker can read the inputs again.

    1. nobody may be in the join's group
    2. the last revision of every row is read from `.graded`
    3. the changelog topic is made anew: its identity tells every worker that what lies on its disk is of another one
    4. per partition: a seed for each row, then META with the start of the inputs as its position, in one last transaction

Cut off before 4 a partition has no META and the worker refuses as before; the command can be repeated.
"""

# The names below are confluent-kafka's documented public ones; its type information marks the re-exports as private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from confluent_kafka import KafkaException, Producer
from treadle.errors import LogError
from treadle.log import Admin, producer_settings
from treadle_schemas import codec, topics
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.archive.history import History
from treadle_streams.errors import WorkspaceInUse
from treadle_streams.join import INPUTS, META_KEY, Meta, encode, row_key
from treadle_streams.join.restoring import Restore, seed_of
from treadle_streams.worker._settings import CHANGELOG_CONFIG

__all__ = ["Restored", "restore"]

_SEEDS_A_TRANSACTION: Final = 20_000
_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Restored:
    """What was written."""

    rows: int
    """Seeds: rows that `.graded` knows."""
    records: int
    """Input records that the worker will read again."""


def restore(
    servers: str,
    workspace: WorkspaceSettings,
    *,
    tell: Callable[[str], None] = lambda _: None,
    patience_s: float = 10.0,
    archives: Sequence[str] = (),
) -> Restored:
    """Write what the worker needs to rebuild the join's state of a workspace from its inputs and `.graded`.

    What `.graded` has no more is read from `archives` and from those that the workspace names.

    Waits `patience_s` for the group to be empty: a worker that was killed is a member until its session ends. Raises WorkspaceInUse
    while a worker runs, LogError.
    """
    name, group = workspace.workspace, topics.group(workspace.workspace, "join")
    changelog = f"{group}-rows-changelog"
    admin = Admin(servers)
    deadline = time.monotonic() + patience_s
    while admin.groups(group).get(group):
        if time.monotonic() > deadline:
            raise WorkspaceInUse(name, "a worker runs. Its state cannot be rebuilt below it: stop it, and call again")
        time.sleep(0.2)
    partitions = range(workspace.partitions)
    inputs = {(kind, p): (topics.topic(name, kind), p) for kind in INPUTS for p in partitions}
    starts, ends = admin.start_offsets(inputs.values()), admin.end_offsets(inputs.values())
    said = admin.committed(group, inputs.values())
    tell(f"reading the last revision of every row from {topics.topic(name, 'graded')}")
    seeds = _seeds(History(servers, workspace, archives), workspace)
    tell(f"{sum(map(len, seeds.values()))} rows; making {changelog} anew")
    _make_anew(admin, changelog, workspace.partitions)
    producer = Producer(
        {
            **producer_settings(servers),
            "transactional.id": f"{group}.restore",
            "transaction.timeout.ms": int(_TIMEOUT_S * 1000),
        }
    )
    try:
        producer.init_transactions(_TIMEOUT_S)
        for partition in partitions:
            meta = Meta(
                offsets={kind: starts[inputs[kind, partition]] for kind in INPUTS},
                counts={"orphans": len(seeds[partition])},
                restore=Restore(
                    until={kind: ends[inputs[kind, partition]] for kind in INPUTS},
                    said={kind: said[inputs[kind, partition]] for kind in INPUTS},
                ),
            )
            _write(producer, changelog, partition, seeds[partition], meta.encode())
    except KafkaException as err:
        raise LogError(f"writing {changelog}: {err.args[0].str()}", retriable=err.args[0].retriable()) from err
    return Restored(sum(map(len, seeds.values())), sum(ends[tp] - starts[tp] for tp in inputs.values()))


def _seeds(history: History, workspace: WorkspaceSettings) -> dict[int, dict[bytes, bytes]]:
    """By partition and row key, the seed of each row."""
    found: dict[int, dict[bytes, bytes]] = {p: {} for p in range(workspace.partitions)}
    for record in history.read("graded"):
        if record.value is None or codec.header_map(record.headers).get("ce_type") != codec.GRADED.encode():
            continue
        try:
            seed = seed_of(record.value)
        except (msgspec.DecodeError, ValueError):
            continue  # not the join's
        found[record.partition][row_key(seed.episode_id, seed.interaction_id)] = encode(seed)
    return found


def _make_anew(admin: Admin, changelog: str, partitions: int) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    admin.delete([changelog])
    while not admin.create(changelog, partitions, CHANGELOG_CONFIG):
        if time.monotonic() > deadline:
            raise LogError(f"{changelog}: Kafka has not removed it yet", retriable=True)
        time.sleep(0.1)
    admin.wait_usable({changelog: partitions})


def _write(producer: Producer, changelog: str, partition: int, seeds: Mapping[bytes, bytes], meta: bytes) -> None:
    waiting = list(seeds.items())
    while True:
        now, waiting = waiting[:_SEEDS_A_TRANSACTION], waiting[_SEEDS_A_TRANSACTION:]
        producer.begin_transaction()
        for key, value in now if waiting else [*now, (META_KEY, meta)]:
            producer.produce(changelog, value, key, partition)
            producer.poll(0)
        producer.commit_transaction(_TIMEOUT_S)
        if not waiting:
            return
