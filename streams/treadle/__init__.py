"""What an agent imports: capture, outcomes, releases.

    recorder = treadle.Recorder("shop", agent="desk")
    handle = recorder.record(messages=messages, task_id="refund-17")
    treadle.outcome(str(handle), "reward", 1.0)        # anywhere, any time later

Light: importing starts no thread and opens no connection, and Kafka's client is loaded at the first event.
"""

from treadle_schemas import Handle

from treadle.consuming import Consumed, consume
from treadle.memory import MemorySink
from treadle.outcomes import flush, outcome, retract
from treadle.recorder import Recorder
from treadle.releases import Releases
from treadle.settings import Settings

__all__ = [
    "Consumed",
    "Handle",
    "MemorySink",
    "Recorder",
    "Releases",
    "Settings",
    "consume",
    "flush",
    "outcome",
    "retract",
]
