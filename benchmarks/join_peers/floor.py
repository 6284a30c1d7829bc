"""The floor of benchmarks/join.py: read both topics, write as many bytes of rows and changelog as a join does. No state, no join."""

import os

from confluent_kafka import Consumer, Producer, TopicPartition

env = os.environ
partitions = range(int(env["PARTITIONS"]))
consumer = Consumer(
    {
        "bootstrap.servers": env["SERVERS"],
        "group.id": env["RUN"],
        "enable.auto.commit": False,
        "fetch.message.max.bytes": 4 << 20,
        "check.crcs": False,
    }
)
producer = Producer(
    {
        "bootstrap.servers": env["SERVERS"],
        "enable.idempotence": True,
        "linger.ms": 5,
        "batch.size": 1 << 20,
        "queue.buffering.max.messages": 1_000_000,
    }
)
interactions, outcomes = env["INTERACTIONS"], env["OUTCOMES"]
consumer.assign([TopicPartition(topic, p, 0) for topic in (interactions, outcomes) for p in partitions])
TAIL = b',"outcome":' + b"x" * 290 + b"}"
while True:
    batch = consumer.consume(5000, 0.05)
    for message in batch:
        if message.error():
            continue
        key, value = message.key(), message.value()
        if message.topic() == interactions:
            row = b'{"status":"floor","interaction":' + value + TAIL
            producer.produce(env["OUT"], row, key, message.partition())
        producer.produce(env["CHANGELOG"], value, key, message.partition())
    if batch:
        producer.flush()
