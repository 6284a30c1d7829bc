"""`treadle serve`: an OpenAI-compatible proxy in front of a workspace's releases.

    agent -> app (which slot, which episode) -> traffic (champion, canary, control) -> deployment (loaded and probed) -> backend

A request names a slot as its model. The same episode always meets the same release. What goes to the model and comes back is recorded
with slot and release, so that the join can grade it. A release that was promoted serves once it is loaded and has answered a probe;
until then, and when that fails, the one before it goes on.
"""

from __future__ import annotations

from treadle_trainer.serving.backends import Backend, Backends, HostedBackend, Served, VllmBackend
from treadle_trainer.serving.deployment import Deployment
from treadle_trainer.serving.routing import Breaker
from treadle_trainer.serving.settings import ServeSettings

__all__ = [
    "Backend",
    "Backends",
    "Breaker",
    "Deployment",
    "HostedBackend",
    "ServeSettings",
    "Served",
    "VllmBackend",
]
