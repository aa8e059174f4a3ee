"""librdkafka's statistics: read from its JSON, with what changed since the last time.

For a thousand partitions that is near a megabyte, which `json.loads` would read with
the hub, and all other threads, standing still. So others get turns in between.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Objects between two looks at the clock. There is one for each partition, and eleven
#: more for each broker; each takes 5 to 20 us.
_LOOK_EVERY = 16
#: Microseconds, the unit of librdkafka's `ts`.
_SECOND = 1e6


class Statistics:
    """Reads the statistics of one client.

    Args:
        keys: Numbers of whose change is told, too: `tx` gives `tx_d`, the difference
            to the last time (0 the first time), and `tx_fd`, the seconds for which the
            number has not changed. They are looked for at the root and in each broker,
            topic, partition and consumer group.
        end_turn: Called every so often; lets others run.
    """

    def __init__(self, keys: Sequence[str], end_turn: Callable[[], object]) -> None:
        self._keys = tuple(keys)
        self._end_turn = end_turn
        self._objects = 0
        # By where each number is: what it was, and since when.
        self._before: dict[tuple[str, ...], dict[str, tuple[float, float]]] = {}

    def read(self, text: str) -> dict[str, Any]:
        """Give the statistics as Python has them, changes added.

        Blocking:
            Lets other greenlets run, many times.
        """
        statistics: dict[str, Any] = json.loads(text, object_hook=self._pass)
        if self._keys:
            self._add_changes(statistics)
        return statistics

    def _pass(self, read: dict[str, Any]) -> dict[str, Any]:
        # Called by the parser for each object that it has read.
        self._objects += 1
        if not self._objects % _LOOK_EVERY:
            self._end_turn()
        return read

    def _add_changes(self, statistics: dict[str, Any]) -> None:
        now = statistics.get("ts", 0) / _SECOND
        # Made anew, so that what has gone is forgotten.
        after: dict[tuple[str, ...], dict[str, tuple[float, float]]] = {}
        for where, part in _parts(statistics):
            self._pass(part)
            before = self._before.get(where, {})
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
                after[where] = known
        self._before = after


def _parts(
    statistics: dict[str, Any],
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Give the objects that may have the keys, each with where it is."""
    yield (), statistics
    for name, broker in statistics.get("brokers", {}).items():
        yield ("broker", name), broker
    for name, topic in statistics.get("topics", {}).items():
        yield ("topic", name), topic
        for number, partition in topic.get("partitions", {}).items():
            yield ("topic", name, number), partition
    if group := statistics.get("cgrp"):
        yield ("cgrp",), group
