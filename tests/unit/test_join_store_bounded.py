"""The disk holds what is kept and not what has ended: a real RocksDB under a stream of rows that end."""

from __future__ import annotations

import gc
import json
import random
from pathlib import Path
from typing import Any

from rocksdict import AccessType, Options, Rdict
from treadle_schemas import Metric, WorkspaceSettings, codec
from treadle_schemas.moments import from_micros
from treadle_streams.join import END_MARGIN_MS, INPUTS, Arrival, Grading, Meta, plan
from treadle_streams.join.memory import MemoryPartition
from treadle_streams.worker._store import PartitionStore

T0_MS = 1_700_000_000_000
ROWS, BATCH, BODY_BYTES = 6_000, 200, 2_000
KEPT_MS = 1_000
GRADING = Grading(
    WorkspaceSettings(
        workspace="shop",
        partitions=1,
        metrics=(Metric(name="reward", required=True, horizon_s=0.0),),
        grace_s=0.0,
        retention_s=KEPT_MS / 1000,
    )
)


def arrival(number: int, at_ms: int, chance: random.Random) -> Arrival:
    moment = from_micros(at_ms * 1000)
    data = {
        "interaction_id": f"i{number}",
        "agent": "bot",
        "task_id": "t",
        "messages": [{"role": "user", "content": chance.randbytes(BODY_BYTES // 2).hex()}],
        "started_at": moment,
        "ended_at": moment,
    }
    headers: Any = codec.make_headers(codec.INTERACTION, "shop", source="test")
    return Arrival("interactions", 0, number, at_ms, f"i{number}".encode(), json.dumps(data).encode(), headers)


def size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # RocksDB deletes files while they are counted
            continue
    return total


def test_ended_rows_leave_the_disk_by_rocksdbs_own_compaction(tmp_path: Path) -> None:
    options = Options(raw_mode=True)
    options.set_write_buffer_size(256 << 10)
    options.set_target_file_size_base(256 << 10)
    options.set_max_bytes_for_level_base(1 << 20)
    options.set_max_total_wal_size(1 << 20)
    db = Rdict(str(tmp_path / "db"), options, access_type=AccessType.read_write())
    store, meta, chance = PartitionStore(db, "shop"), Meta(), random.Random(1)
    largest = written = 0
    for first in range(0, ROWS, BATCH):
        at_ms = T0_MS + first * 10  # a batch every two seconds: each has ended when the next but one comes
        batch = [arrival(n, at_ms, chance) for n in range(first, first + BATCH)]
        written += sum(len(a.value or b"") for a in batch)
        more: list[Arrival] = batch
        while True:
            made = plan(
                0, meta, store, more, GRADING, graded_at="", at_end_ms=dict.fromkeys(INPUTS, at_ms + END_MARGIN_MS)
            )
            if not made.empty:
                store.apply(made, made.meta.encode(), first)
            meta, more = made.meta, []
            if not made.more:
                break
        largest = max(largest, size(tmp_path / "db"))
    assert meta.counts["tombstones"] + meta.counts["captured"] == ROWS
    assert meta.counts["captured"] <= 2 * BATCH
    kept = [key for key in db.keys() if key[:1] == b"r"]  # noqa: SIM118 - an Rdict is no dict
    assert len(kept) == meta.counts["captured"]
    assert largest < written / 2, f"{largest} bytes at most, of {written} written"
    db.close()


def test_a_planned_batch_leaves_nothing_to_the_garbage_collector() -> None:
    batch = [arrival(n, T0_MS, random.Random(1)) for n in range(50)]
    store = MemoryPartition(GRADING)
    plan(0, Meta(), store, batch, GRADING, graded_at="")  # decoders and the like are made once
    gc.collect()
    gc.disable()
    try:
        plan(0, Meta(), store, batch, GRADING, graded_at="")
        assert gc.collect() == 0
    finally:
        gc.enable()
