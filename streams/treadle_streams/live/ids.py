"""Names without the text they stand for: ids of rows, digests of what was erased."""

from __future__ import annotations

import hashlib

__all__ = ["digest", "row_id"]


def row_id(episode: str, interaction: str) -> int:
    """The id of a row in every store of an index: 63 bits of a hash, so that the same row has the same id whenever it is read again.

    Two of ten million rows share an id with a chance of 1 in 200,000; the later one is then left out.
    """
    return int.from_bytes(_hash(f"{len(episode)}\0{episode}\0{interaction}", 8)) >> 1


def digest(kind: str, text: str) -> str:
    """32 hex digits by which a subject or an episode is known again without keeping its name."""
    return _hash(f"{kind}\0{text}", 16).hex()


def _hash(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=size).digest()
