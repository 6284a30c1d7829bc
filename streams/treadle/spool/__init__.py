"""The spool: what a recorder recorded is in a local file before `record` returns, and goes to Kafka from there.

    TREADLE_SPOOL/WORKSPACE/
      0001764...-PID-1-RANDOM.seg   frames, appended by one process (64 MiB at most)
      0001764...-PID-1-RANDOM.ack   how far Kafka has them
      quarantine/                   damaged segments, torn frames, rejected records: kept for a person to look at

A process that dies leaves its files; the next one that records to the workspace adopts them at its first event and every few seconds
after. The folder must outlive the container: mount a volume, or use `durable=False` where there is none.
"""

from treadle.spool._drain import Drain
from treadle.spool._format import COMPANION, EVENT, encode_headers, frame_around, read_body, scan
from treadle.spool._segment import Segment
from treadle.spool._spool import BLOCK_S, QUARANTINE, SEGMENT_BYTES, Spool

__all__ = [
    "BLOCK_S",
    "COMPANION",
    "EVENT",
    "QUARANTINE",
    "SEGMENT_BYTES",
    "Drain",
    "Segment",
    "Spool",
    "encode_headers",
    "frame_around",
    "read_body",
    "scan",
]
