"""`Releases`: which release an agent should load, now and from now on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import msgspec
from treadle_schemas.codec import RELEASE, decode
from treadle_schemas.errors import ContractError, SettingError, TreadleError
from treadle_schemas.ids import ReleaseId, check_slot, check_workspace
from treadle_schemas.records import ReleaseEvent, ReleaseManifest
from treadle_schemas.topics import topic
from treadle_schemas.traffic import Arm, Traffic

from treadle.errors import LogError, ReleaseUnusable
from treadle.release_files import open_release
from treadle.settings import Settings

if TYPE_CHECKING:
    from treadle.log import Record, TailReader

__all__ = ["Release", "Releases", "Serving"]

log = logging.getLogger("treadle.releases")

POLL_S: Final = 0.5
RETRY_S: Final = 0.5
"""How soon a release that could not be verified is looked at again: its files may still be arriving."""
_MOVES: Final = ("promoted", "rolled_back")
_TRAFFIC: Final = ("admitted", "withdrawn", "controlled")


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release whose files were checked: every one is what its manifest says, and the manifest what the registry said."""

    name: str
    folder: Path
    manifest: ReleaseManifest


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Who serves a slot. `event` made it so. A canary or control that could not be verified is None: the champion takes its share."""

    event: ReleaseEvent
    traffic: Traffic
    champion: Release
    canary: Release | None = None
    control: Release | None = None

    def pick(self, episode_id: str) -> Release:
        """The release that serves an episode: the same for every process that asks, for as long as the shares stand."""
        arms: dict[Arm, Release | None] = {"canary": self.canary, "control": self.control, "champion": self.champion}
        return arms[self.traffic.arm(episode_id)] or self.champion


class Releases:
    """Follows `.releases` of one workspace and slot: the events that moved the champion. Reads committed records only.

    The topic tells, the registry decides: events are ordered by the registry's own sequence, and a repeated or late one moves nothing.
    Calls raise LogUnreachable or TopicMissing; a lost connection during `poll` or `watch` is waited out.
    """

    def __init__(
        self,
        workspace: str | None = None,
        slot: str = "main",
        *,
        bootstrap_servers: str | None = None,
        registry: Path | None = None,
        settings: Settings | None = None,
    ) -> None:
        loaded = settings or Settings.load()
        name = workspace or loaded.workspace
        if not name:
            raise SettingError("no workspace: Releases('NAME'), or set TREADLE_WORKSPACE")
        self.workspace = check_workspace(name)
        self.slot = check_slot(slot)
        self._servers = bootstrap_servers or loaded.bootstrap_servers
        self._topic = topic(self.workspace, "releases")
        self._reader: TailReader | None = None
        self.registry = registry or loaded.home / "registry"
        self.trouble: str | None = None
        """Why `watch` cannot verify what serves now, None where it can."""
        self._champion: ReleaseEvent | None = None
        self._newest: ReleaseEvent | None = None
        self._retry_at = 0.0

    def current(self, timeout_s: float = 10.0) -> ReleaseEvent | None:
        """The event that made the present champion (`event.champion` is its id), or None before the first promotion.

        Reads to the end that the topic has now, waiting at most `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        reader = self._reading()
        end = self._end()
        while reader.positions[(self._topic, 0)] < end:
            self._take(reader.poll(POLL_S))
            if time.monotonic() > deadline:
                from treadle.errors import LogUnreachable

                raise LogUnreachable(f"{self._topic}: not read to its end {end} in {timeout_s:g} s")
        return self._champion

    def poll(self, timeout_s: float = 0.0) -> ReleaseEvent | None:
        """The newest event that moved the champion since the last call of `poll` or `current`, or None. Cheap: call it between tasks."""
        before = self._champion
        self._take(self._reading().poll(timeout_s))
        return self._champion if self._champion is not before else None

    @property
    def traffic(self) -> Traffic:
        """Who serves what, as far as read: `current` reads to the end, `poll` what has come since. Nothing is verified."""
        return self._newest.traffic or Traffic(champion=self._newest.champion) if self._newest else Traffic()

    def watch(self, timeout_s: float | None = None) -> Iterator[Serving]:
        """Who serves now, verified, then each change as it happens. Ends after `timeout_s` without one (None: never).

        Files are looked for below `registry` (default: TREADLE_HOME/registry). A champion whose files are missing or not what the registry
        said is not given: whoever watches keeps the last good one, `trouble` says why, and it is tried again every half second. A canary
        or control like that is left out. An unreachable Kafka is waited for. Where changes follow each other quickly, only the newest is
        given.
        """
        given: Serving | None = None
        quiet_since = time.monotonic()
        self.current()
        while True:
            serving = self._verified(given)
            if serving is not None and serving != given:
                yield serving
                given, quiet_since = serving, time.monotonic()
            if timeout_s is not None and time.monotonic() - quiet_since >= timeout_s:
                return
            self._wait(POLL_S if timeout_s is None else min(POLL_S, timeout_s))

    def _wait(self, timeout_s: float) -> None:
        """Read what comes within `timeout_s`. Whatever Kafka says, the last good release stays; it is asked anew."""
        try:
            self._take(self._reading().poll(timeout_s))
        except LogError as err:
            if str(err) != self.trouble:
                log.warning("%s/%s: %s", self.workspace, self.slot, err)
            self.trouble = str(err)
            self.close()
            time.sleep(timeout_s)

    def _verified(self, given: Serving | None) -> Serving | None:
        """What is to be given: None where nothing changed, or where the champion cannot be verified."""
        event = self._newest
        if event is None or event.champion is None:
            return None
        settled = given is not None and given.event == event and self.trouble is None
        if settled or time.monotonic() < self._retry_at:
            return None
        traffic = self.traffic
        troubles: list[str] = []
        champion, canary, control = (
            self._open(name, traffic, given, troubles) for name in (traffic.champion, traffic.canary, traffic.control)
        )
        said = "; ".join(troubles) or None
        if said is not None and said != self.trouble:  # once, not twice a second
            log.warning("%s/%s: %s", self.workspace, self.slot, said)
        self.trouble, self._retry_at = said, time.monotonic() + RETRY_S if said else 0.0
        if champion is None:
            return None
        return Serving(event=event, traffic=traffic, champion=champion, canary=canary, control=control)

    def _open(self, name: str | None, traffic: Traffic, given: Serving | None, troubles: list[str]) -> Release | None:
        if name is None:
            return None
        for known in (given.champion, given.canary, given.control) if given else ():
            if known is not None and known.name == name:
                return known  # immutable, and checked when it came
        try:
            which = ReleaseId.parse(name)
            folder = self.registry / which.workspace / which.slot / f"r{which.number}"
            manifest = open_release(folder, traffic.manifests.get(name))
            if manifest.release != name:
                raise ReleaseUnusable(folder, f"is {manifest.release}, not {name}")
        except (TreadleError, OSError) as err:
            troubles.append(str(err))
            return None
        return Release(name=name, folder=folder, manifest=manifest)

    def close(self) -> None:
        """Let go of the connection."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _reading(self) -> TailReader:
        if self._reader is None:
            from treadle.log import TailReader

            self._end()  # raises TopicMissing, where a reader would wait for the topic to appear
            self._reader = TailReader(self._servers, {(self._topic, 0): 0})
            self._champion = self._newest = None
        return self._reader

    def _end(self) -> int:
        from treadle.log import Admin

        # the high watermark: what was promoted a moment ago may wait for its transaction's marker
        return Admin(self._servers).end_offsets([(self._topic, 0)])[(self._topic, 0)]

    def _take(self, records: list[Record]) -> None:
        for record in records:
            try:
                event = decode(record.value, record.headers)
                if event.type != RELEASE:
                    continue
                moved = msgspec.convert(event.data, ReleaseEvent)
            except (ContractError, msgspec.ValidationError) as err:
                # a kind of event that this version does not know: whoever serves by it is told by a newer SDK
                log.warning("%s@%d is not understood: %s", record.topic, record.offset, err)
                continue
            if moved.slot != self.slot:
                continue
            if moved.event in _MOVES and (self._champion is None or moved.sequence > self._champion.sequence):
                self._champion = moved
            changes = moved.event in _MOVES or moved.event in _TRAFFIC
            if changes and (self._newest is None or moved.sequence > self._newest.sequence):
                self._newest = moved
