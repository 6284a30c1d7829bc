"""The file of a range: a Parquet table of records, compressed with zstandard, that says itself where they come from.

    offset      int64
    timestamp   int64, milliseconds since 1970
    key, value  binary, null where the record had none
    headers     list of (name: string, value: binary), in order, names possibly repeated

The table's metadata has, under `treadle`, JSON with what the range is of. Any reader of Parquet reads it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from treadle.log import Record

__all__ = ["decode_table", "encode_table", "size_of"]

_META: Final = b"treadle"
_GROUP_BYTES: Final = 16 * 1024 * 1024


def encode_table(records: Sequence[Record], about: bytes) -> bytes:
    """The bytes of a file. The same records give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema().with_metadata({_META: about})
    out = io.BytesIO()
    with pq.ParquetWriter(out, schema, compression="zstd", compression_level=6) as writer:
        for group in _groups(records):
            columns = {
                "offset": [r.offset for r in group],
                "timestamp": [r.timestamp_ms for r in group],
                "key": [r.key for r in group],
                "value": [r.value for r in group],
                "headers": [
                    [{"name": n, "value": v.encode() if isinstance(v, str) else v} for n, v in r.headers] for r in group
                ],
            }
            writer.write_table(pa.table(columns, schema=schema))
    return out.getvalue()


def decode_table(data: bytes, topic: str, partition: int) -> Iterator[Record]:
    """The records in the bytes of a file. Raises ValueError for other bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(io.BytesIO(data))
        for group in range(table.num_row_groups):
            for row in table.read_row_group(group).cast(_schema()).to_pylist():
                headers = [(h["name"], h["value"]) for h in row["headers"]]
                yield Record(topic, partition, row["offset"], row["timestamp"], row["key"], row["value"], headers)
    except (pa.ArrowException, OSError) as err:
        raise ValueError(str(err).splitlines()[0]) from err


def size_of(record: Record) -> int:
    """About how many bytes a record takes in memory."""
    return len(record.key or b"") + len(record.value or b"") + sum(len(n) + len(v or b"") for n, v in record.headers)


def _groups(records: Sequence[Record]) -> Iterator[list[Record]]:
    group: list[Record] = []
    size = 0
    for record in records:
        group.append(record)
        size += size_of(record)
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _schema() -> Any:
    import pyarrow as pa

    header: Mapping[str, Any] = {"name": pa.string(), "value": pa.binary()}
    return pa.schema(
        {
            "offset": pa.int64(),
            "timestamp": pa.int64(),
            "key": pa.binary(),
            "value": pa.binary(),
            "headers": pa.list_(pa.struct(list(header.items()))),
        }
    )
