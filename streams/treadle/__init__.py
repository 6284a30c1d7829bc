"""What an agent imports: capture, outcomes, releases.

    recorder = treadle.Recorder("shop", agent="desk")
    with recorder.interaction(messages=messages, task_id="refund-17") as turn:
        answer = turn.respond(client.chat.completions.create(...))
    treadle.outcome(turn.handle, "reward", 1.0)        # anywhere, any time later

Light: importing starts no thread and opens no connection, and Kafka's client is loaded at the first event.
"""

from treadle_schemas import Handle

from treadle.consuming import Consumed, consume
from treadle.episodes import EpisodeScope, current_turn
from treadle.episodes import current as current_episode
from treadle.interactions import InteractionScope
from treadle.memory import MemorySink
from treadle.outcomes import comment, demonstration, episode_outcome, flush, outcome, preference, retract, rights
from treadle.recorder import Recorder
from treadle.releases import Releases
from treadle.settings import Settings
from treadle.targets import Target

__all__ = [
    "Consumed",
    "EpisodeScope",
    "Handle",
    "InteractionScope",
    "MemorySink",
    "Recorder",
    "Releases",
    "Settings",
    "Target",
    "comment",
    "consume",
    "current_episode",
    "current_turn",
    "demonstration",
    "episode_outcome",
    "flush",
    "outcome",
    "preference",
    "retract",
    "rights",
]
