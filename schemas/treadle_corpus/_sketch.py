"""MinHash sketches of rows: what near-duplicates are told by, without their bodies.

A row is the set of its word triples (shingles) after normalisation as for `hashing.twin_digest`: roles, text and tool calls. Messages of
the system are left out where there are others: rows of one agent share them, and would look alike by them alone. Of that set datasketch's
MinHash keeps 128 minima; the share of minima that two rows have in common estimates their Jaccard similarity (Broder 1997), with a standard
error of at most 1 / (2 sqrt(128)), 4.4 %.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from treadle_schemas.canonical import canonical_json

from treadle_corpus.hashing import normal_message

__all__ = ["MINIMA", "SIZE", "is_present", "minima", "sketch", "turns"]

MINIMA: Final = 128
_FORMAT: Final = b"\x01"
"""Of the sketch, whatever makes it: what it is made of, the hash function, the library's scheme. Sketches of others are made anew."""
_HEAD: Final = 3
SIZE: Final = _HEAD + 4 * MINIMA
_SHINGLE_WORDS: Final = 3
_BATCH: Final = 4096
"""Shingles hashed at once: 2 MiB a temporary array, whatever the row's length."""
_SHARED_ROLES: Final = ("system", "developer")


def sketch(messages: Sequence[dict[str, Any]]) -> bytes:
    """The sketch of a conversation: SIZE bytes. Equal normalised messages give equal sketches."""
    said = [m for m in messages if m.get("role") not in _SHARED_ROLES] or list(messages)
    answers: int = sum(m.get("role") == "assistant" for m in said)
    words = [word for message in said for word in _words(normal_message(message))]
    count = max(1, len(words) - _SHINGLE_WORDS + 1)
    shingles = list({" ".join(words[n : n + _SHINGLE_WORDS]) for n in range(count)})
    made = _empty().copy()
    for start in range(0, len(shingles), _BATCH):
        made.update_batch([s.encode(errors="surrogatepass") for s in shingles[start : start + _BATCH]])
    packed: bytes = made.hashvalues.astype("<u4").tobytes()
    return _FORMAT + min(answers, 0xFFFF).to_bytes(2) + packed


def is_present(found: bytes) -> bool:
    """Is it a sketch as `sketch` makes it now?"""
    return len(found) == SIZE and found[:1] == _FORMAT


def minima(sketches: Sequence[bytes]) -> npt.NDArray[np.uint32]:
    """The minima of each sketch: uint32 of (rows, MINIMA)."""
    flat = np.frombuffer(b"".join(s[_HEAD:] for s in sketches), dtype="<u4")
    return flat.reshape(len(sketches), MINIMA).astype(np.uint32, copy=False)


def turns(sketches: Sequence[bytes]) -> npt.NDArray[np.uint32]:
    """How many answers of the assistant each row has: uint32 of (rows,)."""
    return np.fromiter((int.from_bytes(s[1:_HEAD]) for s in sketches), np.uint32, len(sketches))


@functools.cache
def _empty() -> Any:
    library: Any = import_module("datasketch")  # it has no types
    # all that decides the minima is said, so that another default of the library changes nothing
    return library.MinHash(num_perm=MINIMA, seed=1, scheme="affine32", hashfunc=zlib.crc32)


def _words(value: Any) -> Iterator[str]:
    match value:
        case None:
            return
        case str():
            yield from value.split()
        case list():
            for item in value:
                yield from _words(item)
        case dict():
            for name in sorted(value):
                yield name
                yield from _words(value[name])
        case _:
            yield canonical_json(value).decode()
