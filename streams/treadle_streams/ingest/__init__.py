"""The HTTP receiver: events from those who cannot speak Kafka, GitHub's webhooks, OTLP spans.

    _server -> _app -> _body       bounded bodies
                    -> _access     who may write into which workspace
                    -> _events     JSON, JSON lines, CloudEvents; pure
                    -> _github     webhooks as outcomes; pure
                    -> _otlp       spans as interactions; pure
                    -> _desk       one recorder a workspace: rights, redaction, spool, Kafka

What an answer acknowledged is on this machine's disk, redacted, and goes to Kafka from there.
"""

from treadle_streams.ingest._access import Access
from treadle_streams.ingest._settings import IngestSettings

__all__ = ["Access", "IngestSettings"]
