"""One writer of a corpus in an object store.

    URL/writer/E.json   {"owner", "who", "released"}: owner may publish, unless a higher E is there

An epoch is taken by a put that fails where an object is, so of two at once one gets it. Its owner puts it again every 20 s. Another
one may take the next epoch when this one was released, was not put again for 60 s by the clock of the store, or belongs to the same
home, whose lock the new one holds: then its process is dead. What keeps versions apart depends on no clock: vN.json is put only
where none is, and a vN that is there is what the next writer goes on from.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from typing import Final

import msgspec

from treadle_corpus.errors import CorpusError, CorpusLocked, StoreUnfit
from treadle_corpus.objects.store import ObjectStore

__all__ = ["WriterLease"]

RENEW_S: Final = 20.0
EXPIRE_S: Final = 60.0
_NAME: Final = re.compile(r"writer/([0-9]{8})\.json")
_CLOCK: Final = "writer/clock"


class _Epoch(msgspec.Struct, kw_only=True):
    owner: str
    who: str
    released: bool = False


class WriterLease:
    """The right to publish, until `release`, or until another writer took the next epoch."""

    def __init__(self, store: ObjectStore, owner: str) -> None:
        """`owner` names this home. Raises CorpusLocked naming the present owner, StoreUnfit, StoreError."""
        self._store = store
        self._epoch = _Epoch(
            owner=f"{owner}@{socket.gethostname()}", who=f"process {os.getpid()} on {socket.gethostname()}"
        )
        newest = _newest(store)
        if newest and not self._may_follow(newest):
            raise CorpusLocked(store.url, self._holder(newest))
        self._number = newest + 1
        data = msgspec.json.encode(self._epoch)
        if not store.create(self._name, data):
            raise CorpusLocked(store.url, self._holder(self._number))
        if store.create(self._name, data):
            raise StoreUnfit(store.at(self._name))
        for number in range(max(1, newest - 3), newest):  # nobody looks at those before the newest
            store.delete(_name(number))
        self._stop = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="treadle-writer-lease", daemon=True)
        self._renewing.start()

    @property
    def _name(self) -> str:
        return _name(self._number)

    def check(self) -> None:
        """Is this still the newest epoch? Raises CorpusLocked naming who has it now, StoreError."""
        newest = _newest(self._store)
        if newest != self._number:
            raise CorpusLocked(self._store.url, self._holder(newest))

    def release(self) -> None:
        """Let another writer in."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._renewing.join()
        try:
            self._store.put(self._name, msgspec.json.encode(msgspec.structs.replace(self._epoch, released=True)))
        except CorpusError:
            pass  # it expires

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                self._store.put(self._name, msgspec.json.encode(self._epoch))
            except CorpusError:
                pass  # whoever publishes is told

    def _may_follow(self, number: int) -> bool:
        name = _name(number)
        data = self._store.read(name)
        epoch = _decoded(data)
        if epoch is None or epoch.released or epoch.owner == self._epoch.owner:
            return True
        self._store.put(_CLOCK, b"")
        now, then = self._store.put_at(_CLOCK), self._store.put_at(name)
        return now is not None and then is not None and now - then > EXPIRE_S

    def _holder(self, number: int) -> str:
        epoch = _decoded(self._store.read(_name(number)))
        return "another process" if epoch is None else epoch.who


def _newest(store: ObjectStore) -> int:
    return max((int(match[1]) for name in store.names("writer") if (match := _NAME.fullmatch(name))), default=0)


def _name(number: int) -> str:
    return f"writer/{number:08d}.json"


def _decoded(data: bytes | None) -> _Epoch | None:
    try:
        return None if data is None else msgspec.json.decode(data, type=_Epoch)
    except msgspec.DecodeError:
        return None
