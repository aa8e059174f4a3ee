"""confluent-kafka without greendrop, used in several ways: "raw"."""

# ruff: noqa: D102 - what the verbs mean stands in Contender
# ruff: noqa: PLC0415 - a process imports only what its own contender needs

from __future__ import annotations

import threading
import uuid
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks.contenders.base import (
    LONGEST_WAIT,
    PAYLOAD,
    Contender,
    Place,
    in_threads,
)
from tests.benchmarks.instruments import clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.event import AsyncResult

    from tests.benchmarks.cells import Load

    Result = AsyncResult[object]
    OnDelivery = Callable[[object, object], None]


class Raw(Contender):
    """confluent-kafka, counting errors in one shared callback."""

    def __init__(self, place: Place, linger: int | None = None) -> None:
        super().__init__(place)
        from confluent_kafka import Producer

        config: dict[str, str | int] = {"bootstrap.servers": place.bootstrap_servers}
        if linger is not None:
            config["linger.ms"] = linger
        self.producer = Producer(config)
        self._failed = 0
        self._batch = 0

    def _on_delivery(self, error: object, _message: object) -> None:
        if error is not None:
            self._failed += 1

    def send(self) -> None:
        while True:
            try:
                self.producer.produce(
                    self.topic, PAYLOAD, on_delivery=self._on_delivery
                )
            except BufferError:
                self.producer.poll(0.01)
            else:
                return

    def finish(self) -> None:
        if self.producer.flush(LONGEST_WAIT):
            raise RuntimeError("not all messages are reported")

    def prepare_batch(self, size: int) -> None:
        self._batch = size

    def send_batch(self) -> None:
        for _ in range(self._batch):
            self.producer.produce(self.topic, PAYLOAD, on_delivery=self._on_delivery)
        self.finish()

    def close(self) -> None:
        self.finish()
        if self._failed:
            raise RuntimeError(f"{self._failed} messages were not delivered")


class Flush(Raw):
    """confluent-kafka, where each waiter flushes."""

    def send_and_wait(self, key: bytes | None) -> None:
        self.producer.produce(
            self.topic, PAYLOAD, key=key, on_delivery=self._on_delivery
        )
        self.producer.flush()


class RawTransactions(Contender):
    """confluent-kafka's transactions, in a native thread."""

    def __init__(self, place: Place, linger: int | None = None) -> None:
        super().__init__(place)
        from confluent_kafka import Producer

        config: dict[str, str | int] = {
            "bootstrap.servers": place.bootstrap_servers,
            "transactional.id": f"{place.topic}-{uuid.uuid4().hex}",
        }
        if linger is not None:
            config["linger.ms"] = linger
        self._producer = Producer(config)
        self._producer.init_transactions(LONGEST_WAIT)
        self._failed = 0

    def transact_loops(self, load: Load, seconds: float) -> list[float]:
        took: list[float] = []
        in_threads([partial(self._transact, load.count, clock() + seconds, took)])
        return took

    def _transact(self, count: int, end: float, took: list[float]) -> None:
        producer = self._producer
        before = clock()
        while before < end:
            producer.begin_transaction()
            for _ in range(count):
                producer.produce(self.topic, PAYLOAD, on_delivery=self._on_delivery)
            producer.commit_transaction(LONGEST_WAIT)
            after = clock()
            took.append(after - before)
            before = after

    def _on_delivery(self, error: object, _message: object) -> None:
        if error is not None:
            self._failed += 1

    def close(self) -> None:
        if self._failed:
            raise RuntimeError(f"{self._failed} messages were not delivered")


class WithResults(Raw):
    """confluent-kafka in a hub, with an `AsyncResult` for each message.

    A subclass polls.
    """

    def __init__(self, place: Place, linger: int | None = None) -> None:
        super().__init__(place, linger)
        from gevent.event import AsyncResult

        self._result = AsyncResult
        self._results: list[Result] = []

    def _setter(self, result: Result) -> OnDelivery:
        """Return the callback that sets the result of a message."""
        raise NotImplementedError

    def _produce(self, key: bytes | None = None) -> Result:
        result: Result = self._result()
        setter = self._setter(result)
        while True:
            try:
                self.producer.produce(self.topic, PAYLOAD, key=key, on_delivery=setter)
            except BufferError:
                # Let others poll.
                self.producer.poll(0)
                _sleep(0.001)
            else:
                return result

    def send_and_wait(self, key: bytes | None) -> None:
        self._produce(key).get(timeout=LONGEST_WAIT)

    def send(self) -> None:
        self._results.append(self._produce())

    def finish(self) -> None:
        results, self._results = self._results, []
        for result in results:
            result.get(timeout=LONGEST_WAIT)

    def send_batch(self) -> None:
        for _ in range(self._batch):
            self.send()
        self.finish()


class PollThread(WithResults):
    """A native thread polls.

    The thread wakes the hub, and the hub sets the results: gevent's events belong to
    one thread.
    """

    def __init__(self, place: Place, linger: int | None = None) -> None:
        super().__init__(place, linger)
        import gevent

        self._reports: deque[tuple[Result, object, object]] = deque()
        self._wake = gevent.get_hub().loop.async_()
        self._wake.start(self._resolve)
        self._ended = False
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()

    def _setter(self, result: Result) -> OnDelivery:
        def on_delivery(error: object, message: object) -> None:
            self._reports.append((result, error, message))
            self._wake.send()

        return on_delivery

    def _poll(self) -> None:
        while not self._ended:
            self.producer.poll(0.1)

    def _resolve(self) -> None:
        reports = self._reports
        while reports:
            _resolve(*reports.popleft())

    def close(self) -> None:
        self._ended = True
        self._thread.join()
        super().close()


class PollGreenlet(WithResults):
    """A greenlet polls without waiting, every millisecond."""

    def __init__(self, place: Place, linger: int | None = None) -> None:
        super().__init__(place, linger)
        import gevent

        self._ended = False
        self._greenlet = gevent.spawn(self._poll)

    def _setter(self, result: Result) -> OnDelivery:
        return partial(_resolve, result)

    def _poll(self) -> None:
        while not self._ended:
            self.producer.poll(0)
            _sleep(0.001)

    def close(self) -> None:
        self._ended = True
        self._greenlet.join()
        super().close()


def _resolve(result: Result, error: object, message: object) -> None:
    if error is None:
        result.set(message)
    else:
        result.set_exception(RuntimeError(str(error)))


def _sleep(seconds: float) -> None:
    import gevent

    gevent.sleep(seconds)
