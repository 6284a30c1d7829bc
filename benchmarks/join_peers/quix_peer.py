"""The join of benchmarks/join.py in Quix Streams: join_interval on raw bytes. Runs in an environment of its own."""

import os
from datetime import timedelta

from quixstreams import Application
from quixstreams.state.rocksdb.options import RocksDBOptions
from quixstreams.utils.json import dumps, loads

env = os.environ
app = Application(
    env["SERVERS"],
    consumer_group=env["RUN"],
    auto_offset_reset="earliest",
    commit_interval=1.0,
    state_dir=env["DATA"],
    processing_guarantee=env.get("GUARANTEE", "at-least-once"),
    rocksdb_options=RocksDBOptions(
        dumps=lambda value: b"\1" + value if type(value) is bytes else b"\2" + dumps(value),
        loads=lambda raw: raw[1:] if raw[:1] == b"\1" else loads(raw[1:]),
        write_buffer_size=16 << 20,
        block_cache_size=32 << 20,
    ),
    consumer_poll_timeout=0.05,
    consumer_extra_config={"fetch.message.max.bytes": 4 << 20, "queued.max.messages.kbytes": 65536},
    producer_extra_config={"linger.ms": 20, "batch.size": 1 << 20},
    loglevel="WARNING",
)
raw = {"key_deserializer": "bytes", "value_deserializer": "bytes"}
interactions = app.dataframe(app.topic(env["INTERACTIONS"], **raw))
outcomes = app.dataframe(app.topic(env["OUTCOMES"], **raw))


def row(interaction: bytes, outcome: bytes) -> bytes:
    return b'{"status":"joined","interaction":' + interaction + b',"outcome":' + outcome + b"}"


window = timedelta(seconds=600)
joined = interactions.join_interval(
    outcomes, how="inner", on_merge=row, grace_ms=window, backward_ms=window, forward_ms=window
)
joined.to_topic(app.topic(env["OUT"], key_serializer="bytes", value_serializer="bytes"))
app.run()
