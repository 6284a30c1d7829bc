"""All rows of a corpus at one moment, as the fold of the journal's commits. No files here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from treadle_corpus._control import Control
from treadle_corpus._journal import Frame
from treadle_corpus._parts import PartKey, PartMeta
from treadle_corpus._rows import Key, RowMeta, known_of
from treadle_corpus.manifest import Manifest

__all__ = ["State", "published"]

_FIELDS: Final = RowMeta.__struct_fields__
_STORED: Final = tuple(n for n, name in enumerate(_FIELDS) if name != "published")
"""A commit says nothing of `published`: it follows from the versions."""
_TOLD: Final = (_FIELDS.index("revision"), _FIELDS.index("reward"))
"""Where `rest` changed, these are in it: a commit says them only where they differ from that."""
_BASE_ROWS: Final = 2000


class State:
    """Rows, parts and control. It is changed by whole commits only."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.rows: dict[Key, RowMeta] = {}
        self.parts: dict[PartKey, tuple[int, PartMeta]] = {}
        """Body and meta data of each part."""
        self.touched: set[Key] = set()
        """Rows that changed since the newest version: all whose `published` may not be what it would be in the next one."""
        self.bodies = 0
        self.manifest: Manifest | None = None
        """Of the newest version."""
        self._places: dict[Key, int] = {}
        self._keys: list[Key] = []

    @classmethod
    def fold(cls, commits: Iterable[Frame]) -> State:
        """The state after commits. There is at least one. Raises ValueError, IndexError where they contradict each other."""
        state: State | None = None
        begun = False
        for commit in commits:
            if state is None:
                state = cls(commit.control)
            begun = begun or commit.kind == "base"
            if not begun and commit.kind != "rows":
                break
            state._fold(commit)
        if state is None or not begun:
            raise ValueError("the state that it begins with is not whole")
        return state

    @classmethod
    def steps(cls, commits: Iterable[tuple[int, Frame]]) -> Iterator[tuple[int, Frame, State]]:
        """(end, commit, the state after it) of each commit of a journal. It is one state, which changes. Raises what `fold` does."""
        state: State | None = None
        for end, commit in commits:
            state = state or cls(commit.control)
            state._fold(commit)
            yield end, commit, state

    def keys_of(self, commit: Frame) -> Iterator[Key]:
        """The rows that a commit, which was folded, says something of."""
        yield from ((_text(episode_id), _text(interaction_id)) for episode_id, interaction_id, _ in commit.new)
        yield from (self._keys[place] for place, _, _ in commit.changed)

    @staticmethod
    def parts_of(commit: Frame) -> Iterator[PartKey]:
        """The parts likewise."""
        yield from ((_text(episode_id), name) for episode_id, name, _, _ in commit.parts)

    def _fold(self, commit: Frame) -> None:
        for episode_id, interaction_id, meta in commit.new:
            self._put((_text(episode_id), _text(interaction_id)), meta)
        for place, mask, values in commit.changed:
            key = self._keys[place]
            self._put(key, _patched(self.rows[key], mask, values))
        for episode, name, body, part in commit.parts:
            self.parts[_text(episode), name] = (body, part)
        if commit.kind == "base":
            self.touched.clear()
        self._take(commit)

    def commit(
        self,
        kind: Any,
        control: Control,
        bodies: int,
        changed: Mapping[Key, RowMeta],
        parts: Mapping[PartKey, tuple[int, PartMeta]],
        manifest: Manifest | None = None,
    ) -> Frame:
        """The commit that changes rows, parts and control so. The state changes by `apply`, not here."""
        new: list[tuple[bytes, bytes, RowMeta]] = []
        patches: list[tuple[int, int, list[Any]]] = []
        for key, meta in changed.items():
            place = self._places.get(key)
            if place is None:
                new.append((_bytes(key[0]), _bytes(key[1]), meta))
                continue
            mask, values = _patch(self.rows[key], meta)
            if mask:
                patches.append((place, mask, values))
        stored = [(_bytes(key[0]), key[1], body, part) for key, (body, part) in parts.items()]
        return Frame(
            kind=kind, control=control, bodies=bodies, new=new, changed=patches, parts=stored, manifest=manifest
        )

    def apply(
        self, commit: Frame, changed: Mapping[Key, RowMeta], parts: Mapping[PartKey, tuple[int, PartMeta]]
    ) -> None:
        """Become what `commit` made of it: what folding it would do, without decoding it."""
        for key, meta in changed.items():
            self._put(key, meta)
        self.parts.update(parts)
        self._take(commit)

    def _put(self, key: Key, meta: RowMeta) -> None:
        if key not in self._places:
            self._places[key] = len(self._keys)
            self._keys.append(key)
        self.rows[key] = meta
        self.touched.add(key)

    def _take(self, commit: Frame) -> None:
        self.control = commit.control
        self.bodies = commit.bodies
        if commit.manifest is not None:
            self.manifest = commit.manifest
        if commit.kind == "version":
            for key in self.touched:
                self.rows[key] = published(self.rows[key])
            self.touched.clear()

    def base(self) -> Iterator[Frame]:
        """The state as commits that a journal can begin with. Rows keep their places."""
        for start in range(0, len(self._keys), _BASE_ROWS):
            rows = [(_bytes(key[0]), _bytes(key[1]), self.rows[key]) for key in self._keys[start : start + _BASE_ROWS]]
            yield Frame(kind="rows", control=self.control, bodies=self.bodies, new=rows)
        parts = [(_bytes(key[0]), key[1], body, part) for key, (body, part) in self.parts.items()]
        yield Frame(kind="base", control=self.control, bodies=self.bodies, parts=parts, manifest=self.manifest)


def published(meta: RowMeta) -> RowMeta:
    """The row after a version was made: it remembers what that version holds of it."""
    line = meta.line if meta.status == "member" else b""
    return meta if meta.published == line else msgspec.structs.replace(meta, published=line)


def _patch(before: RowMeta, after: RowMeta) -> tuple[int, list[Any]]:
    mask, values = 0, []
    told = _TOLD if before.rest != after.rest and (after.revision, after.reward) == known_of(after.rest) else ()
    for n in _STORED:
        if n in told:
            continue
        value = getattr(after, _FIELDS[n])
        if value != getattr(before, _FIELDS[n]):
            mask |= 1 << n
            values.append(value)
    return mask, values


def _patched(before: RowMeta, mask: int, values: list[Any]) -> RowMeta:
    names = (name for n, name in enumerate(_FIELDS) if mask >> n & 1)
    changes = dict(zip(names, values, strict=True))
    if "rest" in changes:
        revision, reward = known_of(changes["rest"])
        changes = {"revision": revision, "reward": reward} | changes
    return msgspec.structs.replace(before, **changes)


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _text(data: bytes) -> str:
    return data.decode(errors="surrogatepass")
