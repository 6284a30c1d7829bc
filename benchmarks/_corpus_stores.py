"""The stores of benchmarks/corpus.py. Each holds the same tokenised rows, and reads them as its documentation suggests, in shuffled blocks.

Peers that treadle does not install are looked for in benchmarks/.peers/corpus as well: INSTALL says how they get there.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from _corpus_batches import BATCH, Rows, batches, joined, of_arrays, pools

PEERS = Path(os.environ.get("CORPUS_PEERS") or Path(__file__).parent / ".peers" / "corpus")
INSTALL = (
    f"uv pip install --no-deps --target {PEERS} pylance lance-namespace lance-namespace-urllib3-client litdata lightning-utilities "
    "obstore mosaicml-streaming torchvision catalogue zstd Brotli xxhash python-snappy cramjam matplotlib-inline paramiko boto3"
)
Batches = Iterator[tuple[Any, int]]


class Missing(Exception):
    """A store that this machine cannot run, and why."""


class Store:
    """One store in a folder of its own. What it cannot do raises NotImplementedError with the reason."""

    name = ""
    package = ""
    opened = 15
    """How often it is opened in a round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def version(self) -> str:
        """Of the library. Raises Missing."""
        if str(PEERS) not in sys.path:
            sys.path.append(str(PEERS))
        try:
            self.load()
        except ImportError as err:
            raise Missing(f"{err}; install it with: {INSTALL}") from None
        return version(self.package)

    def load(self) -> None:
        """Import it."""

    def write(self, rows: Rows, rewards: Any) -> None:
        """Store rows."""
        raise NotImplementedError

    def batches(self, seed: int) -> Batches:
        """One epoch of shuffled padded batches."""
        raise NotImplementedError

    def append(self, rows: Rows, rewards: Any) -> None:
        """Make rows durable in addition."""
        raise NotImplementedError

    def open(self, chance: Any) -> None:
        """Open what is stored, a version of it by chance where there are versions, and look how many rows it has."""
        raise NotImplementedError

    def update(self, places: Any, rewards: Any) -> None:
        """Change the rewards of some rows, as a new version."""
        raise NotImplementedError

    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())


class Memmap(Store):
    """Plain arrays in files. The floor: no versions, no checks, an update in place."""

    name, package = "memmap", "numpy"

    def write(self, rows: Rows, rewards: Any) -> None:
        for name, array in zip(rows._fields, rows, strict=True):
            np.save(self.folder / f"{name}.npy", array)
        np.save(self.folder / "rewards.npy", rewards)

    def _rows(self) -> Rows:
        return Rows(*(np.asarray(np.load(self.folder / f"{name}.npy", mmap_mode="r")) for name in Rows._fields))

    def batches(self, seed: int) -> Batches:
        rows = self._rows()

        def read() -> Iterator[Rows]:
            for blocks in pools(len(rows), seed):
                yield joined([_cut(rows, *block) for block in blocks])

        return batches(read(), seed)

    def append(self, rows: Rows, rewards: Any) -> None:
        with (self.folder / "appended").open("ab") as file:
            for array in (*rows, rewards):
                file.write(np.ascontiguousarray(array).data)
            file.flush()
            os.fsync(file.fileno())

    def open(self, chance: Any) -> None:
        assert len(self._rows())


class _Arrow(Store):
    """What reads Arrow tables."""

    def _table(self, start: int, stop: int) -> Any:
        raise NotImplementedError

    def _count(self) -> int:
        raise NotImplementedError

    def batches(self, seed: int) -> Batches:
        def read() -> Iterator[Rows]:
            for blocks in pools(self._count(), seed):
                yield joined([_of_table(self._table(*block)) for block in blocks])

        return batches(read(), seed)


class Hf(_Arrow):
    """Hugging Face datasets: memory-mapped Arrow files."""

    name, package = "hf", "datasets"

    def load(self) -> None:
        import datasets

        self._datasets = datasets
        datasets.disable_progress_bars()

    def write(self, rows: Rows, rewards: Any) -> None:
        self._datasets.Dataset(_table(rows, rewards)).save_to_disk(self.folder / "data")

    def _opened(self) -> Any:
        return self._datasets.load_from_disk(self.folder / "data").with_format("arrow")

    def batches(self, seed: int) -> Batches:
        self._data = self._opened()
        return super().batches(seed)

    def _table(self, start: int, stop: int) -> Any:
        return self._data[start:stop]

    def _count(self) -> int:
        return len(self._data)

    def append(self, rows: Rows, rewards: Any) -> None:
        name = f"more-{len(list(self.folder.iterdir()))}"
        self._datasets.Dataset(_table(rows, rewards)).save_to_disk(self.folder / name)

    def open(self, chance: Any) -> None:
        assert len(self._opened())


