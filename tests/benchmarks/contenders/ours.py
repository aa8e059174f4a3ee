"""greendrop, with its defaults and in other ways."""

# ruff: noqa: D102 - what the verbs mean stands in Contender
# ruff: noqa: PLC0415 - a process imports only what its own contender needs

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks.contenders.base import PAYLOAD, Contender, Place, in_greenlets
from tests.benchmarks.instruments import clock

if TYPE_CHECKING:
    from greendrop import Message, Producer
    from greendrop.events import Event
    from tests.benchmarks.cells import Load


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

    def transact_loops(self, load: Load, seconds: float) -> list[float]:
        workers = min(load.workers, self._most)
        while len(self._producers) < workers:
            self._producers.append(self._opened())
        end = clock() + seconds
        took: list[float] = []
        loops = [
            partial(self._transact, each, load.count, end, took)
            for each in self._producers
        ]
        in_greenlets(loops)
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
