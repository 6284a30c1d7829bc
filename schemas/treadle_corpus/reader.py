"""Reading a corpus: one version, as it was made, whatever is written meanwhile."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from treadle_schemas.errors import FieldError
from treadle_schemas.records import Feedback, Grade, GradedRow, Provenance
from treadle_schemas.split import Side

from treadle_corpus import _files
from treadle_corpus._control import decode_control
from treadle_corpus._parts import Parts, is_part, whole_rows
from treadle_corpus._rows import Key, RowMeta, decode_key, decode_meta, fingerprint, read_body
from treadle_corpus._store import Store
from treadle_corpus.errors import CorpusDamaged, VersionMissing
from treadle_corpus.hashing import content_hash, row_line
from treadle_corpus.manifest import Manifest
from treadle_corpus.target import CorpusRef, parse_ref

__all__ = ["Corpus", "CorpusRow", "SplitChoice", "versions"]

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


class Corpus:
    """One version of a corpus, open to read. It stays what it is while a writer goes on."""

    def __init__(self, path: Path, store: Store, manifest: Manifest, fingerprint_hex: str) -> None:
        """Use `open`."""
        self.path = path
        self.manifest = manifest
        self._store = store
        self._fingerprint = fingerprint_hex

    @classmethod
    def open(cls, ref: CorpusRef | Path | str) -> Corpus:
        """Open a reference, a path (its newest version), or a string `PATH[@vN]`.

        A string may not be a deeplake:// target, since only settings know the corpus root: use `parse_ref`.
        Raises CorpusMissing, VersionMissing, CorpusDamaged, TargetError.
        """
        if isinstance(ref, str):
            ref = parse_ref(ref)
        elif isinstance(ref, Path):
            ref = CorpusRef(ref, None)
        path, wanted = ref.path, ref.version
        there = versions(path)
        number = max(there, default=0) if wanted is None else wanted
        if number not in there:
            raise VersionMissing(path, wanted, there)
        store = Store.read(_files.data_path(path), number)
        try:
            control = decode_control(store.control())
        except msgspec.DecodeError as err:
            raise CorpusDamaged(path, f"the control row of v{number} cannot be read ({err})") from err
        if control.manifest is None or control.manifest.version != number:
            raise CorpusDamaged(path, f"the tag v{number} is not on the commit that finished v{number}")
        return cls(path, store, control.manifest, control.fingerprint)

    @property
    def version(self) -> int:
        """N of vN."""
        return self.manifest.version

    def __str__(self) -> str:
        return f"{self.path}@v{self.version}"

    def versions(self) -> list[int]:
        """Every version of this corpus, ascending."""
        return versions(self.path)

    def rows(self, split: SplitChoice = "train") -> Iterator[CorpusRow]:
        """The members of one side of the split, in the order of (episode_id, interaction_id). Raises CorpusDamaged."""
        for row in self._graded(split):
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

    def verify(self) -> None:
        """Read everything and compare with the manifest. Raises CorpusDamaged naming what differs."""
        parts = Parts(self.path, self._store.bodies)
        self._members("all", parts)
        parts.check()
        found = content_hash(row_line(row) for row in self._graded("all"))
        if found != self.manifest.content_hash:
            raise CorpusDamaged(
                self.path, f"v{self.version} has content hash {found}, its manifest {self.manifest.content_hash}"
            )

    def _graded(self, split: SplitChoice) -> Iterator[GradedRow]:
        parts = Parts(self.path, self._store.bodies)
        members = sorted(self._members(split, parts))
        for (key, _, _), row in zip(members, whole_rows(self._stored(members), parts), strict=True):
            if not isinstance(row, GradedRow):
                raise CorpusDamaged(self.path, f"row {key[0]}/{key[1]} in v{self.version}: {row}") from row
            yield row

    def _stored(self, members: list[tuple[Key, int, int]]) -> Iterator[GradedRow]:
        for start in range(0, len(members), _BLOCK_ROWS):
            block = members[start : start + _BLOCK_ROWS]
            bodies = self._store.bodies([index for _, index, _ in block])
            for (key, _, crc), body in zip(block, bodies, strict=True):
                try:
                    if zlib.crc32(body) != crc:
                        raise FieldError("$", "has another checksum than when it was written")
                    yield read_body(body)
                except FieldError as err:
                    raise CorpusDamaged(
                        self.path, f"the body of row {key[0]}/{key[1]} in v{self.version}: {err}"
                    ) from err

    def _members(self, split: SplitChoice, parts: Parts) -> list[tuple[Key, int, int]]:
        """(key, row, checksum of the body) of each member on that side. Parts go into `parts`; the state as a whole is checked on the
        way.
        """
        total, members = 0, list[tuple[Key, int, int]]()
        for n, (name, packed) in enumerate(self._store.keys_and_metas()):
            total ^= fingerprint(name, packed)
            if is_part(name):
                try:
                    parts.load(name, packed, n)
                except (msgspec.DecodeError, FieldError) as err:
                    raise CorpusDamaged(self.path, f"a part in v{self.version} cannot be read ({err})") from err
                continue
            meta = self._meta(packed)
            if meta.status == "member" and split in ("all", meta.side):
                members.append((decode_key(name), n, meta.crc))
        if f"{total:032x}" != self._fingerprint:
            raise CorpusDamaged(self.path, f"the rows of v{self.version} are not those that were written")
        return members

    def _meta(self, packed: bytes) -> RowMeta:
        try:
            return decode_meta(packed)
        except (msgspec.DecodeError, msgspec.ValidationError) as err:
            raise CorpusDamaged(self.path, f"a row of v{self.version} cannot be read ({err})") from err


def versions(path: Path) -> list[int]:
    """The versions of the corpus at `path`, ascending; none where its first run is not over. Raises CorpusMissing, CorpusDamaged."""
    if _files.check_marker(path) != "ready":
        return []
    _files.check_seals(path)
    return Store.read(_files.data_path(path), None).versions()
