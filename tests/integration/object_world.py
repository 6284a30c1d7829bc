"""What object stores and folders hold, unpacked, for tests that look for what must not be there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard
from treadle_corpus.objects import ObjectStore

_MAGIC = b"\x28\xb5\x2f\xfd"


def unpacked(data: bytes) -> Iterator[bytes]:
    """The bytes, and those of everything in them that is compressed, wherever it begins."""
    yield data
    at = data.find(_MAGIC)
    while at >= 0:
        try:
            yield zstandard.ZstdDecompressor().decompressobj().decompress(data[at:])
        except zstandard.ZstdError:
            pass
        at = data.find(_MAGIC, at + 1)


def said(texts: Iterable[bytes], words: Iterable[str]) -> set[str]:
    """Which of the words are said anywhere."""
    wanted = {word: word.encode() for word in words}
    return {word for data in texts for text in unpacked(data) for word, one in wanted.items() if one in text}


def in_store(url: str) -> Iterator[bytes]:
    """All objects below a URL, names too."""
    store = ObjectStore(url)
    for name in store.names():
        yield name.encode()
        yield store.read(name) or b""


def in_folder(folder: Path) -> Iterator[bytes]:
    """All files below a folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            yield file.read_bytes()
