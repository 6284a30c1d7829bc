"""The join of benchmarks/join.py in Bytewax: op.join of two Kafka sources, recovery in SQLite. Runs in an environment of its own."""

import os

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow

env = os.environ
SERVERS = [env["SERVERS"]]
CONFIG = {"fetch.message.max.bytes": str(4 << 20), "queued.max.messages.kbytes": "16384"}
flow = Dataflow("join")


def side(name: str, topic: str):
    source = op.input(name, flow, KafkaSource(SERVERS, [topic], batch_size=1000, add_config=CONFIG))
    return op.flat_map_batch(f"{name}_pairs", source, lambda batch: [(m.key.decode(), m.value) for m in batch])


def rows(batch):
    return [
        KafkaSinkMessage(key.encode(), b'{"status":"joined","interaction":' + i + b',"outcome":' + o + b"}")
        for key, (i, o) in batch
    ]


joined = op.join(
    "join",
    side("interactions", env["INTERACTIONS"]),
    side("outcomes", env["OUTCOMES"]),
    insert_mode="first",
    emit_mode="complete",
)
sink = KafkaSink(
    SERVERS, env["OUT"], add_config={"linger.ms": "5", "batch.size": str(1 << 20), "partitioner": "murmur2_random"}
)
op.output("out", op.flat_map_batch("rows", joined, rows), sink)
