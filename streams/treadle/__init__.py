"""What an agent imports: capture, outcomes, releases.

    recorder = treadle.Recorder("shop", agent="desk")
    with recorder.interaction(messages=messages, task_id="refund-17") as turn:
        answer = turn.respond(client.chat.completions.create(...))
    treadle.outcome(turn.handle, "reward", 1.0)        # anywhere, any time later

Light: importing starts no thread and opens no connection, and Kafka's client is loaded at the first event.
"""

import importlib
from typing import TYPE_CHECKING, Any

from treadle_schemas import Handle

from treadle.episodes import EpisodeScope, current_turn
from treadle.episodes import current as current_episode
from treadle.memory import MemorySink
from treadle.outcomes import (
    comment,
    demonstration,
    end_episode,
    episode_outcome,
    flush,
    outcome,
    preference,
    retract,
    rights,
)
from treadle.recorder import Recorder
from treadle.settings import Settings
from treadle.targets import Target, handle_of

if TYPE_CHECKING:
    from treadle.consuming import AsyncConsumed, Consumed, aconsume, consume
    from treadle.integrations import instrument, uninstrument, wrap
    from treadle.interactions import InteractionScope
    from treadle.releases import Releases

__all__ = [
    "AsyncConsumed",
    "Consumed",
    "EpisodeScope",
    "Handle",
    "InteractionScope",
    "MemorySink",
    "Recorder",
    "Releases",
    "Settings",
    "Target",
    "aconsume",
    "comment",
    "consume",
    "current_episode",
    "current_turn",
    "demonstration",
    "end_episode",
    "episode_outcome",
    "flush",
    "handle_of",
    "instrument",
    "outcome",
    "preference",
    "retract",
    "rights",
    "uninstrument",
    "wrap",
]

_AT_FIRST_USE = {
    "AsyncConsumed": "consuming",
    "Consumed": "consuming",
    "InteractionScope": "interactions",
    "Releases": "releases",
    "aconsume": "consuming",
    "consume": "consuming",
    "instrument": "integrations",
    "uninstrument": "integrations",
    "wrap": "integrations",
}
"""Names that an agent which records by hand does not need, and their modules."""


def __getattr__(name: str) -> Any:
    module = _AT_FIRST_USE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = found
    return found