class Parquet(_Arrow):
    """Parquet with zstd, row groups of one block."""

    name, package = "parquet", "pyarrow"

    def load(self) -> None:
        import pyarrow.parquet

        self._parquet = pyarrow.parquet

    def write(self, rows: Rows, rewards: Any) -> None:
        # groups of 16 blocks: the size at which it packs well and still need not read everything for a pool
        self._parquet.write_table(
            _table(rows, rewards), self.folder / "data.parquet", compression="zstd", row_group_size=1024
        )

    def batches(self, seed: int) -> Batches:
        file = self._parquet.ParquetFile(self.folder / "data.parquet")
        groups = np.random.RandomState(seed).permutation(file.num_row_groups)

        def read() -> Iterator[Rows]:
            for at in range(0, len(groups), 4):  # pools as large as those of the others
                table = file.read_row_groups(groups[at : at + 4].tolist(), columns=["ids", "spans"], use_threads=False)
                yield _of_table(table)

        return batches(read(), seed)

    def append(self, rows: Rows, rewards: Any) -> None:
        name = f"more-{len(list(self.folder.iterdir()))}.parquet"
        self._parquet.write_table(_table(rows, rewards), self.folder / name, compression="zstd")

    def open(self, chance: Any) -> None:
        assert self._parquet.ParquetFile(self.folder / "data.parquet").metadata.num_rows


class Lance(_Arrow):
    """Lance: versions, updates, random access."""

    name, package = "lance", "pylance"

    def load(self) -> None:
        import lance

        self._lance: Any = lance

    def write(self, rows: Rows, rewards: Any) -> None:
        self._lance.write_dataset(_table(rows, rewards), str(self.folder / "data.lance"))

    def batches(self, seed: int) -> Batches:
        data = self._lance.dataset(str(self.folder / "data.lance"))
        count = data.count_rows()

        def read() -> Iterator[Rows]:
            for blocks in pools(count, seed):
                places = np.concatenate([np.arange(*block) for block in blocks])
                yield _of_table(data.take(places, columns=["ids", "spans"]))

        return batches(read(), seed)

    def append(self, rows: Rows, rewards: Any) -> None:
        self._lance.write_dataset(_table(rows, rewards, 10_000_000), str(self.folder / "data.lance"), mode="append")

    def open(self, chance: Any) -> None:
        uri = str(self.folder / "data.lance")
        newest = self._lance.dataset(uri).latest_version
        assert self._lance.dataset(uri, version=chance.randint(1, newest)).count_rows()

    def update(self, places: Any, rewards: Any) -> None:
        import pyarrow as pa

        data = self._lance.dataset(str(self.folder / "data.lance"))
        change = pa.table({"id": pa.array(places, pa.int64()), "reward": pa.array(rewards, pa.float64())})
        data.merge_insert("id").when_matched_update_all().execute(change)


class LitData(Store):
    """LitData's chunks, read by StreamingDataset."""

    name, package = "litdata", "litdata"
    _data: Any = None

    def load(self) -> None:
        import litdata

        self._litdata: Any = litdata

    def write(self, rows: Rows, rewards: Any) -> None:
        self._write(rows, rewards, self.folder / "data")

    def _write(self, rows: Rows, rewards: Any, folder: Path) -> None:
        from litdata.streaming.writer import BinaryWriter  # what its `optimize` writes with, in processes of its own

        folder.mkdir(parents=True)
        writer = BinaryWriter(str(folder), chunk_bytes="16MB")
        for n in range(len(rows)):
            ids, spans = _one(rows, n)
            writer[n] = {
                "ids": ids.astype(np.int32),
                "spans": spans.astype(np.int32).ravel(),
                "reward": float(rewards[n]),
            }
        writer.done()
        writer.merge()

    def batches(self, seed: int) -> Batches:
        if self._data is None:  # one for all epochs: each keeps the chunks that it saw open
            self._data = self._litdata.StreamingDataset(str(self.folder / "data"), shuffle=True, seed=1)
        self._data.set_epoch(seed)
        return batches(_gathered((row["ids"], row["spans"]) for row in self._data), seed)

    def append(self, rows: Rows, rewards: Any) -> None:
        self._write(rows, rewards, self.folder / f"more-{len(list(self.folder.iterdir()))}")

    def open(self, chance: Any) -> None:
        assert len(self._litdata.StreamingDataset(str(self.folder / "data")))


