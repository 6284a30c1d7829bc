"""The log: everything that the SDK, the streams and the trainer ask of Kafka outside the join's own transactions.

One package speaks confluent-kafka, so that the rest reads like the domain. All readers read committed.
"""

from treadle.log._admin import Admin
from treadle.log._common import MAX_MESSAGE_BYTES, Partition, Record
from treadle.log._group import GroupReader, begin_group
from treadle.log._opening import about_record, open_record
from treadle.log._reading import TailReader, read
from treadle.log._sending import Sender, producer_settings

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Admin",
    "GroupReader",
    "Partition",
    "Record",
    "Sender",
    "TailReader",
    "about_record",
    "begin_group",
    "open_record",
    "producer_settings",
    "read",
]
