"""What was erased from a corpus, as hashes: what keeps a replay of the log from bringing it back.

    PATH/erasures/salt      32 random bytes in hex, once a corpus
    PATH/erasures/N.json    the record of erasure N: `Erasure`

A hash is HMAC-SHA256 under the salt, so that the records name nobody: who knows an id can look it up, nobody can list them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import msgspec

from treadle_corpus import _disk
from treadle_corpus._rows import Key, encode_key
from treadle_corpus.errors import CorpusDamaged

__all__ = [
    "Erasure",
    "Tombstones",
    "VersionChange",
    "adopt",
    "erased_episodes",
    "erasures",
    "forbidding",
    "salted",
    "write_erasure",
]

_FOLDER: Final = "erasures"
_RECORD: Final = re.compile(r"([1-9][0-9]{0,8})\.json")
_SALT_BYTES: Final = 32


class VersionChange(msgspec.Struct, frozen=True, kw_only=True):
    """What an erasure made of one version."""

    before: str
    """content_hash that it had."""
    after: str
    """content_hash that it has."""
    rows_before: int
    rows_after: int
    removed: int
    """Members that were erased. Where that is more than the difference, duplicates of erased rows came into their places."""


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one erasure. It names no episode and no row, only their hashes."""

    number: int
    erased_at: str
    reason: str
    episodes: tuple[str, ...]
    """Salted hashes of the episodes, as hex: nothing of them is taken in any more."""
    rows: tuple[str, ...]
    """Salted hashes of the rows that the corpus knew of them."""
    versions: dict[int, VersionChange]
    """Versions that knew any of these rows; the others are what they were."""
    code_version: str = ""


class Tombstones:
    """The erased episodes of a corpus."""

    def __init__(self, salt: bytes, episodes: frozenset[str], erasures: int = 0) -> None:
        self.erasures = erasures
        """Number of the newest erasure; 0: there was none."""
        self._salt = salt
        self._episodes = episodes
        self._asked: dict[str, bool] = {}

    @classmethod
    def read(cls, path: Path) -> Tombstones:
        """Those of the corpus at `path`. Raises CorpusDamaged."""
        known = erasures(path)
        return cls(_salt(path) if known else b"", *_of(known))

    def covers(self, episode_id: str) -> bool:
        """Was the episode erased?"""
        if not self._episodes:
            return False
        found = self._asked.get(episode_id)
        if found is None:
            if len(self._asked) > _REMEMBERED:
                self._asked.clear()
            found = self._asked[episode_id] = self.hash_episode(episode_id) in self._episodes
        return found

    def hash_episode(self, episode_id: str) -> str:
        """How a record names an episode."""
        return self._hash(b"episode", episode_id.encode(errors="surrogatepass"))

    def hash_row(self, key: Key) -> str:
        """How a record names a row."""
        return self._hash(b"row", encode_key(key))

    def _hash(self, kind: bytes, name: bytes) -> str:
        return hmac.new(self._salt, kind + b"\0" + name, hashlib.sha256).hexdigest()


_REMEMBERED: Final = 100_000
"""Answers that are kept: some 20 MB."""


def erasures(path: Path) -> list[Erasure]:
    """The records of all erasures of the corpus at `path`, in their order. Raises CorpusDamaged."""
    folder = path / _FOLDER
    found: list[Erasure] = []
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return found
    for name in names:
        if not _RECORD.fullmatch(name):
            continue
        try:
            found.append(msgspec.json.decode((folder / name).read_bytes(), type=Erasure))
        except (OSError, msgspec.DecodeError) as err:
            raise CorpusDamaged(path, f"{_FOLDER}/{name} cannot be read ({err})") from err
    return sorted(found, key=lambda one: one.number)


def erased_episodes(path: Path) -> Callable[[str], bool]:
    """Which episodes were erased from the corpus at `path`; none where there is no corpus. Raises CorpusDamaged."""
    return Tombstones.read(path).covers


def salted(path: Path) -> Tombstones:
    """What names episodes and rows in the records of a corpus; a salt is made where there is none. Raises CorpusUnwritable, CorpusFull."""
    folder = path / _FOLDER
    if not (folder / "salt").exists():
        with _disk.writing(folder):
            folder.mkdir(exist_ok=True)
        _disk.create(folder / "salt", secrets.token_hex(_SALT_BYTES).encode())
        _disk.sync(path)
    return Tombstones(_salt(path), *_of(erasures(path)))


def _of(known: list[Erasure]) -> tuple[frozenset[str], int]:
    """The episodes of all erasures, and the number of the newest."""
    return frozenset(e for one in known for e in one.episodes), known[-1].number if known else 0


def write_erasure(path: Path, record: Erasure) -> None:
    """Durable when this returns. Raises CorpusFull, CorpusUnwritable."""
    _disk.create(path / _FOLDER / f"{record.number}.json", msgspec.json.encode(record))


def forbidding(path: Path, episodes: Collection[str], *, reason: str, erased_at: str) -> Erasure | None:
    """The record, not written yet, of episodes of which the corpus at `path` has nothing, so that it never will. None: it knows them all.

    Raises CorpusFull, CorpusUnwritable, CorpusDamaged.
    """
    names = salted(path)
    fresh = sorted(names.hash_episode(episode) for episode in episodes if not names.covers(episode))
    if not fresh:
        return None
    return Erasure(
        number=names.erasures + 1, erased_at=erased_at, reason=reason, episodes=tuple(fresh), rows=(), versions={}
    )


def adopt(path: Path, source: Path) -> None:
    """Give the corpus at `path` the erasures of the one at `source`. Raises CorpusFull, CorpusUnwritable."""
    if (source / _FOLDER).is_dir():
        with _disk.writing(path):
            shutil.copytree(source / _FOLDER, path / _FOLDER, dirs_exist_ok=True)
        for file in _disk.files_below(path / _FOLDER):
            _disk.sync(file)
        _disk.sync(path / _FOLDER)
        _disk.sync(path)


def _salt(path: Path) -> bytes:
    try:
        salt = bytes.fromhex((path / _FOLDER / "salt").read_text())
    except (OSError, ValueError) as err:
        raise CorpusDamaged(path, f"{_FOLDER}/salt cannot be read ({err})") from err
    if len(salt) != _SALT_BYTES:
        raise CorpusDamaged(path, f"{_FOLDER}/salt has {len(salt)} bytes, and {_SALT_BYTES} were written")
    return salt
