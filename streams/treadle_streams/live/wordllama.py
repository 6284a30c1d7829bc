"""An embedder that is small and needs no network: the word vectors that the package `wordllama` brings along (MIT, 16 MB, 256 numbers).

    pip install wordllama safetensors tokenizers
    treadle indexer --workspace shop --embedder treadle_streams.live.wordllama:WordLlama

A text is the mean of its tokens' vectors, as wordllama makes it. Only the package's files are read, none of its code runs: that would ask
the network for its tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["WordLlama"]

_WEIGHTS: Final = "weights/l2_supercat_256.safetensors"
_TOKENIZER: Final = "tokenizers/l2_supercat_tokenizer_config.json"


class WordLlama:
    """Texts to vectors of 256 numbers. Raises ModuleNotFoundError where a package is missing, OSError for its files."""

    def __init__(self) -> None:
        found = find_spec("wordllama")
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError("no package wordllama; install it with: pip install wordllama", name="wordllama")
        folder = Path(found.submodule_search_locations[0])
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_file(str(folder / _TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._vectors = load_file(folder / _WEIGHTS)["embedding.weight"].astype(np.float32)

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(texts, 256)."""
        out = np.zeros((len(texts), self._vectors.shape[1]), dtype=np.float32)
        for row, encoded in enumerate(self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)):
            if encoded.ids:
                out[row] = self._vectors[encoded.ids].mean(axis=0)
        return out
