"""A pass of the mirror over one slot, and the loop that follows all slots of a workspace."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from treadle_schemas import ReleaseId

from treadle_trainer._files import locked, sha256_file
from treadle_trainer.errors import MirrorFailed
from treadle_trainer.mirror._facts import Facts, aliases_of, facts_of
from treadle_trainer.mirror._mlflow import MlflowStore
from treadle_trainer.registry import Aliases, Registry, slots
from treadle_trainer.scorecard.run import stored

__all__ = ["Mirror", "Passed", "follow"]

LOOK_S: Final = 2.0
"""How often the registry is looked at."""
RETRY_S: Final = (2.0, 60.0)
"""After a failure: the first pause, which doubles, and the longest."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Passed:
    """What a pass changed in MLflow: runs written, model versions made, aliases moved."""

    runs: int = 0
    versions: int = 0
    aliases: int = 0


class Mirror:
    """Shows one slot in MLflow: the experiment `treadle/WORKSPACE/SLOT`, and the registered model `WORKSPACE.SLOT`."""

    def __init__(self, registry: Registry, uri: str) -> None:
        self.registry = registry
        self._uri = uri
        self._store: MlflowStore | None = None
        self._seen: object = None

    def catch_up(self, should_stop: Callable[[], bool] = lambda: False) -> Passed:
        """Write what MLflow does not say yet. Raises MirrorFailed; whatever was written by then stays, and the next pass goes on.

        1 runs, each complete by itself, 2 a model version for each run that has none, 3 aliases. A registry that has not changed since
        the last whole pass is not read, and MLflow not asked.
        """
        seen = self._state()
        if seen == self._seen:
            return Passed()
        registry = self.registry
        # one mirror at a time on this machine: two would each make a run of a new release
        with locked(registry.path / "mirror.lock"):
            store = self._store = self._store or self._opened()
            runs, versions = store.runs(), store.versions()
            wrote = made = 0
            version_of: dict[int, str] = {}
            # before the releases: whatever these name is among them
            aliases = registry.aliases
            for number, facts in self._facts(aliases):
                if should_stop():
                    return Passed(runs=wrote, versions=made)
                known = runs.get(facts.manifest)
                if known is None or known.digest != facts.digest:
                    run = store.write(facts, known)
                    wrote += 1
                else:
                    run = known.run
                if run not in versions:
                    versions[run] = store.version(facts, run)
                    made += 1
                version_of[number] = versions[run]
            wanted = {
                alias: None if number is None else version_of.get(number)
                for alias, number in aliases_of(aliases).items()
            }
            moved = store.set_aliases(wanted)
        self._seen = seen
        return Passed(runs=wrote, versions=made, aliases=moved)

    def _opened(self) -> MlflowStore:
        workspace, slot = self.registry.workspace, self.registry.slot
        return MlflowStore(
            self._uri, f"treadle/{workspace}/{slot}", f"{workspace}.{slot}", f"treadle://{workspace}/{slot}"
        )

    def _facts(self, aliases: Aliases) -> list[tuple[int, Facts]]:
        registry = self.registry
        events = registry.events()
        out = []
        for manifest in registry.releases():
            release = ReleaseId.parse(manifest.release)
            facts = facts_of(
                manifest,
                sha256_file(registry.folder(release) / "manifest.json"),
                [event for event in events if event.release == manifest.release],
                aliases,
                [card for _, card in stored(registry, release)],
                collected=registry.collected(release),
            )
            out.append((release.number, facts))
        return out

    def _state(self) -> object:
        """Changes when the registry says something new."""
        path = self.registry.path
        files = [path / "audit.jsonl", path / "aliases.json", *sorted((path / "scorecards").glob("*/*.json"))]
        return [(file.name, stat.st_size, stat.st_mtime_ns) for file in files if (stat := _stat(file))]


def follow(
    root: Path,
    workspace: str,
    uri: str,
    should_stop: Callable[[], bool],
    *,
    slot: str | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Mirror the slots of a workspace, those that are made later too, until `should_stop`. Where MLflow fails it is tried again."""
    mirrors: dict[str, Mirror] = {}
    wait, said = RETRY_S[0], ""
    while not should_stop():
        try:
            for _, name in slots(root, workspace):
                if slot in (None, name) and not should_stop():
                    mirror = mirrors.setdefault(name, Mirror(Registry(root, workspace, name), uri))
                    passed = mirror.catch_up(should_stop)
                    if passed != Passed():
                        logger.info("%s/%s: %s", workspace, name, passed)
            rest, wait, said = LOOK_S, RETRY_S[0], ""
        except MirrorFailed as err:
            if str(err) != said:
                logger.warning("%s; nothing else waits for it, and it is tried again", err)
            mirrors.clear()
            rest, wait, said = wait, min(2 * wait, RETRY_S[1]), str(err)
        until = time.monotonic() + rest
        while not should_stop() and time.monotonic() < until:
            pause(min(0.25, rest))


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:
        return None
