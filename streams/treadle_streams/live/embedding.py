"""Embedders: any callable from texts to vectors, named `pkg.module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from treadle_streams.live.errors import EmbedderError

__all__ = ["Embedder", "load_embedder"]


class Embedder:
    """A checked embedder: gives unit vectors of float32, all of one length."""

    def __init__(self, name: str, function: Callable[[Sequence[str]], Any]) -> None:
        self.name = name
        self._function = function
        self._dimension: int | None = None

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(texts, dimension) float32, each row of length 1, or zero where the embedder says nothing. Raises EmbedderError."""
        try:
            found = np.asarray(self._function(list(texts)), dtype=np.float32)
        except Exception as err:
            raise EmbedderError(
                f"embedder {self.name} failed on {len(texts)} texts: {type(err).__name__}: {err}"
            ) from err
        if found.ndim != 2 or len(found) != len(texts) or found.shape[1] == 0:
            raise EmbedderError(f"embedder {self.name} gave the shape {found.shape} for {len(texts)} texts")
        if self._dimension not in (None, found.shape[1]):
            raise EmbedderError(
                f"embedder {self.name} gave vectors of {found.shape[1]} numbers, before of {self._dimension}"
            )
        if not np.isfinite(found).all():
            raise EmbedderError(f"embedder {self.name} gave a number that is not finite")
        self._dimension = found.shape[1]
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        out: npt.NDArray[np.float32] = np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 0)
        return out


def load_embedder(name: str) -> Embedder:
    """The embedder `pkg.module:function`: a function, or a class whose instances are called and which is made without arguments.

    Raises EmbedderError.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise EmbedderError(f"embedder {name!r} is not of the form pkg.module:function")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
        function = found() if isinstance(found, type) else found
    except Exception as err:
        raise EmbedderError(f"embedder {name!r} cannot be loaded: {type(err).__name__}: {err}") from err
    if not callable(function):
        raise EmbedderError(f"embedder {name!r} is no function")
    return Embedder(name, function)
