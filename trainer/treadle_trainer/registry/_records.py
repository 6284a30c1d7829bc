"""Releases of one slot on disk: reading, registering, recording.

Every change happens under one lock and commits in one step: a release by renaming its staged folder to `rN`, a move of the champion
by replacing `aliases.json`. The audit log follows. A crash before the step leaves nothing; a crash after it is completed by the next
one to take the lock, since the folder, or the alias file itself, says what the audit log lacks.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
from treadle_schemas import ReleaseEvent, ReleaseId, ReleaseManifest
from treadle_schemas.ids import check_slot, check_workspace
from treadle_schemas.moments import now
from treadle_schemas.records import ReleaseEventKind
from treadle_schemas.traffic import Traffic

from treadle_trainer._files import fsync_folder, locked, sha256_file, write_atomically
from treadle_trainer.errors import (
    AliasMoved,
    RegistryError,
    ReleaseMissing,
    ReleaseRefused,
    ReleaseTampered,
)
from treadle_trainer.registry._aliases import Aliases
from treadle_trainer.registry._audit import AuditLog
from treadle_trainer.registry._folders import COLLECTED, MANIFEST, copy_in, open_release, read_manifest

__all__ = ["Records", "optional_text"]

STALE_STAGING_S = 86_400.0
"""A staged copy this old belongs to nobody: no copy of a model takes a day."""


class Records:
    """The releases of one slot: what is there, what was decided, and the lock under which both change. `Registry` adds the moves."""

    def __init__(self, root: Path, workspace: str, slot: str = "main") -> None:
        self.root = Path(root)
        self.workspace = check_workspace(workspace)
        self.slot = check_slot(slot)
        self.path = self.root / workspace / slot
        self.path.mkdir(parents=True, exist_ok=True)
        self._audit = AuditLog(self.path / "audit.jsonl")
        with self._locked():
            pass  # completes what a crash left undone

    # -- reading ----------------------------------------------------------------------------------------------------------------

    def id(self, number: int) -> ReleaseId:
        """The full id of `rN`."""
        return ReleaseId(self.workspace, self.slot, number)

    @property
    def aliases(self) -> Aliases:
        """Champion, predecessors, quarantine, as of now."""
        path = self.path / "aliases.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Aliases)
        except FileNotFoundError:
            return Aliases()
        except msgspec.MsgspecError as err:
            raise RegistryError(f"{path}: not an alias file: {err}") from err

    @property
    def champion(self) -> ReleaseId | None:
        """The release that serves, or None before the first promotion."""
        return self._optional(self.aliases.champion)

    @property
    def predecessor(self) -> ReleaseId | None:
        """Where a rollback would go: the recorded predecessor that is not quarantined."""
        return self._optional(self.aliases.predecessor)

    @property
    def canary(self) -> ReleaseId | None:
        """The release on trial, if there is one."""
        return self._optional(self.aliases.canary)

    @property
    def control(self) -> ReleaseId | None:
        """The release that the lift of all others is measured against, if there is one."""
        return self._optional(self.aliases.control)

    def traffic(self, aliases: Aliases | None = None) -> Traffic:
        """Who serves which share of the episodes, with the hash of each manifest."""
        now_ = aliases or self.aliases
        names = {n: str(self.id(n)) for n in now_.serving}
        return Traffic(
            champion=names.get(-1 if now_.champion is None else now_.champion),
            canary=names.get(-1 if now_.canary is None else now_.canary),
            canary_share=now_.canary_share,
            control=names.get(-1 if now_.control is None else now_.control),
            control_share=now_.control_share,
            manifests={
                name: sha256_file(path)
                for n, name in names.items()
                # one that somebody deleted by hand must not keep the slot from moving on
                if (path := self.path / f"r{n}" / MANIFEST).exists()
            },
        )

    def releases(self) -> list[ReleaseManifest]:
        """The manifests of all releases, oldest first."""
        return [self.manifest(self.id(n)) for n in sorted(self._numbers())]

    def folder(self, release: ReleaseId) -> Path:
        """The folder of a release. Raises ReleaseMissing."""
        path = self.path / f"r{self._own(release).number}"
        if not (path / MANIFEST).is_file():
            known = ", ".join(f"r{n}" for n in sorted(self._numbers())) or "none yet"
            raise ReleaseMissing(f"{release}: no such release; {self.workspace}/{self.slot} has {known}")
        return path

    def manifest(self, release: ReleaseId) -> ReleaseManifest:
        """The manifest of a release. Raises ReleaseMissing or ReleaseTampered."""
        return read_manifest(self.folder(release))

    def collected(self, release: ReleaseId) -> bool:
        """Whether the files of a release were deleted to save space; its manifest is there all the same."""
        return (self.folder(release) / COLLECTED).exists()

    def events(self, after: int = -1) -> list[ReleaseEvent]:
        """The audit log beyond sequence number `after`, oldest first."""
        return self._audit.read(after)

    def verify(self, release: ReleaseId) -> ReleaseManifest:
        """Check every file of a release against its manifest, and the manifest against the audit log.

        Returns the manifest. Raises ReleaseTampered naming the file.
        """
        folder = self.folder(release)
        manifest = open_release(folder)
        if manifest.release != str(release):
            raise ReleaseTampered(f"{folder / MANIFEST}: names {manifest.release}, not {release}")
        recorded = next(
            (
                e.evidence.get("manifest")
                for e in self.events()
                if e.event == "registered" and e.release == str(release)
            ),
            None,
        )
        if recorded is not None and recorded != sha256_file(folder / MANIFEST):
            raise ReleaseTampered(f"{folder / MANIFEST}: was changed after the release was registered")
        return manifest

    # -- changing ---------------------------------------------------------------------------------------------------------------

    def register(
        self,
        folder: Path | None = None,
        *,
        hosted: str | None = None,
        prompt: str | None = None,
        actor: str = "user",
        reason: str = "registered",
        **lineage: Any,
    ) -> ReleaseId:
        """Add an immutable release: a copy of a model `folder`, the id of a `hosted` model, a system `prompt`, or several of them.

        `lineage` are further fields of ReleaseManifest (parent, base, corpus, corpus_version, corpus_hash, method, config, evaluation,
        sampling, skills, note, code_version). The number is new and never used again. Raises RegistryError for a folder that cannot be
        copied whole (missing, empty, with links that lead out of it).
        """
        if folder is None and hosted is None and prompt is None:
            raise RegistryError("a release needs a model folder, a hosted model id or a system prompt")
        # 1 copy beside the releases, 2 take a number, 3 write the manifest, 4 rename (the commit), 5 audit
        staging = self.path / f".staging-{uuid.uuid4().hex}"
        staging.mkdir()
        try:
            files = copy_in(Path(folder), staging) if folder is not None else {}
            kind = "model" if folder is not None else "hosted" if hosted is not None else "prompt"
            with self._locked() as events:
                number = 1 + max([-1, *self._numbers(), *(_number(e.release) for e in events)])
                release = self.id(number)
                manifest = ReleaseManifest(
                    **{
                        "kind": kind,
                        **lineage,
                        "release": str(release),
                        "path": f"{self.workspace}/{self.slot}/r{number}",
                        "hosted_model": hosted,
                        "system_prompt": prompt,
                        "files": files,
                        "created_at": now(),
                    }
                )
                write_atomically(staging / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
                os.rename(staging, self.path / f"r{number}")
                fsync_folder(self.path)
                self._append(events, [self._registered(release, actor, reason)])
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        return release

    def note(
        self,
        event: Literal["rejected", "not_enough_evidence", "failed", "awaiting_approval", "exported", "trusted"],
        release: ReleaseId | None,
        *,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
    ) -> ReleaseEvent:
        """Record a decision that moves nothing."""
        with self._locked() as events:
            entry = self._event(event, release, actor, reason, evidence, self.aliases, len(events))
            self._append(events, [entry])
            return entry

    # -- inside -----------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[list[ReleaseEvent]]:
        """Hold the slot's lock with everything a crash left undone completed. Yields the audit log."""
        with locked(self.path / "lock"):
            self._audit.drop_torn_line()
            events = self._audit.read()
            aliases = self.aliases
            missing = [e for e in aliases.entries if e.sequence >= len(events)]
            if missing:
                self._append(events, missing)
            listed = {e.release for e in events if e.event == "registered"}
            for number in sorted(self._numbers()):
                if str(self.id(number)) not in listed:
                    self._append(events, [self._registered(self.id(number), "registry", "completed after a crash")])
            listed = {e.release for e in events if e.event == "collected"}
            for number in sorted(self._numbers()):
                if (self.path / f"r{number}" / COLLECTED).exists() and str(self.id(number)) not in listed:
                    self._collected(events, self.id(number))
            self._sweep()
            yield events

    def _sweep(self) -> None:
        for staging in self.path.glob(".staging-*"):
            if time.time() - staging.stat().st_mtime <= STALE_STAGING_S:
                continue
            if staging.is_dir():
                shutil.rmtree(staging, ignore_errors=True)
            else:
                staging.unlink(missing_ok=True)

    def _collected(self, events: list[ReleaseEvent], release: ReleaseId) -> ReleaseEvent:
        folder = self.folder(release)
        note = msgspec.json.decode((folder / COLLECTED).read_bytes(), type=ReleaseEvent)
        for path in sorted(folder.rglob("*"), reverse=True):  # what lies in a folder before the folder
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif path.name not in (MANIFEST, COLLECTED) or path.parent != folder:
                path.unlink()
        fsync_folder(folder)
        entry = msgspec.structs.replace(note, sequence=len(events))
        self._append(events, [entry])
        return entry

    def _append(self, events: list[ReleaseEvent], entries: list[ReleaseEvent]) -> None:
        # a registration completed late takes the place that its lost entry would have had, at the end
        renumbered = [msgspec.structs.replace(e, sequence=len(events) + n) for n, e in enumerate(entries)]
        self._audit.append(renumbered)
        events += renumbered

    def _move(self, events: list[ReleaseEvent], moved: Aliases, entries: list[ReleaseEvent]) -> None:
        whole = msgspec.structs.replace(moved, entries=tuple(entries))
        write_atomically(self.path / "aliases.json", msgspec.json.format(msgspec.json.encode(whole), indent=1))
        self._append(events, entries)

    def _event(
        self,
        kind: ReleaseEventKind,
        release: ReleaseId | None,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] | None,
        aliases: Aliases,
        sequence: int,
        *,
        previous: int | None = None,
    ) -> ReleaseEvent:
        return ReleaseEvent(
            event=kind,
            slot=self.slot,
            release=str(self._own(release)) if release is not None else None,
            previous=optional_text(self._optional(previous)),
            champion=optional_text(self._optional(aliases.champion)),
            actor=actor,
            reason=reason,
            at=now(),
            sequence=sequence,
            evidence=dict(evidence or {}),
            traffic=self.traffic(aliases),
        )

    def _registered(self, release: ReleaseId, actor: str, reason: str) -> ReleaseEvent:
        manifest = self.folder(release) / MANIFEST
        return self._event("registered", release, actor, reason, {"manifest": sha256_file(manifest)}, self.aliases, 0)

    def _expect(self, aliases: Aliases, expect: ReleaseId | None) -> None:
        champion = self._optional(aliases.champion)
        if champion != expect:
            raise AliasMoved(
                f"the champion of {self.workspace}/{self.slot} is {champion or 'nobody'}, not {expect or 'nobody'}: someone moved it first",
                optional_text(champion),
            )

    def _not_quarantined(self, aliases: Aliases, release: ReleaseId, force: bool) -> None:
        why = aliases.quarantined.get(str(self._own(release).number))
        if why is not None and not force:
            raise ReleaseRefused(f"{release} is quarantined ({why}); --force promotes it all the same")

    def _own(self, release: ReleaseId) -> ReleaseId:
        if (release.workspace, release.slot) != (self.workspace, self.slot):
            raise ReleaseMissing(f"{release} does not belong to {self.workspace}/{self.slot}")
        return release

    def _optional(self, number: int | None) -> ReleaseId | None:
        return None if number is None else self.id(number)

    def _numbers(self) -> list[int]:
        names = (p.name for p in self.path.iterdir())
        return [int(name[1:]) for name in names if name.startswith("r") and name[1:].isdecimal()]


def _number(release: str | None) -> int:
    return -1 if release is None else ReleaseId.parse(release).number


def optional_text(release: ReleaseId | None) -> str | None:
    return None if release is None else str(release)
