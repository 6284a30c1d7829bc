"""Reading a corpus: one version, as it was made, whatever is written meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from treadle_schemas.errors import FieldError
from treadle_schemas.records import Feedback, Grade, GradedRow, Provenance
from treadle_schemas.split import Side

from treadle_corpus import _versions
from treadle_corpus._bodies import Bodies, check_segments
from treadle_corpus._journal import decoded
from treadle_corpus._parts import Parts, whole_rows
from treadle_corpus._recovery import checked_journal
from treadle_corpus._rows import Key, RowMeta, stored_row
from treadle_corpus._state import State
from treadle_corpus._tombstones import Erasure, erasures
from treadle_corpus._versions import Lease, VersionFile, versions
from treadle_corpus.diff import Diff, difference
from treadle_corpus.errors import CorpusDamaged, VersionMissing
from treadle_corpus.hashing import content_hash, digest, row_line
from treadle_corpus.lineage import RowOrigin, origin_of
from treadle_corpus.manifest import Manifest
from treadle_corpus.objects.place import name_of
from treadle_corpus.target import CorpusRef, parse_ref

__all__ = ["Commit", "Corpus", "CorpusRow", "SplitChoice", "versions"]

SplitChoice = Literal["train", "heldout", "all"]
_BLOCK_ROWS = 500


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """One row of a version. `interaction` is verbatim, its parts put back. Rows of an episode share messages: do not change them."""

    episode_id: str
    interaction_id: str
    interaction: dict[str, Any]
    grade: Grade
    split: Side
    split_group: str
    provenance: Provenance
    feedback: Sequence[Feedback] = ()

    @property
    def revision(self) -> int:
        """The revision that the version holds."""
        return self.provenance.revision


class Commit(NamedTuple):
    """`size` bytes of a journal, and their SHA-256."""

    journal: int
    size: int
    sha256: str


class Corpus:
    """One version of a corpus, open to read. It stays what it is while a writer goes on, and is not removed before it is closed."""

    def __init__(self, path: Path, found: VersionFile, lease: Lease) -> None:
        """Use `open`."""
        self.path = path
        self._found = found
        self._lease = lease
        self._bodies = Bodies(path)
        self._state: State | None = None

    @classmethod
    def open(cls, ref: CorpusRef | Path | str) -> Corpus:
        """Open a reference, a path (its newest version), or a string `PATH[@vN|@TAG]`. No row is read yet.

        Of an object store only the file of the version is fetched here, the rest by what first reads rows. A string may not be a
        deeplake:// target, since only settings know the corpus root: use `parse_ref`.
        Raises CorpusMissing, VersionMissing, TagMissing, CorpusOutdated, CorpusDamaged, TargetError, StoreError.
        """
        if isinstance(ref, str):
            ref = parse_ref(ref)
        elif isinstance(ref, Path):
            ref = CorpusRef(ref, None)
        path, number = ref.path, ref.version
        if number is None:
            there = versions(path)
            if not there:
                raise VersionMissing(name_of(path), None, there)
            number = there[-1]
        elif not _versions.is_ready(path):
            raise VersionMissing(name_of(path), number, [])
        lease = _versions.lease(path, number)
        return cls(path, _versions.read_version(path, number), lease)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the version be removed. One that is forgotten is closed."""
        self._lease.close()

    @property
    def manifest(self) -> Manifest:
        """What the version says of itself."""
        return self._found.manifest

    @property
    def version(self) -> int:
        """N of vN."""
        return self.manifest.version

    @property
    def workspace_created_at(self) -> str:
        """Which creation of the workspace the rows come from: a later one of the same name has another log. Raises CorpusDamaged."""
        return self._read().control.workspace_created_at

    @property
    def selector(self) -> str:
        """Names everything that decided about single rows, beside the rows: see `Selector.identity`. Raises CorpusDamaged."""
        return self._read().control.selector

    @property
    def commit(self) -> Commit:
        """What the version is on disk."""
        return Commit(self._found.journal, self._found.size, self._found.sha256)

    @property
    def name(self) -> str:
        """What the corpus is called on every machine: the URL of an object store, else the path."""
        return name_of(self.path)

    def __str__(self) -> str:
        return f"{self.name}@v{self.version}"

    def versions(self) -> list[int]:
        """Every version of this corpus, ascending."""
        return versions(self.path)

    def rows(self, split: SplitChoice = "train") -> Iterator[CorpusRow]:
        """The members of one side of the split, in the order of (episode_id, interaction_id). Raises CorpusDamaged."""
        for row in self._graded(self._members(split)):
            yield CorpusRow(
                row.episode_id,
                row.interaction_id,
                row.interaction,
                row.grade,
                row.split,
                row.split_group,
                row.provenance,
                tuple(row.feedback),
            )

    def origins(self, split: SplitChoice = "all") -> Iterator[RowOrigin]:
        """Where each member comes from, in the order of `rows`. No body is read. Raises CorpusDamaged."""
        return (origin_of(self.path, key, meta) for key, meta in self._members(split))

    def keys(self) -> list[Key]:
        """The ids of all rows that the corpus knew when the version was made, members or not. Raises CorpusDamaged."""
        return list(self._read().rows)

    def verify(self) -> None:
        """Read everything and compare: the journal and every file of bodies with their checksums, every part, and the content hash of the
        rows with the manifest, and with the record of the last erasure that changed the version. Raises CorpusDamaged naming what differs.
        """
        state = self._read()
        check_segments(self.path, self._found.bodies)
        if self._found.bodies:
            self._bodies.read([self._found.bodies - 1])  # in the tail, what comes before the last one is whole as well
        Parts(self.path, self._bodies.bulks, state.parts).check()
        found = content_hash(row_line(row) for row in self._graded(self._members("all")))
        if found != self.manifest.content_hash:
            raise CorpusDamaged(
                self.path, f"v{self.version} has content hash {found}, its manifest {self.manifest.content_hash}"
            )
        for erasure in self.erasures()[-1:]:
            said = erasure.versions[self.version].after
            if found != said:
                raise CorpusDamaged(
                    self.path,
                    f"v{self.version} has content hash {found}, and the record of erasure {erasure.number} says {said}",
                )

    def erasures(self) -> list[Erasure]:
        """The erasures that took rows out of this version, in their order: it is not what it was made as. Raises CorpusDamaged."""
        return [one for one in erasures(self.path) if self.version in one.versions]

    def diff(self, other: Corpus) -> Diff:
        """What changed from this version to `other`, of the same corpus or another one. Raises CorpusDamaged."""
        return difference(self._by_key(), other._by_key(), self._whole, other._whole)

    def log(self) -> Iterator[Manifest]:
        """The manifests of all versions up to this one, the newest first. Raises CorpusDamaged."""
        for number in reversed(self.versions()):
            if number <= self.version:
                yield _versions.read_version(self.path, number).manifest

    def tag(self, name: str, *, force: bool = False) -> None:
        """Name this version; with `force` also where the tag names another one. Raises TargetError, TagTaken, CorpusUnwritable."""
        _versions.set_tag(self.path, name, self.version, force=force)

    def tags(self) -> list[str]:
        """The tags of this version."""
        return [name for name, version in _versions.read_tags(self.path).items() if version == self.version]

    def _read(self) -> State:
        if self._state is None:
            data = checked_journal(self.path, self._found)
            try:
                self._state = State.fold(commit for _, commit in decoded(self.path, data))
            except (ValueError, IndexError, KeyError, TypeError) as err:
                raise CorpusDamaged(self.path, f"the rows of v{self.version} cannot be read ({err})") from err
        return self._state

    def _by_key(self) -> dict[Key, RowMeta]:
        return {key: meta for key, meta in self._read().rows.items() if meta.status == "member"}

    def _members(self, split: SplitChoice) -> list[tuple[Key, RowMeta]]:
        return sorted((key, meta) for key, meta in self._by_key().items() if split in ("all", meta.side))

    def _whole(self, members: list[tuple[Key, RowMeta]]) -> Iterator[GradedRow]:
        return self._graded(members)

    def _graded(self, members: list[tuple[Key, RowMeta]]) -> Iterator[GradedRow]:
        parts = Parts(self.path, self._bodies.bulks, self._read().parts)
        for (key, _), row in zip(members, whole_rows(self._stored(members), parts), strict=True):
            if not isinstance(row, GradedRow):
                raise CorpusDamaged(self.path, f"row {key[0]}/{key[1]} in v{self.version}: {row}") from row
            yield row

    def _stored(self, members: list[tuple[Key, RowMeta]]) -> Iterator[GradedRow]:
        for start in range(0, len(members), _BLOCK_ROWS):
            block = members[start : start + _BLOCK_ROWS]
            bulks = self._bodies.bulks([meta.bulk for _, meta in block])
            for (key, meta), bulk in zip(block, bulks, strict=True):
                try:
                    if digest(bulk) != meta.source:
                        raise FieldError("$", "is not the one that was written for it")
                    yield stored_row(bulk, meta.rest)
                except FieldError as err:
                    raise CorpusDamaged(
                        self.path, f"the body of row {key[0]}/{key[1]} in v{self.version}: {err}"
                    ) from err
