"""The join of benchmarks/join.py in Faust as its documentation shows it: a Table, one event at a time."""

import os

import faust

env = os.environ
app = faust.App(
    env["RUN"],
    broker=f"kafka://{env['SERVERS']}",
    store="rocksdb://",
    datadir=env["DATA"],
    topic_allow_declare=False,
    topic_disable_leader=True,
    web_enabled=False,
    consumer_auto_offset_reset="earliest",
    topic_partitions=int(env["PARTITIONS"]),
    table_standby_replicas=0,
    broker_commit_interval=1.0,
    stream_recovery_delay=0.0,
    stream_wait_empty=False,
    producer_linger=0.02,
    producer_max_batch_size=1 << 20,
    consumer_max_fetch_size=4 << 20,
)
RAW = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
source = app.topic(env["INTERACTIONS"], env["OUTCOMES"], **RAW)
out = app.topic(env["OUT"], **RAW)
pending = app.Table(
    "state",
    key_type=bytes,
    value_type=bytes,
    partitions=int(env["PARTITIONS"]),
    options={"block_cache_size": 32 << 20, "write_buffer_size": 16 << 20, "max_write_buffer_number": 2},
)


@app.agent(source)
async def join(stream):
    async for event in stream.events():
        message = event.message
        kind = b"I" if message.topic == env["INTERACTIONS"] else b"O"
        known = pending.get(message.key)
        if known is None:
            pending[message.key] = kind + message.value
        elif known[:1] not in (b"D", kind):
            i, o = (message.value, known[1:]) if kind == b"I" else (known[1:], message.value)
            pending[message.key] = b"D" + i + o
            await out.send(key=message.key, value=b'{"status":"joined","interaction":' + i + b',"outcome":' + o + b"}")


if __name__ == "__main__":
    faust.Worker(app, loglevel="WARN").execute_from_commandline()
