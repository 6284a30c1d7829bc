"""The live index: what agents did, searchable within a second, with the grade that it has at this moment.

`treadle indexer` (`Indexer`) follows a workspace's topics into files of this machine, `treadle recall`, `Recorder.recall` (`Recall`) search
them, `erase` takes a subject out of them. The index is derived: it can be thrown away and made again from the log.
"""

from treadle_streams.live.embedding import Embedder, load_embedder
from treadle_streams.live.erase import Erasure, erase
from treadle_streams.live.errors import (
    EmbedderError,
    ErasureWaiting,
    IndexDamaged,
    IndexFull,
    IndexInUse,
    IndexMissing,
    LiveError,
)
from treadle_streams.live.indexer import Counts, Indexer, run_indexer
from treadle_streams.live.search import Recall

__all__ = [
    "Counts",
    "Embedder",
    "EmbedderError",
    "Erasure",
    "ErasureWaiting",
    "IndexDamaged",
    "IndexFull",
    "IndexInUse",
    "IndexMissing",
    "Indexer",
    "LiveError",
    "Recall",
    "erase",
    "load_embedder",
    "run_indexer",
]
