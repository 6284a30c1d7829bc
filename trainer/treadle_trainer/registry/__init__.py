"""The registry: immutable releases of a slot, the alias that names its champion, and the log of who moved it and why.

Layout below the registry root: `WORKSPACE/SLOT/` with `rN/` (the files of a release and `manifest.json`), `aliases.json` (champion,
its predecessors, quarantine), `audit.jsonl` (one ReleaseEvent a line), `published.json` (how far `.releases` has the audit log),
`lock`. The registry decides; `.releases` tells.
"""

from treadle_trainer.registry._aliases import Aliases
from treadle_trainer.registry._folders import open_release
from treadle_trainer.registry._keeping import Flag, collectable, export, flags, needed, within_budget
from treadle_trainer.registry._outbox import Outbox
from treadle_trainer.registry._registry import Registry, slots

__all__ = [
    "Aliases",
    "Flag",
    "Outbox",
    "Registry",
    "collectable",
    "export",
    "flags",
    "needed",
    "open_release",
    "slots",
    "within_budget",
]
