"""The moves of a slot: promotion and rollback, canary and control, pins, collection. Each is one replacement of `aliases.json`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
from treadle_schemas import ReleaseEvent, ReleaseId

from treadle_trainer._files import write_atomically
from treadle_trainer.errors import AliasMoved, NoChampion, NoPredecessor, RegistryError, ReleaseMissing
from treadle_trainer.registry._folders import COLLECTED
from treadle_trainer.registry._keeping import needed
from treadle_trainer.registry._records import Records, optional_text

__all__ = ["Registry", "slots"]


class Registry(Records):
    """The releases of one slot of a workspace. Safe among processes; reading needs no lock."""

    def promote(
        self,
        release: ReleaseId,
        *,
        expect: ReleaseId | None,
        actor: str = "user",
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        force: bool = False,
        approval: bool = False,
    ) -> ReleaseEvent:
        """Make `release` the champion in place of `expect` (None: of nobody). `approval`: a person agrees to what the gate proposed.

        Raises AliasMoved when the champion is another one, ReleaseRefused when the release is quarantined and `force` is off (by force
        it leaves quarantine), ReleaseTampered when its files are not what they were. Promoting the champion itself is refused.
        """
        self.verify(release)
        with self._locked() as events:
            aliases = self.aliases
            self._expect(aliases, expect)
            self._not_quarantined(aliases, release, force)
            if aliases.champion == release.number:
                raise RegistryError(f"{release} is the champion already")
            moved = aliases.promoted(release.number, len(events) + int(approval))
            entries = []
            if approval:
                entries.append(self._event("approved", release, actor, reason, evidence, moved, len(events)))
            at = len(events) + len(entries)
            event = self._event("promoted", release, actor, reason, evidence, moved, at, previous=aliases.champion)
            self._move(events, moved, [*entries, event])
            return event

    def rollback(
        self,
        reason: str,
        *,
        expect: ReleaseId | None = None,
        quarantine: bool = True,
        actor: str = "user",
        evidence: Mapping[str, Any] | None = None,
    ) -> ReleaseEvent:
        """Go back to the champion's recorded, unquarantined predecessor; `quarantine` keeps the present champion from returning.

        With `expect`, only if that is still the champion (else AliasMoved). Raises NoPredecessor; then nothing was changed.
        """
        with self._locked() as events:
            aliases = self.aliases
            if aliases.champion is None:
                raise NoChampion(f"{self.workspace}/{self.slot} has no champion to roll back from")
            if expect is not None:
                self._expect(aliases, expect)
            moved = aliases.rolled_back(quarantine=reason if quarantine else None, term=len(events) + int(quarantine))
            if moved is None or moved.champion is None:
                raise NoPredecessor(f"{self.id(aliases.champion)} has no predecessor that is not quarantined")
            bad, good = self.id(aliases.champion), self.id(moved.champion)
            entries = []
            if quarantine:
                entries.append(self._event("quarantined", bad, actor, reason, evidence, moved, len(events)))
            at = len(events) + len(entries)
            back = self._event("rolled_back", good, actor, reason, evidence, moved, at, previous=bad.number)
            self._move(events, moved, [*entries, back])
            return back

    def admit(
        self,
        release: ReleaseId,
        *,
        share: float,
        expect: ReleaseId | None,
        actor: str = "user",
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> ReleaseEvent:
        """Make `release` the canary, to serve `share` of the episodes beside the champion `expect`. A canary before it ends undecided.

        Raises AliasMoved, ReleaseRefused and ReleaseTampered as `promote` does, NoChampion without one to be compared with.
        """
        if not 0 < share <= 0.5:
            raise RegistryError(f"share {share:g}: a canary serves more than 0 and at most 0.5 of the episodes")
        self.verify(release)
        with self._locked() as events:
            aliases = self.aliases
            if aliases.champion is None:
                raise NoChampion(f"{self.workspace}/{self.slot} has no champion to try a canary against")
            self._expect(aliases, expect)
            self._not_quarantined(aliases, release, force)
            if release.number in (aliases.champion, aliases.canary):
                raise RegistryError(
                    f"{release} is the {'champion' if release.number == aliases.champion else 'canary'} already"
                )
            entries = []
            if aliases.canary is not None:
                why = f"replaced by {release}"
                entries.append(
                    self._event("withdrawn", self.id(aliases.canary), actor, why, None, aliases, len(events))
                )
            at = len(events) + len(entries)
            moved = aliases.admitted(release.number, share, at)
            event = self._event("admitted", release, actor, reason, evidence, moved, at, previous=aliases.canary)
            self._move(events, moved, [*entries, event])
            return event

    def withdraw(
        self,
        reason: str,
        *,
        expect: ReleaseId | None = None,
        quarantine: bool = False,
        actor: str = "user",
        evidence: Mapping[str, Any] | None = None,
    ) -> ReleaseEvent:
        """End the canary's trial without promoting it; `quarantine` keeps it from returning. With `expect`, only if that is the canary.

        Raises ReleaseMissing where there is no canary, AliasMoved where it is another one.
        """
        with self._locked() as events:
            aliases = self.aliases
            if aliases.canary is None:
                raise ReleaseMissing(f"{self.workspace}/{self.slot} has no canary")
            canary = self.id(aliases.canary)
            if expect not in (None, canary):
                raise AliasMoved(
                    f"the canary is {canary}, not {expect}", optional_text(self._optional(aliases.champion))
                )
            moved = aliases.withdrawn(quarantine=reason if quarantine else None)
            entries = []
            if quarantine:
                entries.append(self._event("quarantined", canary, actor, reason, evidence, moved, len(events)))
            at = len(events) + len(entries)
            event = self._event("withdrawn", canary, actor, reason, evidence, moved, at)
            self._move(events, moved, [*entries, event])
            return event

    def reject(self, release: ReleaseId, *, actor: str = "user", reason: str, quarantine: bool = False) -> ReleaseEvent:
        """Say no to a release that serves nothing; `quarantine` keeps it from being promoted. Raises RegistryError for one that serves."""
        with self._locked() as events:
            aliases = self.aliases
            if self._own(release).number in aliases.serving:
                raise RegistryError(
                    f"{release} serves: withdraw the canary, roll the champion back, or end the control"
                )
            moved, entries = aliases, []
            if quarantine:
                moved = aliases.condemned(release.number, reason)
                entries.append(self._event("quarantined", release, actor, reason, None, moved, len(events)))
            event = self._event("rejected", release, actor, reason, None, moved, len(events) + len(entries))
            self._move(events, moved, [*entries, event])
            return event

    def set_control(
        self, release: ReleaseId | None, *, share: float = 0.02, actor: str = "user", reason: str
    ) -> ReleaseEvent:
        """Let `release` serve `share` of the episodes for good, as what everything else is measured against; None: end that.

        Raises ReleaseRefused for a quarantined release, ReleaseTampered, ReleaseMissing where there is no control to end.
        """
        if release is not None:
            if not 0 < share <= 0.5:
                raise RegistryError(f"share {share:g}: a control serves more than 0 and at most 0.5 of the episodes")
            self.verify(release)
        with self._locked() as events:
            aliases = self.aliases
            if release is None and aliases.control is None:
                raise ReleaseMissing(f"{self.workspace}/{self.slot} has no control")
            if release is not None:
                self._not_quarantined(aliases, release, force=False)
            moved = aliases.controlled(None if release is None else release.number, share)
            about = release or self._optional(aliases.control)
            event = self._event(
                "controlled",
                about,
                actor,
                reason,
                {"share": share if release is not None else 0.0},
                moved,
                len(events),
                previous=aliases.control,
            )
            self._move(events, moved, [event])
            return event

    def pin(self, release: ReleaseId, *, actor: str = "user", reason: str, unpin: bool = False) -> ReleaseEvent:
        """Keep the files of a release whatever `collect` would do; `unpin` ends that. Raises ReleaseMissing, RegistryError for no pin."""
        if not unpin:
            self.verify(release)
        with self._locked() as events:
            aliases = self.aliases
            if unpin and str(self._own(release).number) not in aliases.pins:
                raise RegistryError(f"{release} is not pinned")
            moved = aliases.pinned(release.number, None if unpin else reason)
            event = self._event("unpinned" if unpin else "pinned", release, actor, reason, None, moved, len(events))
            self._move(events, moved, [event])
            return event

    def collect(self, releases: Collection[ReleaseId], *, actor: str = "user", reason: str) -> list[ReleaseEvent]:
        """Delete the files of releases that nothing needs; manifests and audit log stay. What is needed after all is left alone.

        `treadle_trainer.registry.needed` says what is needed; it is asked again under the lock.
        """
        out = []
        with self._locked() as events:
            keep = needed(self)
            for release in releases:
                if self._own(release).number in keep or self.collected(release):
                    continue
                # 1 mark (the commit), 2 delete, 3 audit; a crash after 1 is completed by the next to take the lock
                note = self._event("collected", release, actor, reason, None, self.aliases, len(events))
                mark = self.folder(release) / COLLECTED
                write_atomically(mark, msgspec.json.encode(note), staged=self.path)
                out.append(self._collected(events, release))
        return out


def slots(root: Path, workspace: str | None = None) -> list[tuple[str, str]]:
    """(workspace, slot) of every slot below the registry root that has a policy or releases."""
    if not root.is_dir():
        return []
    found = []
    for space in sorted(p for p in root.iterdir() if p.is_dir() and workspace in (None, p.name)):
        for slot in sorted(p for p in space.iterdir() if p.is_dir()):
            if (slot / "policy.json").exists() or (slot / "audit.jsonl").exists():
                found.append((space.name, slot.name))
    return found
