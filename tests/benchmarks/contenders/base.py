"""The interface of a contender, and the loops that drive it."""

from __future__ import annotations

import threading
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, NamedTuple

from tests.benchmarks.instruments import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.benchmarks.cells import Load

#: 100 bytes.
PAYLOAD = b"x" * 100
#: Seconds after which a measurement has failed.
LONGEST_WAIT = 60.0


class Place(NamedTuple):
    """The brokers and the topic of a measurement."""

    bootstrap_servers: str
    topic: str


class Contender:
    """A way to send. A subclass has the verbs that its loads need."""

    #: Whether other greenlets could run while it waits, if its waits were good.
    in_hub = True

    def __init__(self, place: Place) -> None:
        self.bootstrap_servers = place.bootstrap_servers
        self.topic = place.topic

    def send_and_wait(self, key: bytes | None) -> None:
        """Send one message and wait for its report."""
        raise NotImplementedError

    def send(self) -> None:
        """Send one message without waiting, except for space in the queue."""
        raise NotImplementedError

    def finish(self) -> None:
        """Wait until all messages are reported."""
        raise NotImplementedError

    def connect(self) -> None:
        """Send a few messages, so that all connections are open."""
        import gevent  # noqa: PLC0415 - a process imports only what it needs

        for _ in range(100):
            self.send()
        gevent.sleep(0.3)

    def fire(self, count: int) -> None:
        """Send messages without waiting, and then wait until all are reported."""
        send = self.send
        for _ in range(count):
            send()
        self.finish()

    def prepare_batch(self, size: int) -> None:
        """Prepare the batch that a caller of `send_batch` has at hand."""
        raise NotImplementedError

    def send_batch(self) -> None:
        """Send the batch and wait for all of its reports."""
        raise NotImplementedError

    def transact_loops(self, load: Load, seconds: float) -> list[float]:
        """Have workers make transactions for some seconds; return each duration."""
        raise NotImplementedError

    def close(self) -> None:
        """End. Raise an error if messages were lost unnoticed."""

    def wait_loops(self, load: Load, seconds: float) -> list[float]:
        """Have workers send and wait for some seconds; return each duration."""
        end = clock() + seconds
        waits: list[float] = []
        loop = partial(self._loop, end=end, waits=waits)
        functions = [partial(loop, own) for own in keys_of(load)]
        run = in_greenlets if load.worker_kind == "greenlets" else in_threads
        run(functions)
        return waits

    def _loop(
        self, keys: Iterator[bytes | None], end: float, waits: list[float]
    ) -> None:
        send_and_wait = self.send_and_wait
        before = clock()
        while before < end:
            send_and_wait(next(keys))
            after = clock()
            waits.append(after - before)
            before = after


def keys_of(load: Load) -> list[Iterator[bytes | None]]:
    """Return an endless iterator over all keys per worker, each starting elsewhere."""
    keys: list[bytes | None]
    keys = [f"key-{number}".encode() for number in range(load.keys)] or [None]
    starts = (worker * len(keys) // load.workers for worker in range(load.workers))
    return [islice(cycle(keys), start, None) for start in starts]


def in_greenlets(functions: Sequence[Callable[[], None]]) -> None:
    """Run functions in greenlets, and wait for them."""
    import gevent  # noqa: PLC0415 - a process imports only what it needs

    gevent.joinall([gevent.spawn(each) for each in functions], raise_error=True)


def in_threads(functions: Sequence[Callable[[], None]]) -> None:
    """Run functions in threads, and wait for them."""
    threads = [threading.Thread(target=each) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
