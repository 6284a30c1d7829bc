"""Writing a corpus, exactly once.

One run folds `.graded` from the offsets in the journal on, in batches, and finishes one version:

    writer = CorpusWriter.open(path, workspace=..., policy=...)      # lock; an interrupted run is finished or gone on with
    writer.apply(records, offsets, watermark_ms)                     # commits without a version: rows and next offsets together
    writer.finish(selector, ...)                                     # decide, hash, commit, sync, vN

Killed anywhere, the next `open` continues from the offsets of the last commit. So vN is the exact fold of its offsets: offsets and
rows are one commit, decisions are a pure function of the rows, and the file of vN is the last thing that is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import msgspec
from treadle_schemas.errors import FieldError
from treadle_schemas.parts import names_parts

from treadle_corpus import _files, _versions
from treadle_corpus._bodies import BodyWriter, Entry, Packed, pack
from treadle_corpus._control import Control
from treadle_corpus._draft import Drafts
from treadle_corpus._journal import Journal, prune
from treadle_corpus._owner import check_owner
from treadle_corpus._parts import PartKey, PartMeta, PartRecord, Parts, part_name, whole_rows
from treadle_corpus._recovery import Found, begin, recover
from treadle_corpus._rows import (
    GradedRecord,
    Key,
    RowMeta,
    absorb,
    encode_key,
)
from treadle_corpus._state import State
from treadle_corpus._stored import StoredRows
from treadle_corpus._tally import Tally, kinds_of
from treadle_corpus._tombstones import Tombstones, adopt, forbidding, write_erasure
from treadle_corpus.errors import (
    CorpusError,
    CorpusFull,
    CorpusInUse,
    CorpusLocked,
    CorpusMissing,
)
from treadle_corpus.manifest import Manifest
from treadle_corpus.objects.place import place_at
from treadle_corpus.policy import Policy
from treadle_corpus.selector import Refusal, Selector

if TYPE_CHECKING:
    from treadle_corpus.objects.publisher import Publisher

__all__ = ["CorpusWriter"]


class CorpusWriter:
    """The one writer of a corpus. A context manager; leaving it lets the lock go."""

    def __init__(
        self, path: Path, lock: _files.Lock, found: Found, policy: Policy, publisher: Publisher | None = None
    ) -> None:
        """Use `open`."""
        self.path = path
        """Where it is written on this machine."""
        self.policy = policy
        self._lock = lock
        self._publisher = publisher
        self._stale = False
        self._take(found)

    def _take(self, found: Found) -> None:
        self._state: State = found.state
        self._journal: Journal = found.journal
        self._bodies: BodyWriter = found.bodies
        self._parts = Parts(self.path, found.bodies.bulks, found.state.parts)
        self._drafts = Drafts(found.state, StoredRows(self.path, found.state, found.bodies, self._parts))
        self._tombstones = Tombstones.read(self.path)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        workspace: str,
        workspace_created_at: str = "",
        policy: Policy,
        replace_policy: bool = False,
    ) -> CorpusWriter:
        """Open or make the corpus at `path`, and bring what an interrupted run left into order.

        Where `path` stands for a corpus in an object store, versions are made in a folder beside it and published there.
        Raises CorpusLocked, CorpusDamaged, CorpusOutdated, CorpusFull, CorpusUnwritable, PolicyMismatch, StoreError.
        """
        place = place_at(path)
        if place is not None:
            path = place.work
        else:
            with suppress(CorpusMissing):
                _files.check_marker(path)  # before a lock is left there
        lock = _files.Lock(path)
        publisher: Publisher | None = None
        try:
            if place is not None:
                from treadle_corpus.objects.publisher import Publisher

                publisher = Publisher(place)
            fresh = Control(workspace=workspace, workspace_created_at=workspace_created_at)
            there = _files.check_marker(path) == "ready"
            found = recover(path, fresh) if there else begin(path, fresh)
            writer = cls(path, lock, found, policy, publisher)
            check_owner(
                writer.name, writer._control, policy, workspace, workspace_created_at, replace_policy=replace_policy
            )
            writer.publish()
        except BaseException:
            if publisher is not None:
                publisher.close()
            lock.release()
            raise
        return writer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the lock go. Nothing is ever left uncommitted between two calls."""
        self._journal.close()
        self._bodies.close()
        if self._publisher is not None:
            self._publisher.close()
        self._lock.release()

    @property
    def name(self) -> str:
        """What the corpus is called on every machine: the URL of an object store, else the path."""
        return str(self.path) if self._publisher is None else self._publisher.place.url

    @property
    def _control(self) -> Control:
        return self._state.control

    @property
    def offsets(self) -> dict[int, int]:
        """Next offset of `.graded` by partition."""
        return {int(p): offset for p, offset in self._control.offsets.items()}

    @property
    def watermark_ms(self) -> int:
        """Newest timestamp on `.graded` below the offsets."""
        return self._control.watermark_ms

    @property
    def metric_kinds(self) -> dict[str, frozenset[str]]:
        """Metrics seen in any revision, with the kinds of their values: bool, number, text."""
        return {name: frozenset(kinds) for name, kinds in self._control.metric_kinds.items()}

    @property
    def manifest(self) -> Manifest | None:
        """Manifest of the newest version."""
        return self._state.manifest

    @property
    def tally(self) -> Tally:
        """How many rows stand where, since the last `finish`."""
        return self._drafts.counts.tally

    @property
    def new_rows(self) -> int:
        """Rows seen since the newest version."""
        return len(self._state.rows) - self._control.rows_at_version

    @property
    def unfinished(self) -> bool:
        """Was anything folded that no `finish` has looked at yet?"""
        return self._control.finished_offsets != self._control.offsets

    def knows(self, key: Key) -> bool:
        """Was the row seen before, or its episode erased?"""
        return key in self._state.rows or self._tombstones.covers(key[0])

    def erased(self, episode_id: str) -> bool:
        """Was the episode erased from this corpus?"""
        return self._tombstones.covers(episode_id)

    def settled(self, key: Key) -> bool | None:
        """Is the row settled by its last revision? None for a row that was never seen."""
        meta = self._state.rows.get(key)
        return None if meta is None else meta.settled

    def unsettled(self) -> Iterator[Key]:
        """Rows that settled once and are unsettled again."""
        return (key for key, meta in self._state.rows.items() if not meta.settled)

    def adopt_erasures(self, source: Path) -> None:
        """Take over what was erased from the corpus at `source`: nothing of it is taken in here either. Raises CorpusFull."""
        adopt(self.path, source)
        self._tombstones = Tombstones.read(self.path)

    def forbid(self, episodes: Collection[str], *, reason: str, erased_at: str) -> None:
        """Take in nothing of these episodes, ever: they were erased before the corpus came to them.

        Raises CorpusFull, CorpusUnwritable, and where the corpus lies in an object store CorpusLocked, StoreError.
        """
        if self._publisher is not None:
            self._publisher.share_salt()
        record = forbidding(self.path, episodes, reason=reason, erased_at=erased_at)
        if record is None:
            return
        if self._publisher is not None:
            self._publisher.forbid(record)
        write_erasure(self.path, record)
        self._tombstones = Tombstones.read(self.path)

    def apply(
        self,
        records: Sequence[GradedRecord | PartRecord],
        offsets: Mapping[int, int],
        watermark_ms: int,
        refuse: Callable[[list[Refusal]], None] | None = None,
    ) -> list[Refusal]:
        """Fold one batch, in the order of its partitions, as one commit with the next offsets. Of erased episodes nothing is taken.

        Returns the records that contradict what is known: nothing of them is kept. `refuse` gets them before the commit, so that whoever
        makes dead letters of them has done so before the offsets pass. Raises CorpusFull, CorpusUnwritable; nothing is folded then.
        """
        self._current()
        changed: dict[Key, RowMeta] = {}
        newest: dict[Key, GradedRecord] = {}
        kinds = {name: set(k) for name, k in self._control.metric_kinds.items()}
        refused: list[Refusal] = []
        erased = self._tombstones.covers
        parts = self._parts.news(r for r in records if isinstance(r, PartRecord) and not erased(r.episode_id))
        rows: list[tuple[int, GradedRecord]] = []
        for n, record in enumerate(records):
            if isinstance(record, GradedRecord):
                if erased(record.row.episode_id):
                    kinds_of(record.row, kinds)  # a filter reads a metric as it did when the row was there
                else:
                    rows.append((n, record))
        whole = whole_rows((record.row for _, record in rows), self._parts, parts)
        for (position, record), content in zip(rows, whole, strict=True):
            key = record.key
            try:
                after = absorb(changed.get(key) or self._state.rows.get(key), record, content)
            except FieldError as err:
                refused.append(Refusal(position, str(err)))
                continue
            if after is not None:
                changed[key], newest[key] = after, record
                kinds_of(record.row, kinds)
        control = msgspec.structs.replace(
            self._control,
            offsets={**self._control.offsets, **{str(p): offset for p, offset in offsets.items()}},
            watermark_ms=max(self._control.watermark_ms, watermark_ms),
            metric_kinds={name: sorted(k) for name, k in sorted(kinds.items())},
        )
        if refused and refuse is not None:
            refuse(refused)
        if changed or parts or control != self._control:
            with self._healing():
                placed = self._store(changed, newest, parts)
                self._commit("fold", control, changed, placed, lines=_lines(newest))
                self._seal()
        return refused

    def finish(
        self,
        selector: Selector,
        *,
        pending: int = 0,
        code_version: str = "",
        created_at: str = "",
        number: int | None = None,
    ) -> Manifest | None:
        """Decide the rows and make the next version, or return None where the content is that of the version before.

        With a `number`, above that of the newest version, the version gets it and is made whatever changed: a corpus that is made again
        has the versions that it had.

        1. decide the rows, see `Drafts.draft`
        2. count, and hash the lines from the first change on
        3. sync the bodies, commit rows, control and manifest together, sync
        4. write vN: from here on there is one
        5. publish it, where it belongs to an object store

        Raises CorpusFull, CorpusUnwritable; there is no new version then, and the next call makes it. Raises CorpusDamaged,
        and what `publish` raises.
        """
        self._current()
        if number is not None and number <= self._control.version:
            raise ValueError(f"v{number} cannot follow v{self._control.version}")
        draft = self._drafts.draft(selector, self.policy)  # 1
        control = msgspec.structs.replace(
            self._control, policy=self.policy, selector=selector.identity, finished_offsets=self._control.offsets
        )
        if not draft.moved and number is None:
            if draft.changed or control != self._control:
                with self._healing():
                    self._commit("decide", control, draft.changed)
            self._drafts.settle(draft)
            return None
        with self._healing():
            rows = self._state.rows
            members = self._drafts.members(draft)
            tally = draft.counts.tally
            manifest = Manifest(
                version=number or self._control.version + 1,
                workspace=self._control.workspace,
                rows=len(members),
                split=draft.counts.split,
                added=len(draft.came),
                updated=len(draft.moved) - len(draft.came) - len(draft.went),
                removed=len(draft.went),
                new_rows=self.new_rows,
                dropped=tally.dropped,
                unknown=tally.unknown,
                pending=pending,
                completeness=draft.counts.completeness,
                pass_at_all=draft.counts.pass_at_all,
                content_hash=self._drafts.content_hash(members, draft),  # 2
                offsets=self._control.offsets,
                watermark_ms=self._control.watermark_ms,
                last_append_ms=draft.counts.last_append_ms,
                policy=self.policy,
                code_version=code_version,
                created_at=created_at,
            )
            control = msgspec.structs.replace(control, version=manifest.version, rows_at_version=len(rows))
            self._bodies.sync()  # 3
            self._commit("version", control, draft.changed, manifest=manifest)
            self._journal.sync()
            _versions.write_version(self.path, self._version_file(manifest))  # 4
            self._drafts.settle(draft, members)
            self._rotate()
        self.publish()  # 5
        return manifest

    def publish(self) -> None:
        """In an object store: publish the newest version, if it is not yet. `finish` and `open` do so; this is for when they could not.

        Raises CorpusLocked where another writer took over, StoreError; the version is made, and the next call goes on.
        """
        if self._publisher is not None:
            self._publisher.publish()

    def remove_versions(self, numbers: Iterable[int]) -> None:
        """Remove old versions, and the journals that none needs any more. Bodies stay: newer versions share them.

        Raises CorpusInUse for the newest one, for one with a tag and for one that is being read; those before it are removed then.
        Raises VersionMissing, CorpusUnwritable.
        """
        for number in numbers:
            if number == self._control.version:
                raise CorpusInUse(self.path, number, "it is the newest one")
            if self._publisher is None:
                _versions.remove_version(self.path, number)
            else:
                _versions.remove_version(self._publisher.place.cache, number)
        needed = {_versions.read_version(self.path, number).journal for number in _versions.versions(self.path)}
        prune(self.path, needed | {self._journal.number})

    def _store(
        self,
        changed: dict[Key, RowMeta],
        newest: Mapping[Key, GradedRecord],
        parts: Mapping[PartKey, tuple[PartMeta, bytes]],
    ) -> dict[PartKey, tuple[int, PartMeta]]:
        """Add the bodies that are new. `changed` learns where its rows' lie; where the parts do is returned."""
        entries = [Entry(part_name(key), pack(Packed(b"", b"", body))) for key, (_, body) in parts.items()]
        fresh = [key for key, meta in changed.items() if meta.bulk < 0]
        entries += [Entry(encode_key(key), pack(_packed(newest[key]))) for key in fresh]
        first = self._bodies.add(entries)
        for number, key in enumerate(fresh, first + len(parts)):
            changed[key] = msgspec.structs.replace(changed[key], bulk=number)
        return {key: (number, meta) for number, (key, (meta, _)) in enumerate(parts.items(), first)}

    def _commit(
        self,
        kind: str,
        control: Control,
        changed: Mapping[Key, RowMeta],
        parts: Mapping[PartKey, tuple[int, PartMeta]] | None = None,
        manifest: Manifest | None = None,
        lines: Mapping[Key, bytes] = MappingProxyType({}),
    ) -> None:
        """One commit. What is in memory changes after it, never before."""
        commit = self._state.commit(kind, control, self._bodies.end, changed, parts or {}, manifest)
        self._journal.append(commit)
        for key, after in changed.items():
            if kind == "fold":
                self._drafts.folded(key, self._state.rows.get(key), after, lines.get(key))
        self._state.apply(commit, changed, parts or {})

    def _version_file(self, manifest: Manifest) -> _versions.VersionFile:
        return _versions.VersionFile(
            manifest=manifest,
            journal=self._journal.number,
            size=self._journal.size,
            sha256=self._journal.digest(),
            bodies=self._bodies.end,
        )

    def _seal(self) -> None:
        """Make a tail that has grown a segment. It is no part of any commit."""
        if self._bodies.ripe:
            from treadle_corpus._store import write_segment

            self._bodies.seal_tail(write_segment)

    def _rotate(self) -> None:
        """Begin the next journal with the state of now, when the changes have outgrown what this one begins with."""
        if self._journal.outgrown:
            old = self._journal
            self._journal = Journal.create(self.path, old.number + 1, self._state.base())
            old.close()

    @contextmanager
    def _healing(self) -> Iterator[None]:
        """What goes wrong while something is written leaves the writer as what is on disk says, ready to go on."""
        try:
            yield
        except BaseException:
            self._stale = True
            with suppress(CorpusError):
                self._recover()
            raise

    def _recover(self) -> None:
        """Become what is on disk. Raises CorpusError: then the next call tries again."""
        self._journal.close()
        self._bodies.close()
        self._take(recover(self.path, self._control))
        self._stale = False

    def _current(self) -> None:
        """Raises CorpusError where the state in memory is not that on disk: an earlier write failed."""
        offsets = self._control.offsets
        if self._publisher is not None and self._publisher.lost:
            self._publisher.regain()
            self._recover()
            raise CorpusLocked(
                self.name, "another writer until now; this one has what that made, and goes on when it is run again"
            )
        self.publish()
        if self._stale:
            self._recover()
            if self._control.offsets != offsets:
                raise CorpusFull(self.path, "an earlier write failed, and the corpus went back to its last commit")


def _lines(newest: Mapping[Key, GradedRecord]) -> dict[Key, bytes]:
    """Lines of the rows that are whole as they came."""
    return {key: record.pieces.line for key, record in newest.items() if not names_parts(record.row.interaction)}


def _packed(record: GradedRecord) -> Packed:
    bulk, _ = record.bulk_and_rest
    if names_parts(record.row.interaction):
        return Packed(b"", b"", bulk)
    return Packed(record.pieces.head, record.pieces.tail, bulk)
