"""Writing a corpus, exactly once.

One run folds `.graded` from the offsets in the control row on, in batches, and finishes one version:

    writer = CorpusWriter.open(path, workspace=..., policy=...)      # lock; an interrupted run is finished or gone on with
    writer.apply(records, offsets, watermark_ms)                     # untagged commits: rows and next offsets together
    writer.finish(selector, ...)                                     # decide, hash, commit, sync, seal, tag vN

Killed anywhere, the next `open` continues from the offsets of the last commit. So vN is the exact fold of its offsets: offsets and
rows are one commit, decisions are a pure function of the rows, and a tag is set only on the commit that its control row belongs to.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
from treadle_schemas.errors import FieldError
from treadle_schemas.records import GradedRow

from treadle_corpus import _files
from treadle_corpus._control import Control, decode_control, encode_control
from treadle_corpus._decide import decide
from treadle_corpus._parts import PartKey, PartMeta, PartRecord, Parts, is_part, whole_rows
from treadle_corpus._rows import (
    Decision,
    GradedRecord,
    Key,
    RowMeta,
    Status,
    absorb,
    decode_key,
    decode_meta,
    encode_key,
    encode_meta,
    fingerprint,
    read_body,
)
from treadle_corpus._store import Store, StoredRow
from treadle_corpus._tally import Tally, kinds_of
from treadle_corpus.errors import CorpusDamaged, CorpusMissing, PolicyMismatch
from treadle_corpus.manifest import Manifest
from treadle_corpus.policy import Policy

__all__ = ["CorpusWriter", "Refusal", "Selector"]

_BLOCK_ROWS = 1000
"""Bodies held in memory at once: 8 MB at the 8 KB of a usual row."""
_STATUS_CODE: Mapping[Status, int] = {
    "pending": 0,
    "member": 1,
    "rejected": 2,
    "unknown": 3,
    "leak": 4,
    "split_moved": 5,
    "duplicate": 6,
    "rights": 7,
    "redacted": 8,
    "erased": 9,
    "near_duplicate": 10,
    "incomplete": 11,
    "expired": 12,
}
_PART_CODE = -2
_SIDE_CODE = {"train": 0, "heldout": 1}


class Refusal(NamedTuple):
    """A record that contradicts what the corpus holds: `position` in the batch, and why. It belongs among the dead letters."""

    position: int
    problem: str


class Selector(Protocol):
    """The filter of a policy, ready to decide. The writer asks it anew for every row when its identity changes."""

    @property
    def identity(self) -> str:
        """Names everything that the decision depends on beside the row."""
        ...

    def select(self, rows: Sequence[GradedRow]) -> list[Decision]:
        """A decision for each row; `pending` or `absent` where the filter knows nothing, because of a metric in that state."""
        ...


class CorpusWriter:
    """The one writer of a corpus. A context manager; leaving it lets the lock go."""

    def __init__(self, path: Path, lock: _files.Lock, store: Store, control: Control, policy: Policy) -> None:
        """Use `open`."""
        self.path = path
        self.policy = policy
        self._lock = lock
        self._store = store
        self._control = control
        self._rows: dict[Key, RowMeta] = {}
        self._index: dict[Key, int] = {}
        self._parts = Parts(path, store.bodies)

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

        Raises CorpusLocked, CorpusDamaged, PolicyMismatch.
        """
        try:
            _files.check_marker(path)
        except CorpusMissing:
            pass
        lock = _files.Lock(path)
        try:
            fresh = Control(workspace=workspace, workspace_created_at=workspace_created_at)
            if _files.check_marker(path) == "ready":
                writer = _recovered(cls, path, lock, fresh, policy)
            else:
                writer = _made(cls, path, lock, fresh, policy)
            writer._check_owner(workspace, workspace_created_at, replace_policy)
        except BaseException:
            lock.release()
            raise
        return writer

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the lock go. Nothing is ever left uncommitted between two calls."""
        self._lock.release()

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
        return self._control.manifest

    @property
    def tally(self) -> Tally:
        """How many rows stand where, since the last `finish`."""
        return Tally.of(self._rows.values())

    @property
    def new_rows(self) -> int:
        """Rows seen since the newest version."""
        return len(self._rows) - self._control.rows_at_version

    @property
    def unfinished(self) -> bool:
        """Was anything folded that no `finish` has looked at yet?"""
        return self._control.finished_offsets != self._control.offsets

    def knows(self, key: Key) -> bool:
        """Was the row seen before?"""
        return key in self._rows

    def settled(self, key: Key) -> bool | None:
        """Is the row settled by its last revision? None for a row that was never seen."""
        meta = self._rows.get(key)
        return None if meta is None else meta.settled

    def unsettled(self) -> Iterator[Key]:
        """Rows that settled once and are unsettled again."""
        return (key for key, meta in self._rows.items() if not meta.settled)

    def apply(
        self,
        records: Sequence[GradedRecord | PartRecord],
        offsets: Mapping[int, int],
        watermark_ms: int,
        refuse: Callable[[list[Refusal]], None] | None = None,
    ) -> list[Refusal]:
        """Fold one batch, in the order of its partitions, as one untagged commit with the next offsets.

        Returns the records that contradict what is known: nothing of them is kept. `refuse` gets them before the commit, so that whoever
        makes dead letters of them has done so before the offsets pass.
        """
        changed: dict[Key, RowMeta] = {}
        bodies: dict[Key, bytes] = {}
        kinds = {name: set(k) for name, k in self._control.metric_kinds.items()}
        refused: list[Refusal] = []
        parts = self._parts.news(r for r in records if isinstance(r, PartRecord))
        rows = [(n, record) for n, record in enumerate(records) if isinstance(record, GradedRecord)]
        whole = whole_rows((record.row for _, record in rows), self._parts, parts)
        for (position, record), content in zip(rows, whole, strict=True):
            key = record.key
            try:
                after = absorb(changed.get(key) or self._rows.get(key), record, content)
            except FieldError as err:
                refused.append(Refusal(position, str(err)))
                continue
            if after is not None:
                changed[key], bodies[key] = after, record.body
                kinds_of(record.row, kinds)
        control = msgspec.structs.replace(
            self._control,
            offsets={**self._control.offsets, **{str(p): offset for p, offset in offsets.items()}},
            watermark_ms=max(self._control.watermark_ms, watermark_ms),
            metric_kinds={name: sorted(k) for name, k in sorted(kinds.items())},
        )
        if refused and refuse is not None:
            refuse(refused)
        self._commit("fold", changed, control, bodies=bodies, parts=parts)
        return refused

    def finish(
        self, selector: Selector, *, pending: int = 0, code_version: str = "", created_at: str = ""
    ) -> Manifest | None:
        """Decide every row and make the next version, or return None where the content is that of the version before.

        1. decide what is undecided (everything, when the selector is another one), and sketch what near-duplicates need
        2. statuses of all rows, and what changed since the version before
        3. one pass over the members: content hash, completeness
        4. commit rows and control row together, sync
        5. seal: list the files
        6. tag
        """
        decided = self._sketched(self._decided(selector))  # 1
        statuses = decide(decided, self.policy, self._control.watermark_ms)  # 2
        after = {key: _with_status(meta, statuses[key]) for key, meta in decided.items()}
        added = sum(m.status == "member" and not m.published for m in after.values())
        updated = sum(m.status == "member" and m.published not in (b"", m.line) for m in after.values())
        removed = sum(m.status != "member" and m.published != b"" for m in after.values())
        control = msgspec.structs.replace(
            self._control, policy=self.policy, selector=selector.identity, finished_offsets=self._control.offsets
        )
        if not added + updated + removed:
            self._commit("decide", _difference(self._rows, after), control)
            return None
        tally = Tally.of(after.values())
        members = sorted(key for key, meta in after.items() if meta.status == "member")
        content = tally.content(self._whole(members))  # 3
        manifest = Manifest(
            version=self._control.version + 1,
            workspace=self._control.workspace,
            rows=len(members),
            split=content.split,
            added=added,
            updated=updated,
            removed=removed,
            new_rows=self.new_rows,
            dropped=tally.dropped,
            unknown=tally.unknown,
            pending=pending,
            completeness=content.completeness,
            pass_at_all=content.pass_at_all,
            content_hash=content.content_hash,
            offsets=self._control.offsets,
            watermark_ms=self._control.watermark_ms,
            last_append_ms=max((after[k].append_ms for k in members), default=None),
            policy=self.policy,
            code_version=code_version,
            created_at=created_at,
        )
        after = {key: _published(meta) for key, meta in after.items()}
        control = msgspec.structs.replace(
            control, version=manifest.version, manifest=manifest, rows_at_version=len(self._rows)
        )
        self._commit(f"v{manifest.version}", _difference(self._rows, after), control, sync=True)  # 4
        self._seal_and_tag()  # 5, 6
        return manifest

    def _check_owner(self, workspace: str, created_at: str, replace_policy: bool) -> None:
        held = self._control
        if held.workspace != workspace:
            raise PolicyMismatch(
                f"{self.path} is a corpus of workspace {held.workspace!r}, not {workspace!r}; a corpus has one workspace: "
                "use another path"
            )
        if held.workspace_created_at != created_at:
            raise PolicyMismatch(
                f"{self.path} belongs to a workspace {workspace!r} created at {held.workspace_created_at or '?'}; this one was "
                f"created at {created_at or '?'} and has another log: use another path"
            )
        if held.version and not self.policy.follows(held.policy) and not replace_policy:
            raise PolicyMismatch(
                f"{self.path} follows another policy ({held.policy}) than asked for ({self.policy}). "
                "To change it for all rows from the next version on use --replace-policy, or write to another path"
            )

    def _decided(self, selector: Selector) -> dict[Key, RowMeta]:
        fresh = selector.identity != self._control.selector
        asked = [key for key, meta in self._rows.items() if meta.settled and (fresh or meta.decision == "undecided")]
        decided = dict(self._rows)
        for start in range(0, len(asked), _BLOCK_ROWS):
            block = asked[start : start + _BLOCK_ROWS]
            decisions = selector.select([row for _, row in self._graded(block)])
            for key, decision in zip(block, decisions, strict=True):
                if decided[key].decision != decision:
                    decided[key] = msgspec.structs.replace(decided[key], decision=decision)
        return decided

    def _sketched(self, rows: dict[Key, RowMeta]) -> dict[Key, RowMeta]:
        """`rows`, of which each that may be a near-duplicate has its sketch. One is made once for each content."""
        if self.policy.near is None:
            return rows
        from treadle_corpus._sketch import is_present, sketch

        missing = [k for k, m in rows.items() if m.settled and not m.drop and not is_present(m.sketch)]
        for key, (_, row) in zip(missing, self._whole(missing), strict=True):
            rows[key] = msgspec.structs.replace(rows[key], sketch=sketch(row.interaction["messages"]))
        return rows

    def _graded(self, keys: Sequence[Key]) -> Iterator[tuple[RowMeta, GradedRow]]:
        """Rows with their bodies, in the order of `keys`. Raises CorpusDamaged."""
        for start in range(0, len(keys), _BLOCK_ROWS):
            block = keys[start : start + _BLOCK_ROWS]
            for key, body in zip(block, self._store.bodies([self._index[k] for k in block]), strict=True):
                meta = self._rows[key]
                if zlib.crc32(body) != meta.crc:
                    raise CorpusDamaged(self.path, f"the body of row {key[0]}/{key[1]} is not what was written")
                yield meta, read_body(body)

    def _whole(self, keys: Sequence[Key]) -> Iterator[tuple[RowMeta, GradedRow]]:
        """Rows with their parts put back, in the order of `keys`. Raises CorpusDamaged."""
        rows = whole_rows((row for _, row in self._graded(keys)), self._parts)
        for key, row in zip(keys, rows, strict=True):
            if not isinstance(row, GradedRow):
                raise CorpusDamaged(self.path, f"row {key[0]}/{key[1]}: {row}")
            yield self._rows[key], row

    def _commit(
        self,
        message: str,
        changed: Mapping[Key, RowMeta],
        control: Control,
        *,
        bodies: Mapping[Key, bytes] | None = None,
        parts: Mapping[PartKey, tuple[PartMeta, bytes]] | None = None,
        sync: bool = False,
    ) -> None:
        """One commit of rows, parts and control row. What is in memory changes after it, never before."""
        parts = parts or {}
        bodies = bodies or {}
        total = int(control.fingerprint or "0", 16)
        fresh: list[StoredRow] = []
        index: dict[Key, int] = {}
        cells: dict[str, dict[int, object]] = {name: {} for name in StoredRow._fields if name != "key"}
        stored_rows = len(self._rows) + len(self._parts)
        part_rows: dict[PartKey, int] = {}
        for part_key, (part, body) in parts.items():
            row, known, name, packed = self._parts.place(part_key, stored_rows + len(fresh), part)
            total ^= fingerprint(name, packed)
            part_rows[part_key] = row
            if known is None:
                fresh.append(StoredRow(name, _PART_CODE, -1, 0, float("nan"), packed, body))
            else:
                total ^= fingerprint(name, known)
                cells["meta"][row], cells["body"][row] = packed, body
        for key, meta in changed.items():
            name = encode_key(key)
            stored = _stored(name, meta, bodies.get(key, b""))
            total ^= fingerprint(name, stored.meta)
            before = self._rows.get(key)
            if before is None:
                index[key] = stored_rows + len(fresh)
                fresh.append(stored)
                continue
            total ^= fingerprint(name, encode_meta(before))
            old = _stored(name, before, b"")
            for column in ("status", "side", "revision", "reward", "meta"):
                value = getattr(stored, column)
                if value != getattr(old, column):
                    cells[column][self._index[key]] = value
            if key in bodies:
                cells["body"][self._index[key]] = stored.body
        control = msgspec.structs.replace(control, fingerprint=f"{total:032x}")
        if not changed and not parts and control == self._control:
            return
        with self._store.change(message, sync=sync):
            if fresh:
                self._store.append(fresh)
            for column, values in cells.items():
                if values:
                    self._store.put(column, values)
            self._store.put_control(encode_control(control))
        self._rows.update(changed)
        self._index.update(index)
        for part_key, row in part_rows.items():
            self._parts.set(part_key, row, parts[part_key][0])
        self._control = control

    def _seal_and_tag(self) -> None:
        _files.seal(self.path, self._control.version)
        self._store.tag(self._control.version)

    def _load(self) -> bool:
        """Read all rows into memory. False where the head is not what its control row says: a commit torn by a power loss."""
        total = 0
        try:
            for n, (name, packed) in enumerate(self._store.keys_and_metas()):
                total ^= fingerprint(name, packed)
                if is_part(name):
                    self._parts.load(name, packed, n)
                    continue
                key = decode_key(name)
                self._index[key] = n
                self._rows[key] = decode_meta(packed)
        except (CorpusDamaged, FieldError, ValueError, TypeError):
            return False
        if f"{total:032x}" != self._control.fingerprint or len(self._rows) + len(self._parts) != len(self._store):
            return False
        try:
            # the only bodies that no seal covers
            for _ in self._whole([k for k, m in self._rows.items() if m.decision == "undecided"]):
                pass
        except (CorpusDamaged, FieldError):
            return False
        return True


def _made(cls: type[CorpusWriter], path: Path, lock: _files.Lock, control: Control, policy: Policy) -> CorpusWriter:
    _files.write_marker(path, "creating")
    control = msgspec.structs.replace(control, fingerprint=f"{0:032x}")
    store = Store.create(_files.data_path(path), encode_control(control))
    _files.write_marker(path, "ready")
    return cls(path, lock, store, control, policy)


def _recovered(cls: type[CorpusWriter], path: Path, lock: _files.Lock, fresh: Control, policy: Policy) -> CorpusWriter:
    """The corpus as its last whole commit left it.

    1. sealed files must be whole: they cannot be replaced
    2. a head torn by a power loss goes back to the newest version, and without one to nothing: `.graded` has it all
    3. a finished version without its tag gets it now, before anything else is committed
    """
    _files.check_seals(path)  # 1
    head = Store.open(_files.data_path(path))
    tagged = max(head.versions(), default=0)
    writer = None if _files.empty_files(path) else _loaded(cls, path, lock, head, policy)
    if writer is None or writer._control.version not in (tagged, tagged + 1):  # 2
        if tagged == 0:
            return _made(cls, path, lock, fresh, policy)
        head.revert(tagged)
        writer = _loaded(cls, path, lock, head, policy)
        if writer is None:
            raise CorpusDamaged(path, f"version v{tagged} is not what was written")
    if writer._control.version == tagged + 1:  # 3
        writer._seal_and_tag()
    return writer


def _loaded(
    cls: type[CorpusWriter], path: Path, lock: _files.Lock, store: Store, policy: Policy
) -> CorpusWriter | None:
    control = _control_of(store)
    if control is None:
        return None
    writer = cls(path, lock, store, control, policy)
    return writer if writer._load() else None


def _control_of(store: Store) -> Control | None:
    try:
        return decode_control(store.control())
    except (CorpusDamaged, msgspec.DecodeError):
        return None


def _stored(name: bytes, meta: RowMeta, body: bytes) -> StoredRow:
    reward = float("nan") if meta.reward is None else meta.reward
    return StoredRow(
        name, _STATUS_CODE[meta.status], _SIDE_CODE[meta.side], meta.revision, reward, encode_meta(meta), body
    )


def _with_status(meta: RowMeta, status: Status) -> RowMeta:
    return meta if meta.status == status else msgspec.structs.replace(meta, status=status)


def _published(meta: RowMeta) -> RowMeta:
    line = meta.line if meta.status == "member" else b""
    return meta if meta.published == line else msgspec.structs.replace(meta, published=line)


def _difference(before: Mapping[Key, RowMeta], after: Mapping[Key, RowMeta]) -> dict[Key, RowMeta]:
    return {key: meta for key, meta in after.items() if meta is not before[key]}
