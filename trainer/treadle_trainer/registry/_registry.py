"""Releases of one slot on disk.

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

from treadle_trainer._files import fsync_folder, locked, sha256_file, write_atomically
from treadle_trainer.errors import (
    AliasMoved,
    NoChampion,
    NoPredecessor,
    RegistryError,
    ReleaseMissing,
    ReleaseRefused,
    ReleaseTampered,
)
from treadle_trainer.registry._aliases import Aliases
from treadle_trainer.registry._audit import AuditLog

__all__ = ["Registry", "open_release", "slots"]

MANIFEST = "manifest.json"
STALE_STAGING_S = 86_400.0
"""A staged copy this old belongs to nobody: no copy of a model takes a day."""
EventKind = Literal["registered", "promoted", "rejected", "not_enough_evidence", "rolled_back", "quarantined", "failed"]


class Registry:
    """The releases of one slot of a workspace. Safe among processes; reading needs no lock."""

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
        return _read_manifest(self.folder(release))

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
            files = _copy_in(Path(folder), staging) if folder is not None else {}
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

    def promote(
        self,
        release: ReleaseId,
        *,
        expect: ReleaseId | None,
        actor: str = "user",
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> ReleaseEvent:
        """Make `release` the champion in place of `expect` (None: of nobody).

        Raises AliasMoved when the champion is another one, ReleaseRefused when the release is quarantined and `force` is off (by force
        it leaves quarantine), ReleaseTampered when its files are not what they were. Promoting the champion itself is refused.
        """
        self.verify(release)
        with self._locked() as events:
            aliases = self.aliases
            self._expect(aliases, expect)
            why = aliases.quarantined.get(str(release.number))
            if why is not None and not force:
                raise ReleaseRefused(f"{release} is quarantined ({why}); --force promotes it all the same")
            if aliases.champion == release.number:
                raise RegistryError(f"{release} is the champion already")
            moved = aliases.promoted(release.number)
            if why is not None:
                kept = {n: text for n, text in moved.quarantined.items() if n != str(release.number)}
                moved = msgspec.structs.replace(moved, quarantined=kept)
            event = self._event(
                "promoted", release, actor, reason, evidence, moved, len(events), previous=aliases.champion
            )
            self._move(events, moved, [event])
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
            moved = aliases.rolled_back(quarantine=reason if quarantine else None)
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

    def note(
        self,
        event: Literal["rejected", "not_enough_evidence", "failed"],
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
            self._sweep()
            yield events

    def _sweep(self) -> None:
        for staging in self.path.glob(".staging-*"):
            if time.time() - staging.stat().st_mtime > STALE_STAGING_S:
                shutil.rmtree(staging, ignore_errors=True)

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
        kind: EventKind,
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
            previous=_text(self._optional(previous)),
            champion=_text(self._optional(aliases.champion)),
            actor=actor,
            reason=reason,
            at=now(),
            sequence=sequence,
            evidence=dict(evidence or {}),
        )

    def _registered(self, release: ReleaseId, actor: str, reason: str) -> ReleaseEvent:
        manifest = self.folder(release) / MANIFEST
        return self._event("registered", release, actor, reason, {"manifest": sha256_file(manifest)}, self.aliases, 0)

    def _expect(self, aliases: Aliases, expect: ReleaseId | None) -> None:
        champion = self._optional(aliases.champion)
        if champion != expect:
            raise AliasMoved(
                f"the champion of {self.workspace}/{self.slot} is {champion or 'nobody'}, not {expect or 'nobody'}: someone moved it first",
                _text(champion),
            )

    def _own(self, release: ReleaseId) -> ReleaseId:
        if (release.workspace, release.slot) != (self.workspace, self.slot):
            raise ReleaseMissing(f"{release} does not belong to {self.workspace}/{self.slot}")
        return release

    def _optional(self, number: int | None) -> ReleaseId | None:
        return None if number is None else self.id(number)

    def _numbers(self) -> list[int]:
        names = (p.name for p in self.path.iterdir())
        return [int(name[1:]) for name in names if name.startswith("r") and name[1:].isdecimal()]


def open_release(folder: Path) -> ReleaseManifest:
    """The manifest of the release in `folder`, after checking every file against it.

    This is what a loader calls before it trusts a file. Raises ReleaseMissing or ReleaseTampered naming the file.
    """
    if not (folder / MANIFEST).is_file():
        raise ReleaseMissing(f"{folder}: no release lies there (no {MANIFEST})")
    manifest = _read_manifest(folder)
    found = {name: path for name, path in _walk(folder) if name != MANIFEST}
    for name, wanted in manifest.files.items():
        path = found.pop(name, None)
        if path is None:
            raise ReleaseTampered(f"{folder / name}: is missing; {manifest.release} must not be loaded")
        if path.is_symlink() or sha256_file(path) != wanted:
            raise ReleaseTampered(
                f"{folder / name}: is not what the manifest says; {manifest.release} must not be loaded"
            )
    if found:
        raise ReleaseTampered(
            f"{folder / next(iter(found))}: is not in the manifest; {manifest.release} must not be loaded"
        )
    return manifest


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


def _read_manifest(folder: Path) -> ReleaseManifest:
    path = folder / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=ReleaseManifest)
    except msgspec.MsgspecError as err:
        raise ReleaseTampered(f"{path}: not a release manifest: {err}") from err


def _copy_in(folder: Path, staging: Path) -> dict[str, str]:
    """Copy the files of `folder`, synced. Returns relative path -> sha256 of the copy."""
    if not folder.is_dir():
        raise RegistryError(f"{folder}: is no folder")
    files: dict[str, str] = {}
    for name, source in _walk(folder):
        if name == MANIFEST:
            raise RegistryError(f"{source}: a release writes its own {MANIFEST}; rename yours")
        if not source.resolve().is_relative_to(folder.resolve()):
            raise RegistryError(f"{source}: leads out of {folder}; a release holds its own files")
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
        files[name] = sha256_file(target)
    if not files:
        raise RegistryError(f"{folder}: holds no files")
    for inner in [p for p in staging.rglob("*") if p.is_dir()]:
        fsync_folder(inner)
    return files


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() or path.is_symlink():
            yield path.relative_to(folder).as_posix(), path


def _number(release: str | None) -> int:
    return -1 if release is None else ReleaseId.parse(release).number


def _text(release: ReleaseId | None) -> str | None:
    return None if release is None else str(release)
