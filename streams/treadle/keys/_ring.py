"""The keys that a process has at hand: kept for seconds, so that a destroyed one is forgotten everywhere."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from treadle_schemas.errors import KeyErased
from treadle_schemas.ids import check_workspace
from treadle_schemas.sealing import Cipher

from treadle.errors import EncryptionMissing
from treadle.keys._folder import FolderKeys, KeyStore
from treadle.settings import Settings

__all__ = ["CHECK_S", "KeyRing", "keys_in", "ring_of"]

CHECK_S: Final = 2.0
"""How long a process uses a key before it looks whether it was destroyed."""
_MOST: Final = 50_000
"""Keys, and subjects, that are kept at hand."""


class KeyRing:
    """The keys of one workspace in one process. May be used from any thread."""

    def __init__(self, store: KeyStore, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[float, Cipher | None]] = OrderedDict()
        """By key id: until when it counts, and the key; None: it was destroyed."""
        self._current: OrderedDict[str, str] = OrderedDict()
        """By subject, the id of its key."""

    def cipher(self, key_id: str) -> Cipher:
        """See treadle_schemas.sealing.Keys."""
        known = self._known.get(key_id)
        if known is not None and (known[1] is None or self._clock() < known[0]):
            if known[1] is None:
                raise KeyErased(key_id)
            return known[1]
        return self._load(key_id)

    def of_subject(self, subject: str) -> Cipher:
        """The key that seals what a subject does now. Raises SettingError, EncryptionMissing."""
        key_id = self._current.get(subject)
        if key_id is not None:
            try:
                return self.cipher(key_id)
            except KeyErased:
                pass  # the subject was erased, and is here again: with another key
        key_id = self.store.current(subject)
        cipher = self._load(key_id)
        with self._lock:
            self._current[subject] = key_id
            if len(self._current) > _MOST:
                self._current.popitem(last=False)
        return cipher

    def _load(self, key_id: str) -> Cipher:
        until = self._clock() + CHECK_S
        try:
            made: Cipher | None = _cipher(key_id, self.store.load(key_id))
        except KeyErased:
            made = None
        with self._lock:
            self._known[key_id] = (until, made)
            self._known.move_to_end(key_id)
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
        if made is None:
            raise KeyErased(key_id)
        return made


def _cipher(key_id: str, key: bytes) -> Cipher:
    try:
        return Cipher(key_id, key)
    except ModuleNotFoundError as err:
        raise EncryptionMissing from err


_rings: dict[tuple[Path, str], KeyRing] = {}
_folder: Path | None = None


@contextmanager
def keys_in(folder: Path) -> Iterator[None]:
    """Inside, keys are found below `folder`, in all threads: a command was told so by its flags."""
    global _folder
    before, _folder = _folder, folder
    try:
        yield
    finally:
        _folder = before


def ring_of(workspace: str, settings: Settings | None = None) -> KeyRing:
    """The keys of a workspace: below the folder of `settings`, else of `keys_in`, else of the environment."""
    folder = settings.keys_folder if settings is not None else _folder or Settings.load().keys_folder
    place = (folder, check_workspace(workspace))
    ring = _rings.get(place)
    if ring is None:
        ring = _rings.setdefault(place, KeyRing(FolderKeys(folder / workspace)))
    return ring