class Mds(Store):
    """MosaicML Streaming's shards, read by StreamingDataset."""

    name, package = "mds", "mosaicml-streaming"
    opened = 2  # each reader leaves a hundred files open
    _data: Any = None

    def load(self) -> None:
        import streaming

        self._streaming: Any = streaming

    def write(self, rows: Rows, rewards: Any) -> None:
        self._write(rows, rewards, self.folder / "data")

    def _write(self, rows: Rows, rewards: Any, folder: Path) -> None:
        kinds = {"ids": "ndarray:int32", "spans": "ndarray:int32", "reward": "float64"}
        with self._streaming.MDSWriter(out=str(folder), columns=kinds, size_limit="16mb") as writer:
            for n in range(len(rows)):
                ids, spans = _one(rows, n)
                row = {
                    "ids": ids.astype(np.int32),
                    "spans": spans.astype(np.int32).ravel(),
                    "reward": float(rewards[n]),
                }
                writer.write(row)

    def _opened(self, seed: int) -> Any:
        return self._streaming.StreamingDataset(
            local=str(self.folder / "data"), shuffle=True, shuffle_seed=seed, batch_size=BATCH
        )

    def batches(self, seed: int) -> Batches:
        if self._data is None:  # its epochs are shuffled anew by themselves
            self._data = self._opened(1)
        return batches(_gathered((row["ids"], row["spans"]) for row in self._data), seed)

    def append(self, rows: Rows, rewards: Any) -> None:
        self._write(rows, rewards, self.folder / f"more-{len(list(self.folder.iterdir()))}")

    def open(self, chance: Any) -> None:
        assert len(self._opened(1))


def _gathered(found: Iterator[tuple[Any, Any]]) -> Iterator[Rows]:
    """Windows of 512 rows of a store that gives one by one, shuffled by itself."""
    ids: list[Any] = []
    spans: list[Any] = []
    for one, marks in found:
        ids.append(np.asarray(one))
        spans.append(np.asarray(marks))
        if len(ids) == BATCH * 32:
            yield of_arrays(ids, spans)
            ids, spans = [], []
    if ids:
        yield of_arrays(ids, spans)


def _cut(rows: Rows, start: int, stop: int) -> Rows:
    bounds, span_bounds = rows.bounds[start : stop + 1], rows.span_bounds[start : stop + 1]
    ids = rows.ids[int(bounds[0]) : int(bounds[-1])]
    return Rows(
        ids, bounds - bounds[0], rows.spans[int(span_bounds[0]) : int(span_bounds[-1])], span_bounds - span_bounds[0]
    )


def _one(rows: Rows, n: int) -> tuple[Any, Any]:
    cut = _cut(rows, n, n + 1)
    return np.asarray(cut.ids), np.asarray(cut.spans)


def _table(rows: Rows, rewards: Any, first: int = 0) -> Any:
    """Rows as an Arrow table: id, reward, ids (list of uint16 or uint32), spans (list of uint32)."""
    import pyarrow as pa

    return pa.table(
        {
            "id": pa.array(np.arange(first, first + len(rows)), pa.int64()),
            "reward": pa.array(rewards, pa.float64()),
            "ids": pa.ListArray.from_arrays(
                pa.array(np.asarray(rows.bounds), pa.int32()), pa.array(np.asarray(rows.ids))
            ),
            "spans": pa.ListArray.from_arrays(
                pa.array(np.asarray(rows.span_bounds) * 2, pa.int32()), pa.array(np.asarray(rows.spans).ravel())
            ),
        }
    )


def _of_table(table: Any) -> Rows:
    parts = []
    for batch in table.to_batches():
        ids, spans = batch.column("ids"), batch.column("spans")
        bounds, marks = (np.asarray(column.offsets, np.int64) for column in (ids, spans))
        parts.append(
            Rows(
                ids.flatten().to_numpy(zero_copy_only=False),
                bounds - bounds[0],
                spans.flatten().to_numpy(zero_copy_only=False).reshape(-1, 2),
                (marks - marks[0]) // 2,
            )
        )
    return joined(parts) if len(parts) > 1 else parts[0]


STORES: dict[str, Callable[[Path], Store]] = {store.name: store for store in (Lance, Hf, Parquet, Memmap, LitData, Mds)}
"""Every peer by its name. treadle itself is in corpus.py: its rows are conversations that it tokenises."""


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
