"""Kafka's properties: the same table as a file and as container variables."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from treadle_streams.broker import _properties as properties


def read_as_java(text: str) -> dict[str, str]:
    """``java.util.Properties.load`` for files without comments and continuations, over UTF-16 code units."""
    found = {}
    for line in text.split("\n"):
        if line:
            key, _, value = line.partition("=")
            value = value.lstrip(" \t\f")
            units = re.sub(
                r"\\(u[0-9a-f]{4}|.)",
                lambda match: chr(int(match[1][1:], 16)) if match[1][0] == "u" else match[1],
                value,
            )
            found[key] = units.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "surrogatepass")
    return found


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_path_comes_back_from_the_properties_file(value: str) -> None:
    text = properties.as_file({"log.dirs": value, "node.id": "1"})
    assert text.isascii()
    assert read_as_java(text) == {"log.dirs": value, "node.id": "1"}


def test_a_local_broker_listens_on_the_loopback_interface_only() -> None:
    made = properties.local_properties(data=Path("/d"), port=20_001, controller_port=20_002)
    for key in ("listeners", "advertised.listeners"):
        assert all(address.split("://")[1].startswith("127.0.0.1:") for address in made[key].split(","))


def test_nothing_is_dropped_or_created_by_default() -> None:
    made = properties.local_properties(data=Path("/d"), port=1, controller_port=2)
    assert made["log.retention.ms"] == "-1"
    assert made["auto.create.topics.enable"] == "false"
    assert int(made["offsets.retention.minutes"]) >= 365 * 24 * 60


def test_container_variables_are_named_as_the_official_image_wants_them() -> None:
    made = properties.container_environment(host_port=29_092, cluster_id="abc")
    assert made["KAFKA_LOG_DIRS"] == "/var/lib/kafka/data"
    assert made["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://localhost:19092,HOST://127.0.0.1:29092"
    assert made["KAFKA_TRANSACTION_ABORT_TIMED_OUT_TRANSACTION_CLEANUP_INTERVAL_MS"] == "1000"
    assert made["CLUSTER_ID"] == "abc"


def test_a_cluster_id_is_one_that_kafka_takes() -> None:
    made = [properties.new_cluster_id() for _ in range(500)]  # one in 64 would begin with a dash
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{21}", one) for one in made)
    assert len(set(made)) == len(made)
