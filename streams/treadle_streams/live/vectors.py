"""Vectors of rows: one matrix of float32 in a file, a row a place, searched by one product. Vectors have length 1, free places are zero."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["VectorFile", "VectorIndex"]

Vector = npt.NDArray[np.float32]


class VectorFile:
    """Writes the matrix."""

    def __init__(self, path: Path, dimension: int) -> None:
        self._bytes = 4 * dimension
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __del__(self) -> None:
        os.close(self._file)

    def put(self, slot: int, vector: Vector) -> None:
        """Write the vector at a place."""
        os.pwrite(self._file, np.ascontiguousarray(vector, dtype=np.float32).tobytes(), slot * self._bytes)

    def get(self, slot: int) -> Vector:
        """The vector at a place."""
        return np.frombuffer(os.pread(self._file, self._bytes, slot * self._bytes), dtype=np.float32)

    def clear(self, slot: int) -> None:
        """Make a place free."""
        os.pwrite(self._file, bytes(self._bytes), slot * self._bytes)

    def sync(self) -> None:
        """Make it durable."""
        os.fdatasync(self._file)


class VectorIndex:
    """Searches the matrix, while it is written too."""

    def __init__(self, path: Path, dimension: int) -> None:
        self._path = path
        self._dimension = dimension
        self._matrix: Any = None

    def search(self, query: Vector, limit: int) -> list[tuple[int, float]]:
        """The places of the `limit` most similar vectors, with the cosine, the best first."""
        count = self._path.stat().st_size // (4 * self._dimension)
        if count == 0 or limit < 1:
            return []
        if self._matrix is None or len(self._matrix) != count:
            self._matrix = np.memmap(self._path, dtype=np.float32, mode="r", shape=(count, self._dimension))
        scores = np.asarray(self._matrix @ query)
        best = np.argpartition(-scores, limit - 1)[:limit] if limit < count else np.arange(count)
        best = best[np.lexsort((best, -scores[best]))]
        return [(int(slot), float(scores[slot])) for slot in best]
