"""aiokafka reads zstd, with which treadle compresses, only where another package is installed; Arrow, which is here, reads it as well."""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import aiokafka.codec
import pyarrow as pa
from aiokafka.record import default_records

__all__ = ["read_zstd_and_lz4"]


def read_zstd_and_lz4() -> None:
    """Let this process's aiokafka read batches in zstd and lz4 where it cannot. What it writes stays as configured."""
    places: list[Any] = [aiokafka.codec, default_records]
    try:
        from aiokafka.record._crecords import default_records as compiled

        places.append(compiled)
    except ImportError:
        pass  # a pure Python build
    for name in ("zstd", "lz4"):
        if getattr(aiokafka.codec, f"has_{name}")():
            continue
        setattr(aiokafka.codec, f"has_{name}", lambda: True)
        for place in places:
            setattr(place, f"{name}_decode", _decoder(name))


def _decoder(name: str) -> Any:
    def decode(payload: Any) -> bytes:
        with pa.CompressedInputStream(pa.BufferReader(pa.py_buffer(bytes(payload))), name) as stream:
            return bytes(stream.read())

    return decode
