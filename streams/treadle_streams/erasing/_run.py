"""The steps of an erasure, see the package."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
from treadle.keys import ring_of
from treadle.log import Admin, Sender
from treadle.settings import Settings
from treadle.subjects import keys_of, names_of
from treadle_schemas import codec
from treadle_schemas.erasing import Eraser, ErasureRequest, Erasures, StoreReport, subject_digest
from treadle_schemas.events import Erasure
from treadle_schemas.moments import now, to_micros
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams import workspaces
from treadle_streams.erasing._local import erase_spool, erase_state
from treadle_streams.erasing._log import Finding, Held, find, held
from treadle_streams.erasing._releases import Remembered
from treadle_streams.live import erase as erase_live
from treadle_streams.live.errors import LiveError
from treadle_streams.snapshot._rounds import wait_for_join
from treadle_streams.snapshot.errors import JoinBehind
from treadle_streams.snapshot.policies import policies_of, target_of

__all__ = ["Erased", "Step", "erase", "erased_episodes"]

Step = Callable[[str], None]
"""Told before each step, for tests that cut an erasure off."""
TABLES: Final = (
    "treadle_trainer.erasers",
    "treadle_corpus.erasers",
    "treadle_streams.exporting.erasers",
    "treadle_streams.archive.erasers",
)
"""Modules with a constant ERASERS, in the order in which they are asked: releases are found by corpora, before these forget, and exports
are made of these."""
_TOLD_EVERY: Final = 500
"""Erasures in flight to Kafka at once."""


@dataclass(slots=True)
class Erased:
    """What an erasure did."""

    workspace: str
    erased_at: str
    dry_run: bool
    episodes: int = 0
    rows: int = 0
    foreign: int = 0
    """Of these, interactions of other subjects in the same episodes."""
    reports: list[StoreReport] = field(default_factory=list)

    @property
    def remains(self) -> bool:
        """Does any store still hold text?"""
        return any(report.remains for report in self.reports)


def erase(
    settings: Settings,
    workspace: str,
    subject: str,
    *,
    reason: str = "asked for by the subject",
    corpora: Collection[Path] = (),
    dry_run: bool = False,
    wait_s: float = 300.0,
    tell: Callable[[str], None] = lambda _: None,
    step: Step = lambda _: None,
) -> Erased:
    """Erase everything recorded of a subject so far, in every store of this machine and in the workspace's log.

    Waits up to `wait_s` for the join, and as long for each store. Raises WorkspaceMissing, SettingError, LogError; whatever was done by
    then stays done, and calling it again goes on.
    """
    servers = settings.bootstrap_servers
    present = workspaces.get(servers, workspace)
    names = names_of(settings, subject)
    keys = keys_of(settings, workspace, names) if present.encrypt == "subjects" else []
    known = Finding()
    tell("reading the log")
    find(servers, workspace, names, known, keys)
    erased_at = _moment(present, names, known)
    out = Erased(workspace, erased_at, dry_run)
    behind: str | None = None
    if not dry_run:
        step("remember")
        present = _remember(settings, present, names, erased_at)
        while True:
            step("say")
            _say(servers, workspace, known, erased_at, reason)
            step("wait")
            try:
                wait_for_join(Admin(servers), present, wait_s, tell)
            except JoinBehind as err:
                behind = str(err)
                break
            # what was on its way when the log was read
            if not find(servers, workspace, names, known, keys):
                break
        if keys:
            step("keys")
            out.reports.append(_destroy(settings, workspace, keys))
    step("stores")
    about = held(servers, workspace, known.episodes, names, keys)
    out.episodes, out.rows, out.foreign = len(known.episodes), len(about.rows), about.foreign
    request = ErasureRequest(
        home=settings.home,
        corpus_root=str(settings.corpus_root),
        workspace=workspace,
        subjects=names,
        episodes=frozenset(known.episodes),
        rows=frozenset(about.rows),
        corpora=frozenset(_corpora(settings, present)) | frozenset(corpora),
        archives=present.archives,
        reason=reason,
        erased_at=erased_at,
        dry_run=dry_run,
    )
    for report in _stores(settings, present, request, about, behind, wait_s):
        out.reports.append(report)
        step(f"store {report.store}")
    return out


def _corpora(settings: Settings, present: WorkspaceSettings) -> Iterator[Path]:
    """Where the workspace's policies make corpora."""
    for policy in policies_of(present).values():
        yield target_of(settings, present.workspace, policy)[1]


def erased_episodes(servers: str, workspace: str) -> frozenset[str]:
    """The episodes that the log says are erased. Raises WorkspaceMissing, LogError."""
    if not workspaces.get(servers, workspace).erased.subjects:
        return frozenset()
    known = Finding()
    find(servers, workspace, (), known)
    return frozenset(known.said)


