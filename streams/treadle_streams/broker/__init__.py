"""The broker: configured servers, else a container, else a local Apache Kafka that treadle runs itself."""

from ._docker import DockerBroker, docker_ready
from ._errors import (
    BrokerBusy,
    BrokerDataDamaged,
    BrokerDirectoryInvalid,
    BrokerError,
    BrokerPortTaken,
    BrokerStartFailed,
    BrokerUnreachable,
    DockerFailed,
    KafkaJarsUnavailable,
    MissingExtra,
    NoProvider,
)
from ._local import LocalBroker
from ._ports import reserved as reserved_ports
from ._properties import IMAGE, KAFKA_VERSION, container_environment, new_cluster_id
from ._provider import Broker, ConfiguredBroker
from ._resolve import announce, choose, down, resolve, up
from ._settings import BrokerSettings
from ._state import BrokerState

__all__ = [
    "IMAGE",
    "KAFKA_VERSION",
    "Broker",
    "BrokerBusy",
    "BrokerDataDamaged",
    "BrokerDirectoryInvalid",
    "BrokerError",
    "BrokerPortTaken",
    "BrokerSettings",
    "BrokerStartFailed",
    "BrokerState",
    "BrokerUnreachable",
    "ConfiguredBroker",
    "DockerBroker",
    "DockerFailed",
    "KafkaJarsUnavailable",
    "LocalBroker",
    "MissingExtra",
    "NoProvider",
    "announce",
    "choose",
    "container_environment",
    "docker_ready",
    "down",
    "new_cluster_id",
    "reserved_ports",
    "resolve",
    "up",
]
