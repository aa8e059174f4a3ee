"""Partitioners: functions that assign a partition to a key, as librdkafka does.

A message with a `partition_key` goes to the partition that librdkafka would choose for
the same `key`. This module knows nothing of topics and brokers.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import TypeAlias

from greendrop._librdkafka import bindings

#: Returns a partition, for a key that is not empty and the number of partitions.
Partitioner: TypeAlias = Callable[[bytes, int], int]

_32_BITS = 0xFFFFFFFF


def partitioner(name: str) -> Partitioner | None:
    """Return the partitioner of a name, which is a value of kafka's `partitioner`.

    Args:
        name: One of librdkafka's names. Those that end in `_random` choose randomly
            only for messages without a key.

    Returns:
        The partitioner, or None for "random", which ignores the key.

    Raises:
        KeyError: librdkafka has no such partitioner.
    """
    kind = name.removesuffix("_random")
    if kind == "random":
        return None
    if kind == "consistent":
        return _consistent  # takes a tenth of the time of a call by ctypes
    in_python = _IN_PYTHON[kind]
    return bindings.partitioner(kind) or in_python


def _consistent(key: bytes, count: int) -> int:
    return zlib.crc32(key) % count


def _murmur2(key: bytes, count: int) -> int:
    """Hash by murmur2 with the seed of Kafka's Java client, without the sign bit."""
    factor = 0x5BD1E995
    whole = len(key) & ~3
    mixed = 0x9747B28C ^ len(key)
    for (word,) in struct.iter_unpack("<I", key[:whole]):
        scaled = word * factor & _32_BITS
        scaled = (scaled ^ scaled >> 24) * factor & _32_BITS
        mixed = mixed * factor & _32_BITS ^ scaled
    if whole < len(key):
        mixed ^= int.from_bytes(key[whole:], "little")
        mixed = mixed * factor & _32_BITS
    mixed = (mixed ^ mixed >> 13) * factor & _32_BITS
    return ((mixed ^ mixed >> 15) & 0x7FFFFFFF) % count


def _fnv1a(key: bytes, count: int) -> int:
    """Hash by FNV-1a as Sarama, a client in Go: the absolute value of a signed hash."""
    mixed = 0x811C9DC5
    for byte in key:
        mixed = (mixed ^ byte) * 0x01000193 & _32_BITS
    return min(mixed, 2**32 - mixed) % count


# For platforms where ctypes doesn't reach librdkafka. For a key of 36 bytes they take 4
# to 6 us, and librdkafka takes 1 us.
_IN_PYTHON: dict[str, Partitioner] = {"murmur2": _murmur2, "fnv1a": _fnv1a}