def _destroy(settings: Settings, workspace: str, keys: list[str]) -> StoreReport:
    """Destroy the subject's keys: what they sealed in topics, archives of them and the join's state cannot be read any more."""
    store = ring_of(workspace, settings).store
    for key_id in keys:
        store.destroy(key_id)
    place = str(settings.keys_folder / workspace)
    note = "copies in backups of the key store are not destroyed by this"
    return StoreReport(store="keys", place=place, rows=len(keys), notes=(note,))


def _moment(present: WorkspaceSettings, names: frozenset[str], known: Finding) -> str:
    """When the erasure counts as done: a run that goes on with an earlier one has that one's moment, unless the subject came back since."""
    if present.erased.salt:
        digests = [subject_digest(present.erased.salt, name) for name in names]
        before = [present.erased.subjects[digest] for digest in digests if digest in present.erased.subjects]
        if before and known.newest_us <= to_micros(max(before), "erased"):
            return max(before)
    return now()


def _remember(
    settings: Settings, present: WorkspaceSettings, names: frozenset[str], erased_at: str
) -> WorkspaceSettings:
    salt = present.erased.salt or secrets.token_hex(32)

    def change(found: WorkspaceSettings) -> WorkspaceSettings:
        own = found.erased.salt or salt
        subjects = {subject_digest(own, name): erased_at for name in sorted(names)}
        return msgspec.structs.replace(found, erased=Erasures(own, {**found.erased.subjects, **subjects}))

    return workspaces.update(settings.bootstrap_servers, present.workspace, change, home=settings.home)


def _say(servers: str, workspace: str, known: Finding, erased_at: str, reason: str) -> None:
    fresh = sorted(known.episodes - known.said)
    if not fresh:
        return
    sender, name = Sender(servers), topic(workspace, "interactions")
    for episode in fresh:
        value = Erasure(episode_id=episode, erased_at=erased_at, reason=reason, source="treadle/erase")
        headers = codec.make_headers(codec.ERASURE, workspace, source="treadle/erase")
        sender.send(name, episode.encode(), codec.encode(codec.to_json(value)), headers)
        sender.wait_below(_TOLD_EVERY)
    sender.flush()
    known.said.update(fresh)


def _stores(
    settings: Settings,
    present: WorkspaceSettings,
    request: ErasureRequest,
    about: Held,
    behind: str | None,
    wait_s: float,
) -> Iterator[StoreReport]:
    home, workspace, dry_run = request.home, request.workspace, request.dry_run
    if behind is not None:
        yield StoreReport(store="join", place=workspace, remains=(f"{behind}; then run the command again",))
    ends = Admin(settings.bootstrap_servers).end_offsets(
        (topic(workspace, "interactions"), number) for number in range(present.partitions)
    )
    passed = {number: end for (_, number), end in ends.items()}
    waits_s = 0.0 if behind is not None else wait_s
    yield from erase_state(home, workspace, passed, len(request.episodes), waits_s, dry_run=dry_run)
    yield from _live(request, wait_s)
    ids = {interaction for _, interaction in request.rows}
    spool = erase_spool(settings.spool_folder / workspace, request.episodes, ids, dry_run=dry_run)
    if spool is not None:
        yield spool
    remembered = Remembered(home, workspace, present.erased.salt, request.subjects)
    for eraser in _erasers():
        for report in eraser(request):
            yield remembered.add(report, keep=not dry_run)
    yield from remembered.left()
    yield from _log_reports(request, about)


def _live(request: ErasureRequest, wait_s: float) -> Iterator[StoreReport]:
    folder = request.home / "index" / request.workspace
    if not folder.exists():
        return
    if request.dry_run:
        yield StoreReport(store="live index", place=str(folder))
        return
    try:
        done = erase_live(request.home, request.workspace, episodes=sorted(request.episodes), wait_s=wait_s)
        yield StoreReport(store="live index", place=str(folder), rows=done.rows)
    except LiveError as err:
        yield StoreReport(store="live index", place=str(folder), remains=(str(err),))


def _erasers() -> Iterator[Eraser]:
    for name in TABLES:
        try:
            table = importlib.import_module(name).ERASERS
        except ModuleNotFoundError as err:
            if err.name is None or not f"{name}.".startswith(f"{err.name}."):
                raise
            continue  # that package is not part of this installation
        for _, target in table:
            module, _, attribute = target.partition(":")
            eraser: Eraser = getattr(importlib.import_module(module), attribute)
            yield eraser


def _log_reports(request: ErasureRequest, about: Held) -> Iterator[StoreReport]:
    """What the topics hold: nothing takes it out but the end of its time there."""
    for places, why in (
        (about.text, "its text stays until the topic's retention ends it"),
        (about.state, "Kafka compacts it away in its own time"),
    ):
        for name in places.topics():
            lines = [line for line in places.lines() if line.startswith(f"{name}[")]
            count = sum(last - first + 1 for _, found in places.of(name) for first, last in found)
            yield StoreReport(store="log", place=name, rows=count, remains=tuple(f"{line}: {why}" for line in lines))
