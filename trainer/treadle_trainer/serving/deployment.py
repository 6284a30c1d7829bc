"""The releases of one slot on a server: loaded, probed, and only then in the routes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import httpx
from msgspec.structs import replace
from treadle_schemas import ReleaseId
from treadle_schemas.errors import TreadleError
from treadle_schemas.records import ReleaseManifest
from treadle_schemas.traffic import Arm, Traffic

from treadle_trainer.errors import DeployFailed
from treadle_trainer.registry import Registry
from treadle_trainer.registry._aliases import Aliases
from treadle_trainer.serving.backends import CONNECT_S, Backend, Served, probe
from treadle_trainer.serving.routing import Breaker

if TYPE_CHECKING:
    from treadle import Recorder

__all__ = ["Deployment", "Loaded"]

_LOG = logging.getLogger(__name__)
POLL_S: Final = 0.25
"""How often the registry is looked at: a release that is prepared serves that long after its alias moved."""
RETRY_S: Final = 5.0
MAX_RETRY_S: Final = 60.0


@dataclass
class Loaded:
    """A release that answered a probe, with the client that asks it and records what it says."""

    release: str
    manifest: ReleaseManifest
    served: Served
    client: httpx.AsyncClient
    recorder: Recorder
    open: int = 0
    """Requests on their way."""


class Deployment:
    """One slot. `follow` keeps traffic as the registry wants it, as far as releases can be loaded."""

    def __init__(
        self,
        registry: Registry,
        backend: Backend,
        recorder_of: Callable[[ReleaseId], Recorder],
        *,
        answer_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`recorder_of` makes the recorder of what a release says; the deployment closes it."""
        self.registry = registry
        self.breaker = Breaker()
        self.traffic = Traffic()
        """Of loaded releases only."""
        self.problems: dict[str, str] = {}
        """Why a release that should serve does not."""
        self._backend = backend
        self._recorder_of = recorder_of
        self._answer_s = answer_s
        self._clock = clock
        self._loaded: dict[str, Loaded] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._again_at: dict[str, tuple[float, float]] = {}
        self._lost: list[Loaded] = []
        self._settled: Aliases | None = None
        """What the registry said when all that it named was ready: as long as it says that, nothing is to do."""

    @property
    def loaded(self) -> tuple[str, ...]:
        """Every release that is ready, in the order in which they became so."""
        return tuple(self._loaded)

    def answering(self, key: str) -> list[tuple[Arm, Loaded]]:
        """Who answers an episode, and who does where that one cannot: at last the champion. Empty: nobody is ready."""
        traffic = self.traffic
        if traffic.champion is None:
            return []
        champion: tuple[Arm, Loaded] = ("champion", self._loaded[traffic.champion])
        arm, release = traffic.arm(key), traffic.release(key)
        if arm == "champion" or release is None or not self.breaker.allows(release, self._clock()):
            return [champion]
        return [(arm, self._loaded[release]), champion]

    async def prepare(self, release: str) -> Loaded:
        """Verify, load and probe a release, unless that was done. Raises ReleaseMissing, ReleaseTampered, DeployFailed."""
        async with self._locks.setdefault(release, asyncio.Lock()):
            known = self._loaded.get(release)
            if known is not None:
                return known
            manifest = await asyncio.to_thread(self.registry.verify, ReleaseId.parse(release))
            served = await self._backend.load(manifest, self.registry.folder(ReleaseId.parse(release)))
            await probe(served)
            made = self._loaded[release] = self._connected(release, manifest, served)
            return made

    async def follow(self) -> None:
        """Do what the registry says, until cancelled."""
        while True:
            try:
                await self.step()
            except Exception as err:  # the proxy goes on with what it has
                _LOG.error("%s: the registry could not be followed: %s", self.registry.slot, err)
            await asyncio.sleep(POLL_S)

    async def step(self) -> None:
        """Look at the registry once. Traffic changes only after the releases that it names are ready."""
        aliases = await asyncio.to_thread(lambda: self.registry.aliases)
        if aliases == self._settled:
            return
        wanted = await asyncio.to_thread(self.registry.traffic, aliases)
        named = [release for release in (wanted.champion, wanted.canary, wanted.control) if release is not None]
        ready = {release: await self._is_ready(release) for release in dict.fromkeys(named)}
        champion = wanted.champion
        if champion is not None and not ready[champion]:
            champion = self.traffic.champion or await self._fallback()
        self.traffic = self._loaded_of(replace(wanted, champion=champion, manifests={}))
        self._settled = aliases if all(ready.values()) else None
        for gone in set(self.problems) - set(named):
            del self.problems[gone]
        await self._retire({*named, *([] if champion is None else [champion])})

    def lost(self, gone: Loaded) -> None:
        """The server of a release is not there any more. It is loaded anew, where the registry still names it."""
        if self._loaded.get(gone.release) is gone:
            del self._loaded[gone.release]
            self._lost.append(gone)
            self.traffic = self._loaded_of(self.traffic)
            self._settled = None

    async def close(self) -> None:
        """Let go of every client and recorder. The backend is its owner's."""
        for each in (*self._loaded.values(), *self._lost):
            await _let_go(each)
        self._loaded.clear()
        self._lost.clear()
        self.traffic = Traffic()

    async def _is_ready(self, release: str) -> bool:
        if release in self._loaded:
            return True
        at, pause = self._again_at.get(release, (0.0, RETRY_S))
        if self._clock() < at:
            return False
        try:
            await self.prepare(release)
        except (TreadleError, OSError) as err:
            self.problems[release] = str(err)
            self._again_at[release] = (self._clock() + pause, min(MAX_RETRY_S, 2 * pause))
            _LOG.error("%s does not serve: %s", release, err)
            return False
        self.problems.pop(release, None)
        self._again_at.pop(release, None)
        return True

    async def _fallback(self) -> str | None:
        """At the start, where the champion cannot be loaded: the one before it, rather than nobody."""
        before = await asyncio.to_thread(lambda: self.registry.predecessor)
        return str(before) if before is not None and await self._is_ready(str(before)) else None

    async def _retire(self, needed: set[str]) -> None:
        """Let go of releases that nothing names any more. The newest stays: a rollback or a promotion may be about to name it."""
        for gone in [each for each in self._lost if not each.open]:
            self._lost.remove(gone)
            await _let_go(gone)
        idle = [release for release, each in self._loaded.items() if release not in needed and not each.open]
        for release in idle[:-1]:
            each = self._loaded.pop(release)
            self._locks.pop(release, None)
            await _let_go(each)
            with suppress(DeployFailed):
                await self._backend.unload(each.manifest)

    def _loaded_of(self, wanted: Traffic) -> Traffic:
        """The same as far as releases are loaded."""
        named = {"champion": wanted.champion, "canary": wanted.canary, "control": wanted.control}
        return replace(wanted, **{arm: release if release in self._loaded else None for arm, release in named.items()})

    def _connected(self, release: str, manifest: ReleaseManifest, served: Served) -> Loaded:
        from treadle.integrations import wrap

        recorder = self._recorder_of(ReleaseId.parse(release))
        client = httpx.AsyncClient(
            # the proxy passes bodies on as they come
            headers={**served.headers, "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(self._answer_s, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None),
        )
        return Loaded(release, manifest, served, wrap(client, recorder), recorder)


async def _let_go(each: Loaded) -> None:
    await each.client.aclose()
    await asyncio.to_thread(each.recorder.close)
