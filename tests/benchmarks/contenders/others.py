"""Clients that are written in Python, and those for asyncio."""

# ruff: noqa: D102 - what the verbs mean stands in Contender
# ruff: noqa: PLC0415 - a process imports only what its own contender needs

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks.contenders.base import (
    LONGEST_WAIT,
    PAYLOAD,
    Contender,
    Place,
    keys_of,
)
from tests.benchmarks.instruments import clock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import Any

    from tests.benchmarks.cells import Load


class _OnUvloop(Contender):
    """A client for asyncio, on uvloop: tasks in place of greenlets."""

    in_hub = False

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        import uvloop

        self._tasks = uvloop.new_event_loop()
        self._run = self._tasks.run_until_complete

    #: Sends a message with a `key`, and waits for its report.
    _send: Callable[..., Awaitable[object]]

    def wait_loops(self, load: Load, seconds: float) -> list[float]:
        end = clock() + seconds
        waits: list[float] = []

        async def loops() -> None:
            shares = keys_of(load)
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
        self._batch = 0
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

    def connect(self) -> None:
        self.fire(100)

    def fire(self, count: int) -> None:
        self._run(self._fire(count))

    async def _fire(self, count: int) -> None:
        send = self._producer.send
        await asyncio.gather(*[await send(self.topic, PAYLOAD) for _ in range(count)])

    def prepare_batch(self, size: int) -> None:
        self._batch = size

    def send_batch(self) -> None:
        self.fire(self._batch)

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


class KafkaPython(Contender):
    """kafka-python in a program that gevent has patched.

    Its sender is a thread, which is a greenlet here.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from kafka import KafkaProducer

        self._producer = KafkaProducer(
            bootstrap_servers=place.bootstrap_servers,
            acks="all",
            enable_idempotence=False,
        )
        self._futures: list[Any] = []
        self._batch = 0

    def send_and_wait(self, key: bytes | None) -> None:
        future = self._producer.send(self.topic, PAYLOAD, key=key)
        future.get(timeout=LONGEST_WAIT)

    def send(self) -> None:
        self._futures.append(self._producer.send(self.topic, PAYLOAD))

    def finish(self) -> None:
        futures, self._futures = self._futures, []
        for future in futures:
            future.get(timeout=LONGEST_WAIT)

    def prepare_batch(self, size: int) -> None:
        self._batch = size

    def send_batch(self) -> None:
        for _ in range(self._batch):
            self.send()
        self.finish()

    def close(self) -> None:
        self._producer.close(timeout=LONGEST_WAIT)
