"""The reader of librdkafka's statistics, with changes since the previous ones.

The JSON for a thousand partitions has nearly a megabyte, and `json.loads` would block
the hub and all threads while it parses that. So the parser yields to other greenlets.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from greendrop import _concurrency

#: An object of the statistics: names, with numbers, texts and further objects.
StatisticsPart: TypeAlias = dict[str, Any]

#: Parsed objects between two calls of `checkpoint`. There is one object for each
#: partition, and eleven more for each broker; each takes 5 to 20 us.
_OBJECTS_PER_CHECKPOINT = 16
#: Microseconds, the unit of librdkafka's `ts`.
_SECOND = 1e6


class UnreadableStatisticsError(Exception):
    """The statistics are no JSON, or not as librdkafka's are.

    librdkafka does not escape what it quotes: a `client.id` with a quotation mark makes
    all of its statistics unreadable.
    """


class Statistics:
    """The statistics of one client, with changes added.

    Args:
        keys: Numbers that get changes. For `tx` these are `tx_d`, the difference from
            the previous statistics (0 the first time), and `tx_fd`, the seconds since
            the number last changed. The numbers are searched at the root and in each
            broker, topic, partition and consumer group.
        loop: Lets other greenlets run while the statistics are parsed.
    """

    def __init__(self, keys: Sequence[str], loop: _concurrency.CooperativeLoop) -> None:
        self._keys = tuple(keys)
        self._loop = loop
        self._objects = 0
        # By path and key of each number: its value, and since when it has that value.
        self._before: dict[tuple[str, ...], dict[str, tuple[float, float]]] = {}

    def read(self, text: str) -> StatisticsPart:
        """Parse the statistics and add the changes.

        Raises:
            UnreadableStatisticsError: See there.

        Blocking:
            Lets other greenlets run, many times.
        """
        try:
            statistics: StatisticsPart = json.loads(
                text, object_hook=self._count_object
            )
            if self._keys:
                self._add_changes(statistics)
        except (ValueError, RecursionError) as error:
            reason = f"no JSON: {error}"
        except (AttributeError, TypeError, ArithmeticError) as error:
            reason = f"not of the known form: {error}"
        else:
            return statistics
        text = f"the statistics of librdkafka are {reason}"
        raise UnreadableStatisticsError(text)

    def _count_object(self, parsed: StatisticsPart) -> StatisticsPart:
        # The parser calls this for each object that it has parsed.
        self._objects += 1
        if not self._objects % _OBJECTS_PER_CHECKPOINT:
            self._loop.checkpoint()
        return parsed

    def _add_changes(self, statistics: StatisticsPart) -> None:
        now = statistics.get("ts", 0) / _SECOND
        # A new mapping, so that brokers and topics that are gone are dropped.
        after: dict[tuple[str, ...], dict[str, tuple[float, float]]] = {}
        for path, part in _parts(statistics):
            self._count_object(part)
            before = self._before.get(path, {})
            known = {}
            for key in self._keys:
                value = part.get(key)
                if not isinstance(value, (int, float)) or isinstance(value, bool):
                    continue
                last, since = before.get(key, (value, now))
                if value != last:
                    since = now
                known[key] = (value, since)
                part[f"{key}_d"] = value - last
                part[f"{key}_fd"] = now - since
            if known:
                after[path] = known
        self._before = after


def _parts(
    statistics: StatisticsPart,
) -> Iterator[tuple[tuple[str, ...], StatisticsPart]]:
    """Yield the objects that may have the keys, each with its path."""
    yield (), statistics
    for name, broker in statistics.get("brokers", {}).items():
        yield ("broker", name), broker
    for name, topic in statistics.get("topics", {}).items():
        yield ("topic", name), topic
        for number, partition in topic.get("partitions", {}).items():
            yield ("topic", name, number), partition
    if group := statistics.get("cgrp"):
        yield ("cgrp",), group
