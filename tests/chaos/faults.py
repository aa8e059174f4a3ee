"""Faults of brokers and networks, one after the other, chosen by a seed."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from tests.servers.kafka import KafkaCluster, KafkaNode
    from tests.servers.proxy import TcpProxy

#: Seconds of a fault, from the shortest to the longest. The leaders of a killed node
#: move within 3 s.
_DURATIONS = {
    "kill": (1.0, 4.0),
    "pause": (1.0, 5.0),
    "reset": (0.0, 1.0),
    "half-open": (0.5, 3.0),
    "delay": (2.0, 5.0),
    "garbage": (2.0, 5.0),
    "lost answers": (0.0, 0.3),
}
#: Seconds of a round trip in a slow network, beside its own.
_DELAY = 0.2
#: The share of the chunks that are garbage.
_GARBAGE = 0.01
#: Longest duration, in seconds, for which the network is gone after it lost answers.
_CUT = 1.0

#: Kinds of faults by the name of a choice.
CHOICES: dict[str, tuple[str, ...]] = {
    "all": tuple(_DURATIONS),
    "nodes": ("kill", "pause"),
    "network": ("lost answers",),
    # What makes librdkafka renumber messages, see docs/decisions/0030.
    "wire": ("lost answers", "garbage", "reset"),
}


class Faults:
    """Breaks and repairs one thing after the other, in a thread. A context manager.

    Args:
        cluster: The cluster, with proxies.
        kinds: The kinds of faults that may happen.
        seed: Decides what happens, where, when and for how long.
        seconds: How long faults begin. Then everything is repaired.
        every: Seconds between two faults, on average.
    """

    def __init__(
        self,
        cluster: KafkaCluster,
        kinds: Sequence[str],
        *,
        seed: int,
        seconds: float,
        every: float,
    ) -> None:
        #: How often each fault was caused.
        self.counts: Counter[str] = Counter()
        self._cluster = cluster
        self._kinds = kinds
        self._dice = random.Random(seed)
        self._seconds = seconds
        self._every = every
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Faults:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()
        if self._error is not None and exc is None:
            raise self._error

    def _run(self) -> None:
        deadline = time.monotonic() + self._seconds
        try:
            while not self._stopping.wait(2 * self._dice.random() * self._every):
                if time.monotonic() > deadline:
                    break
                kind = self._dice.choice(self._kinds)
                number = self._dice.randrange(len(self._cluster.nodes))
                duration = self._dice.uniform(*_DURATIONS[kind])
                self._cause(kind, number, duration)
                self.counts[kind] += 1
            self._cluster.restore()
        except BaseException as error:  # noqa: BLE001 - raised at the end
            self._error = error

    def _cause(self, kind: str, number: int, duration: float) -> None:
        begin, end = _actions(
            kind, self._cluster.nodes[number], self._cluster.proxies[number]
        )
        begin()
        time.sleep(duration)
        end()
        if kind == "lost answers":
            self._cause("reset", number, self._dice.random() * _CUT)


def _actions(
    kind: str, node: KafkaNode, proxy: TcpProxy
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return how a fault begins, and how it ends."""
    actions: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "kill": (node.kill, node.start),
        "pause": (node.pause, node.resume),
        "reset": (proxy.cut, proxy.resume),
        "half-open": (proxy.half_open, proxy.resume),
        "delay": (
            partial(proxy.set_round_trip, _DELAY),
            partial(proxy.set_round_trip, 0.0),
        ),
        "garbage": (
            partial(proxy.set_garbage, _GARBAGE),
            partial(proxy.set_garbage, 0.0),
        ),
        # The requests go through. Then the connections are reset before the answers.
        "lost answers": (proxy.hold_answers, proxy.cut),
    }
    return actions[kind]
