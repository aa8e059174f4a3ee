"""The contenders: each a way to send to Kafka, behind one interface.

All of them ask for all acknowledgements, compress nothing and are not idempotent.
Settings that aren't named in a constructor are the library's defaults.
"""

# ruff: noqa: D102 - what the verbs mean stands in Contender
# ruff: noqa: PLC0415 - a process imports only what its own contender needs

from __future__ import annotations

import threading
import uuid
from collections import deque
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, NamedTuple

from tests.benchmarks import cells
from tests.benchmarks.instruments import clock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from gevent.event import AsyncResult

    from greendrop import Message, Producer
    from greendrop.events import Event

#: 100 bytes.
PAYLOAD = b"x" * 100
#: Seconds after which a measurement has failed.
_LONGEST_WAIT = 60.0


class Place(NamedTuple):
    """The brokers and the topic of a measurement."""

    bootstrap_servers: str
    topic: str


class Contender:
    """A way to send. A subclass has the verbs that its loads need."""

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

    def prepare_batch(self, size: int) -> None:
        """Prepare the batch that a caller of `send_batch` has at hand."""
        raise NotImplementedError

    def send_batch(self) -> None:
        """Send the batch and wait for all of its reports."""
        raise NotImplementedError

    def transact_loops(self, load: cells.Load, seconds: float) -> list[float]:
        """Have workers make transactions for some seconds; return each duration."""
        raise NotImplementedError

    def close(self) -> None:
        """End. Raise an error if messages were lost unnoticed."""

    def wait_loops(self, load: cells.Load, seconds: float) -> list[float]:
        """Have workers send and wait for some seconds; return each duration."""
        end = clock() + seconds
        waits: list[float] = []
        loop = partial(self._loop, end=end, waits=waits)
        functions = [partial(loop, own) for own in _keys(load)]
        (_in_greenlets if load.worker_kind == "greenlets" else _in_threads)(functions)
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


