"""Kafka's default partitioner, murmur2, so that an event in a wrong partition is found before it splits a row in two."""

from __future__ import annotations

import struct

__all__ = ["murmur2", "partition_of"]

_WORDS = struct.Struct("<I")
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF
_SEED = 0x9747B28C


def murmur2(key: bytes) -> int:
    """The unsigned 32-bit hash of `key` (org.apache.kafka.common.utils.Utils.murmur2, which gives the same bits as a signed int)."""
    length = len(key)
    whole = length & ~3
    h = _SEED ^ length
    for (k,) in _WORDS.iter_unpack(key[:whole]):
        k = k * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = h * _M & _MASK ^ k
    rest = key[whole:]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of `key`: toPositive(murmur2(key)) mod partitions. toPositive drops the sign bit."""
    return murmur2(key) % 0x80000000 % partitions if partitions > 1 else 0
