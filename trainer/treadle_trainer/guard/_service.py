"""The guard as a process: follows `.progress`, asks the fold about champion and canary, and rolls back, promotes or withdraws.

Its position and the fold are saved together, so a restart goes on where it was; a rollback that was done before a crash is not done
twice, since it is a compare-and-set on the release that the evidence is about.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
from treadle.errors import LogError
from treadle.log import Admin, Partition, Record, TailReader
from treadle_schemas import ContractError, Progress, TreadleError, WorkspaceSettings, content_hash
from treadle_schemas.codec import PROGRESS, decode, to_json
from treadle_schemas.ids import ReleaseId
from treadle_schemas.moments import to_micros
from treadle_schemas.topics import topic

from treadle_trainer._files import write_atomically
from treadle_trainer._workspace import workspace_settings
from treadle_trainer.errors import AliasMoved, ReleaseMissing, ReleaseRefused, ReleaseTampered
from treadle_trainer.guard._state import Alarm, GuardState
from treadle_trainer.guard._trial import LiveVerdict
from treadle_trainer.policy import TrainingPolicy
from treadle_trainer.registry import Aliases, Outbox, Registry, slots

__all__ = ["GuardService"]

log = logging.getLogger("treadle.guard")

POLL_S = 0.2
SAVE_EVERY_S = 5.0
LOOK_EVERY_S = 2.0
"""How often policies are read anew and new workspaces looked for."""
RETRY_S = 1.0
FOLD = 2
"""Raised when the fold changes: a state saved by another one is folded anew from the log."""


class GuardService:
    """Guards every slot below the registry root that has a guard policy, or those of one workspace."""

    def __init__(self, registry_root: Path, bootstrap_servers: str, workspace: str | None = None) -> None:
        self._root = registry_root
        self._servers = bootstrap_servers
        self._workspace = workspace
        self._watches: dict[str, _Watch] = {}
        self._looked = -LOOK_EVERY_S
        self._troubles: dict[str, str] = {}

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Watch until told to stop. An unreachable Kafka is waited for."""
        try:
            while not should_stop():
                if not self.tick():
                    time.sleep(POLL_S)
        finally:
            self.close()

    def tick(self) -> bool:
        """One look at every workspace: read, fold, judge. False where there is nothing to watch or nothing can be reached."""
        self._look_for_workspaces()
        alive = False
        for name, watch in list(self._watches.items()):
            try:
                watch.tick(POLL_S / len(self._watches))
                alive = True
                self._troubles.pop(name, None)
            except TreadleError as err:
                self._trouble(name, err)
                self._watches.pop(name).close()
                self._looked = time.monotonic() - LOOK_EVERY_S + RETRY_S
        return alive

    def close(self) -> None:
        """Save where each fold is and let go."""
        while self._watches:
            self._watches.popitem()[1].close()

    def _look_for_workspaces(self) -> None:
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        wanted: dict[str, dict[str, TrainingPolicy]] = {}
        for workspace, slot in slots(self._root, self._workspace):
            try:
                policy = TrainingPolicy.load(self._root, workspace, slot)
            except TreadleError as err:
                self._trouble(f"{workspace}/{slot}", err)
                continue
            if policy is not None and policy.guard is not None:
                wanted.setdefault(workspace, {})[slot] = policy
        for workspace, policies in wanted.items():
            known = self._watches.get(workspace)
            if known is not None and known.watched == _watched(policies):
                continue
            if known is not None:
                self._watches.pop(workspace).close()
            try:
                self._watches[workspace] = _Watch(self._root, self._servers, workspace, policies)
            except TreadleError as err:
                self._trouble(workspace, err)
        for workspace in set(self._watches) - set(wanted):
            self._watches.pop(workspace).close()

    def _trouble(self, name: str, err: TreadleError) -> None:
        if self._troubles.get(name) != str(err):  # once, not every two seconds
            log.warning("%s: %s", name, err)
        self._troubles[name] = str(err)


class _Saved(msgspec.Struct):
    fingerprint: str
    positions: dict[int, int]
    slots: dict[str, msgspec.Raw]