def _keys(load: cells.Load) -> list[Iterator[bytes | None]]:
    """Return an endless iterator over all keys per worker, each starting elsewhere."""
    keys: list[bytes | None]
    keys = [f"key-{number}".encode() for number in range(load.keys)] or [None]
    starts = (worker * len(keys) // load.workers for worker in range(load.workers))
    return [islice(cycle(keys), start, None) for start in starts]


def _in_greenlets(functions: Sequence[Callable[[], None]]) -> None:
    import gevent

    gevent.joinall([gevent.spawn(each) for each in functions], raise_error=True)


def _in_threads(functions: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=each) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Greendrop(Contender):
    """greendrop with its defaults, or with a `linger.ms` of the user's.

    In transactions each greenlet has a producer of its own, up to so many.
    """

    def __init__(
        self, place: Place, linger: int | None = None, most_producers: int = 1_000
    ) -> None:
        super().__init__(place)
        self._most = most_producers
        self._producers: list[Producer] = []
        from greendrop import Message, Producer

        kafka: dict[str, str | int] = {"bootstrap.servers": place.bootstrap_servers}
        if linger is not None:
            kafka["linger.ms"] = linger
        self.producer = Producer(kafka=kafka)
        self._message = Message
        self._batch: list[Message] = []
        self._errors: list[Event] = []
        self.producer.monitor.subscribe("error.occurred", self._on_error)

    def _on_error(self, event: Event) -> None:
        # A full queue is no error here: the sender waits for space.
        if not event["type"].startswith("message."):
            self._errors.append(event)

    def send_and_wait(self, key: bytes | None) -> None:
        self.producer.produce_sync(topic=self.topic, payload=PAYLOAD, key=key)

    def send(self) -> None:
        self.producer.produce_async(topic=self.topic, payload=PAYLOAD)

    def finish(self) -> None:
        self.producer.close()

    def prepare_batch(self, size: int) -> None:
        message = self._message(topic=self.topic, payload=PAYLOAD)
        self._batch = [message] * size

    def send_batch(self) -> None:
        self.producer.produce_many_sync(self._batch)

    def transact_loops(self, load: cells.Load, seconds: float) -> list[float]:
        workers = min(load.workers, self._most)
        while len(self._producers) < workers:
            self._producers.append(self._opened())
        end = clock() + seconds
        took: list[float] = []
        loops = [
            partial(self._transact, each, load.count, end, took)
            for each in self._producers
        ]
        _in_greenlets(loops)
        return took

    def _opened(self) -> Producer:
        from greendrop import Producer

        producer = Producer(
            kafka={
                "bootstrap.servers": self.bootstrap_servers,
                "transactional.id": f"{self.topic}-{uuid.uuid4().hex}",
            }
        )
        producer.produce_sync(topic=self.topic, payload=PAYLOAD)
        return producer

    def _transact(
        self, producer: Producer, count: int, end: float, took: list[float]
    ) -> None:
        before = clock()
        while before < end:
            with producer.transaction():
                for _ in range(count):
                    producer.produce_async(topic=self.topic, payload=PAYLOAD)
            after = clock()
            took.append(after - before)
            before = after

    def close(self) -> None:
        for producer in (self.producer, *self._producers):
            producer.close()
        if self._errors:
            text = f"{len(self._errors)} errors, at last {self._errors[-1]['error']}"
            raise RuntimeError(text)


class Unbatched(Greendrop):
    """greendrop with librdkafka's `linger.ms=0` alone, which users can't configure."""

    def send_and_wait(self, key: bytes | None) -> None:
        super().send_and_wait(key)
        self.producer._slot.client.poll_loop.batcher = None
        # From now on without this detour.
        self.send_and_wait = super().send_and_wait

    def close(self) -> None:
        if self.producer._slot.client.poll_loop.batcher is not None:
            raise RuntimeError("it batches again")
        super().close()


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
        if self.producer.flush(_LONGEST_WAIT):
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
        self._producer.init_transactions(_LONGEST_WAIT)
        self._failed = 0

    def transact_loops(self, load: cells.Load, seconds: float) -> list[float]:
        took: list[float] = []
        _in_threads([partial(self._transact, load.count, clock() + seconds, took)])
        return took

    def _transact(self, count: int, end: float, took: list[float]) -> None:
        producer = self._producer
        before = clock()
        while before < end:
            producer.begin_transaction()
            for _ in range(count):
                producer.produce(self.topic, PAYLOAD, on_delivery=self._on_delivery)
            producer.commit_transaction(_LONGEST_WAIT)
            after = clock()
            took.append(after - before)
            before = after

    def _on_delivery(self, error: object, _message: object) -> None:
        if error is not None:
            self._failed += 1

    def close(self) -> None:
        if self._failed:
            raise RuntimeError(f"{self._failed} messages were not delivered")


class PollThread(Raw):
    """confluent-kafka, a native thread that polls, and AsyncResults in the hub.

    The thread wakes the hub, and the hub sets the results: gevent's events belong to
    one thread.
    """

    def __init__(self, place: Place, linger: int | None = None) -> None:
        super().__init__(place, linger)
        import gevent
        from gevent.event import AsyncResult

        self._result = AsyncResult
        self._reports: deque[tuple[AsyncResult[object], object, object]] = deque()
        self._wake = gevent.get_hub().loop.async_()
        self._wake.start(self._resolve)
        self._ended = False
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()

    def send_and_wait(self, key: bytes | None) -> None:
        result = self._result()

        def on_delivery(error: object, message: object) -> None:
            self._reports.append((result, error, message))
            self._wake.send()

        self.producer.produce(self.topic, PAYLOAD, key=key, on_delivery=on_delivery)
        result.get(timeout=_LONGEST_WAIT)

    def _poll(self) -> None:
        while not self._ended:
            self.producer.poll(0.1)

    def _resolve(self) -> None:
        reports = self._reports
        while reports:
            result, error, message = reports.popleft()
            if error is None:
                result.set(message)
            else:
                result.set_exception(RuntimeError(str(error)))

    def close(self) -> None:
        self._ended = True
        self._thread.join()
        super().close()


class KafkaPython(Contender):
    """kafka-python, in a program that is monkey-patched by gevent."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from gevent import monkey

        monkey.patch_all()
        from kafka import KafkaProducer

        self._producer = KafkaProducer(
            bootstrap_servers=place.bootstrap_servers,
            acks="all",
            enable_idempotence=False,
        )

    def send_and_wait(self, key: bytes | None) -> None:
        self._producer.send(self.topic, PAYLOAD, key=key).get(timeout=_LONGEST_WAIT)

    def close(self) -> None:
        self._producer.close(timeout=_LONGEST_WAIT)


class _OnUvloop(Contender):
    """A client for asyncio, on uvloop: tasks in place of greenlets."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        import uvloop

        self._tasks = uvloop.new_event_loop()
        self._run = self._tasks.run_until_complete

    #: Sends a message with a `key`, and waits for its report.
    _send: Callable[..., Awaitable[object]]

    def wait_loops(self, load: cells.Load, seconds: float) -> list[float]:
        import asyncio

        end = clock() + seconds
        waits: list[float] = []

        async def loops() -> None:
            shares = _keys(load)
            await asyncio.gather(*(self._send_loop(own, end, waits) for own in shares))

        self._run(loops())
        return waits

    async def _send_loop(
        self, keys: Iterator[bytes | None], end: float, waits: list[float]
    ) -> None:
        send = self._send
        before = clock()
        while before < end:
            await send(key=next(keys))
            after = clock()
            waits.append(after - before)
            before = after


class AioKafka(_OnUvloop):
    """aiokafka."""

    def __init__(self, place: Place, max_batch_size: int | None = None) -> None:
        super().__init__(place)
        from aiokafka import AIOKafkaProducer

        self._aio_producer = AIOKafkaProducer
        options = {} if max_batch_size is None else {"max_batch_size": max_batch_size}
        self._run(self._open(options))
        self._send = partial(self._producer.send_and_wait, self.topic, PAYLOAD)

    async def _open(self, options: dict[str, int]) -> None:
        self._producer = self._aio_producer(
            bootstrap_servers=self.bootstrap_servers,
            acks="all",
            enable_idempotence=False,
            **options,
        )
        await self._producer.start()

    def close(self) -> None:
        self._run(self._producer.stop())
        self._tasks.close()


class AioProducer(_OnUvloop):
    """confluent-kafka's AIOProducer."""

    def __init__(
        self,
        place: Place,
        buffer_timeout: float | None = None,
        linger: int | None = None,
    ) -> None:
        super().__init__(place)
        config: dict[str, str | int] = {"bootstrap.servers": place.bootstrap_servers}
        if linger is not None:
            config["linger.ms"] = linger
        options = {} if buffer_timeout is None else {"buffer_timeout": buffer_timeout}
        self._run(self._open(config, options))
        self._send = self._send_and_wait

    async def _open(
        self, config: dict[str, str | int], options: dict[str, float]
    ) -> None:
        from confluent_kafka.aio import AIOProducer

        self._producer = AIOProducer(config, **options)

    async def _send_and_wait(self, key: bytes | None) -> None:
        await (await self._producer.produce(self.topic, PAYLOAD, key))

    def close(self) -> None:
        self._run(self._producer.close())
        self._tasks.close()


CONTENDERS: dict[str, Callable[[Place], Contender]] = {
    cells.GREENDROP: Greendrop,
    cells.UNBATCHED: partial(Unbatched, linger=0),
    cells.LINGER_1: partial(Greendrop, linger=1),
    cells.LINGER_5: partial(Greendrop, linger=5),
    cells.FLUSH: Flush,
    cells.FLUSH_LINGER_0: partial(Flush, linger=0),
    cells.POLL_THREAD: partial(PollThread, linger=0),
    cells.POLL_THREAD_LINGER_5: partial(PollThread, linger=5),
    cells.CALLBACK: Raw,
    cells.CALLBACK_LINGER_0: partial(Raw, linger=0),
    cells.ONE_PRODUCER: partial(Greendrop, most_producers=1),
    cells.TRANSACTIONS: RawTransactions,
    cells.TRANSACTIONS_LINGER_0: partial(RawTransactions, linger=0),
    cells.AIOKAFKA: AioKafka,
    # librdkafka's `batch.size`; aiokafka's own limit is 16 KiB.
    cells.KAFKA_PYTHON: KafkaPython,
    cells.AIO_PRODUCER: AioProducer,
    cells.AIO_PRODUCER_1_MS: partial(AioProducer, buffer_timeout=0.001, linger=0),
    cells.AIOKAFKA_1_MB: partial(AioKafka, max_batch_size=1_000_000),
}