class _Watch:
    """One workspace."""

    def __init__(self, root: Path, servers: str, workspace: str, policies: dict[str, TrainingPolicy]) -> None:
        self.workspace = workspace
        self.policies = policies
        self.watched = _watched(policies)
        self._path = root / workspace / "guard.json"
        self._registries = {slot: Registry(root, workspace, slot) for slot in policies}
        self._outboxes = {slot: Outbox(registry, servers) for slot, registry in self._registries.items()}
        self._published_size = dict.fromkeys(policies, -1)
        settings = workspace_settings(servers, workspace)
        self._fingerprint = content_hash(
            [
                self.watched,
                FOLD,
                to_json(settings)["metrics"],
                settings.created_at,
            ]
        )
        self._topic = topic(workspace, "progress")
        positions = self._positions(servers)
        self._states = self._fresh(settings)
        saved = self._read_saved()
        if saved is not None and all(positions[p][0] <= o <= positions[p][1] for p, o in saved.positions.items()):
            for slot, state in self._states.items():
                state.restore(bytes(saved.slots[slot]))
            start = {p: saved.positions.get(p, low) for p, (low, _) in positions.items()}
        else:
            start = {p: low for p, (low, _) in positions.items()}
        self._reader = TailReader(servers, {(self._topic, p): offset for p, offset in start.items()})
        self._served: dict[str, Aliases] = {}
        self._history = {(self._topic, p): end for p, (_, end) in positions.items()}
        """Where each partition ended when this began. Under steady traffic no reader is ever at the end."""
        self._caught_up = False
        self._saved = time.monotonic()
        self._dirty = False
        log.info("%s: guarding %s from offsets %s", workspace, ", ".join(sorted(policies)), start)

    def tick(self, timeout_s: float) -> None:
        """Read what is there, fold it, judge the champions, publish, now and then save."""
        for slot, registry in self._registries.items():
            self._serve(slot, registry)
        for record in self._reader.poll(timeout_s):
            self._observe(record)
            self._dirty = True
        self._caught_up = self._caught_up or all(self._reader.positions[p] >= end for p, end in self._history.items())
        for slot, registry in self._registries.items():
            if self._caught_up:  # half a history would make a floor of too few rows
                self._judge(slot, registry)
        for slot in self._registries:
            self._publish(slot)
        if self._dirty and time.monotonic() - self._saved > SAVE_EVERY_S:
            self._save()

    def close(self) -> None:
        """Save and let go."""
        self._reader.close()
        if self._dirty:
            self._save()

    def _observe(self, record: Record) -> None:
        progress: Progress | None = None
        try:
            event = decode(record.value, record.headers)
            if event.type == PROGRESS:
                progress = msgspec.convert(event.data, Progress)
        except (ContractError, msgspec.ValidationError) as err:
            # its time still moves the clock; its content is nothing this version can weigh
            log.error("%s[%d]@%d is not understood: %s", record.topic, record.partition, record.offset, err)
        for state in self._states.values():
            state.observe(record.partition, record.timestamp_ms, progress)

    def _serve(self, slot: str, registry: Registry) -> None:
        """Tell the fold who serves, where that has changed: a trial begins with the admission, whenever it is noticed."""
        aliases = registry.aliases
        moved = msgspec.structs.replace(aliases, entries=())
        if self._served.get(slot) == moved:
            return
        self._served[slot] = moved
        canary = control = None
        if aliases.canary is not None:
            since = _since_ms(registry, "admitted", registry.id(aliases.canary))
            canary = (str(registry.id(aliases.canary)), aliases.canary_term, since)
        if aliases.control is not None:
            which = registry.id(aliases.control)
            control = (str(which), _since_ms(registry, "controlled", which))
        champion = None if aliases.champion is None else str(registry.id(aliases.champion))
        self._states[slot].serve(champion, canary=canary, control=control)
        self._dirty = True

    def _judge(self, slot: str, registry: Registry) -> None:
        aliases, state = registry.aliases, self._states[slot]
        if aliases.champion is None:
            return
        champion = registry.id(aliases.champion)
        if aliases.predecessor is not None:
            alarm = state.judge(str(champion), str(registry.id(aliases.predecessor)), aliases.champion_term)
            if alarm is not None:
                self._roll_back(registry, champion, alarm)
                return
        verdict = state.verdict()
        if verdict is not None:
            self._conclude(registry, champion, verdict)

    def _conclude(self, registry: Registry, champion: ReleaseId, verdict: LiveVerdict) -> None:
        canary, evidence = ReleaseId.parse(verdict.canary), {"live": msgspec.to_builtins(verdict)}
        try:
            if verdict.decision == "promote":
                registry.promote(canary, expect=champion, actor="guard", reason=verdict.reason, evidence=evidence)
            else:
                bad = verdict.decision == "withdraw"
                registry.withdraw(
                    verdict.reason,
                    expect=canary,
                    quarantine=bad,
                    actor="guard",
                    evidence=evidence | self._behind(registry, canary),
                )
        except ReleaseTampered as err:  # it won, but by files that are there no more
            registry.withdraw(str(err), expect=canary, quarantine=True, actor="guard", evidence=evidence)
            log.error("%s withdrawn: %s", canary, err)
            return
        except (AliasMoved, ReleaseMissing, ReleaseRefused) as err:
            log.info("%s: not decided: %s", canary, err)
            return
        log.warning("%s %s: %s", canary, verdict.decision, verdict.reason)

    def _behind(self, registry: Registry, release: ReleaseId) -> dict[str, Any]:
        """The corpus version that a release was trained on: flagged, once it is in quarantine."""
        manifest = registry.manifest(release)
        return {} if manifest.corpus is None else {"flagged": f"{manifest.corpus}@v{manifest.corpus_version}"}

    def _roll_back(self, registry: Registry, champion: ReleaseId, alarm: Alarm) -> None:
        reason = (
            f"live {alarm.metric} {alarm.live_mean:.3f} over {alarm.after_rows} rows is below the floor {alarm.floor:.3f} "
            f"({alarm.predecessor} had {alarm.baseline:.3f} over {alarm.baseline_rows}), both at {alarm.age_s:g} s of age"
        )
        try:
            evidence = asdict(alarm) | self._behind(registry, champion)
            event = registry.rollback(reason, expect=champion, actor="guard", evidence=evidence)
        except AliasMoved as err:
            log.info("%s: no rollback needed: %s", champion, err)
            return
        log.warning("%s rolled back to %s: %s", champion, event.champion, reason)

    def _publish(self, slot: str) -> None:
        audit = self._registries[slot].path / "audit.jsonl"
        size = audit.stat().st_size if audit.exists() else 0
        if size == self._published_size[slot]:
            return
        try:
            self._outboxes[slot].publish()
            self._published_size[slot] = size
        except LogError as err:
            log.warning("%s/%s: not yet told on .releases: %s", self.workspace, slot, err)

    def _positions(self, servers: str) -> dict[int, tuple[int, int]]:
        admin = Admin(servers)
        count = admin.partitions().get(self._topic, 0)
        if not count:
            raise LogError(f"{self._topic} does not exist (yet)", retriable=True)
        partitions: list[Partition] = [(self._topic, p) for p in range(count)]
        starts, ends = admin.start_offsets(partitions), admin.end_offsets(partitions)
        return {p: (starts[self._topic, p], ends[self._topic, p]) for p in range(count)}

    def _fresh(self, settings: WorkspaceSettings) -> dict[str, GuardState]:
        return {
            slot: GuardState(slot, policy.guard, settings.metric(policy.guard.metric), policy.canary)
            for slot, policy in self.policies.items()
            if policy.guard is not None
        }

    def _read_saved(self) -> _Saved | None:
        try:
            saved = msgspec.json.decode(self._path.read_bytes(), type=_Saved)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None  # folded anew from the log
        return saved if saved.fingerprint == self._fingerprint and set(saved.slots) == set(self.policies) else None

    def _save(self) -> None:
        positions = {p: offset for (_, p), offset in self._reader.positions.items()}
        states = {slot: msgspec.Raw(state.save()) for slot, state in self._states.items()}
        write_atomically(self._path, msgspec.json.encode(_Saved(self._fingerprint, positions, states)))
        for slot, registry in self._registries.items():
            write_atomically(registry.path / "live.json", msgspec.json.encode(self._states[slot].report()))
        self._saved, self._dirty = time.monotonic(), False


def _watched(policies: dict[str, TrainingPolicy]) -> dict[str, Any]:
    """What of the policies the fold depends on."""
    return {
        slot: [msgspec.to_builtins(policy.guard), msgspec.to_builtins(policy.canary)]
        for slot, policy in policies.items()
    }


def _since_ms(registry: Registry, event: str, release: ReleaseId) -> int:
    """When a release last began to serve in that way, on the registry's clock."""
    found = (e.at for e in reversed(registry.events()) if e.event == event and e.release == str(release))
    at = next(found, None)
    return 0 if at is None else to_micros(at, "$.at") // 1000
