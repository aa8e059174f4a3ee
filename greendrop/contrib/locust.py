"""Load tests of what comes after Kafka, with Locust.

    from greendrop.contrib.locust import GreendropUser
    from locust import between, task

    class Shop(GreendropUser):
        kafka = {"bootstrap.servers": "localhost:9092"}
        wait_time = between(0.5, 1.5)

        @task
        def order(self):
            self.client.produce_sync(topic="orders", payload=b"one book")

Each message is a request in Locust's statistics, of the type `KAFKA` and with the name
of its topic.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import gevent
from gevent.queue import Queue
from locust import User
from locust.exception import StopTest

from greendrop.errors import ProduceError
from greendrop.producer import Producer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from locust.env import Environment

    from greendrop.delivery import DeliveryHandle, DeliveryReport
    from greendrop.message import Message

__all__ = ["GreendropClient", "GreendropUser"]

_log = logging.getLogger("greendrop")


class GreendropUser(User):
    """A user whose `client` sends to Kafka and tells Locust of it.

    All users of a class share one producer, as all requests of a web worker do. A class
    below this one sets:
    """

    abstract = True

    #: librdkafka's configuration. Without `bootstrap.servers` these are Locust's host
    #: (`--host`, or the class's `host`).
    kafka: ClassVar[Mapping[str, object]] = {}
    #: greendrop's settings, see docs/reference/settings.md.
    settings: ClassVar[Mapping[str, Any]] = {}
    #: The type of the requests in Locust's statistics.
    request_type: ClassVar[str] = "KAFKA"
    #: Seconds that the end of a test waits for messages that are on their way.
    flush_timeout: ClassVar[float] = 10.0

    def __init__(self, environment: Environment) -> None:
        """Called by Locust. The first user of a class makes the producer."""
        super().__init__(environment)
        #: Sends for this user.
        self.client = GreendropClient(self, _shared_by(self))


class GreendropClient:
    """What a user sends with. The producer itself is at `producer`.

    As Locust's clients for HTTP do, it doesn't raise what becomes of a message: that is
    in the statistics. Mistakes in the message itself, and a closed producer, raise.
    """

    def __init__(self, user: GreendropUser, shared: _Shared) -> None:
        self._user = user
        self._shared = shared

    @property
    def producer(self) -> Producer:
        """The producer that all users of the class share."""
        return self._shared.producer

    def produce_sync(
        self,
        *,
        name: str | None = None,
        **message: Any,  # noqa: ANN401 - checked by the producer
    ) -> DeliveryReport | None:
        """Send a message and wait until the broker has it; None if it failed.

        Args:
            name: Of the request in the statistics; the topic, if it isn't given.
            **message: As for `Producer.produce_sync`.

        Blocking:
            As `Producer.produce_sync`: other users go on.
        """
        sent = self._sent(name or message.get("topic"), [message])
        report, error = None, None
        try:
            report = self.producer.produce_sync(**message)
        except ProduceError as problem:
            error = problem
        sent.tell(time.perf_counter() - sent.began, error)
        return report

    def produce_many_sync(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        name: str = "batch",
    ) -> list[DeliveryReport] | None:
        """Send a batch and wait until the broker has all of it; None if some failed.

        Args:
            messages: As for `Producer.produce_many_sync`.
            name: Of the one request in the statistics.

        Blocking:
            As `Producer.produce_many_sync`: other users go on.
        """
        batch = list(messages)
        sent = self._sent(name, batch)
        reports, error = None, None
        try:
            reports = self.producer.produce_many_sync(batch)
        except ProduceError as problem:
            error = problem
        sent.tell(time.perf_counter() - sent.began, error)
        return reports

    def produce_async(
        self,
        *,
        name: str | None = None,
        **message: Any,  # noqa: ANN401 - checked by the producer
    ) -> DeliveryHandle | None:
        """Send a message and don't wait; None if it could not be queued.

        It is in the statistics once its report is in, with the time that librdkafka
        took to deliver it, and at the latest when the test stops.

        Args:
            name: Of the request in the statistics; the topic, if it isn't given.
            **message: As for `Producer.produce_async`.

        Blocking:
            As `Producer.produce_async`: other users go on.
        """
        sent = self._sent(name or message.get("topic"), [message])
        try:
            handle = self.producer.produce_async(**message)
        except ProduceError as error:
            sent.tell(time.perf_counter() - sent.began, error)
            return None
        self._shared.pending.put((sent, handle))
        return handle

    def _sent(self, name: str | None, messages: Iterable[Any]) -> _Sent:
        length = sum(_length(message) for message in messages)
        return _Sent(self._user, str(name), length, time.time(), time.perf_counter())


def _length(message: Any) -> int:  # noqa: ANN401 - a Message, or a mapping
    get = getattr(message, "get", None)
    payload = get("payload") if get else getattr(message, "payload", None)
    # What else it may be is told by the producer.
    return len(payload) if isinstance(payload, (bytes, str)) else 0


class _Sent(NamedTuple):
    """A request that was begun."""

    user: GreendropUser
    name: str
    length: int
    start_time: float
    began: float

    def tell(self, seconds: float, error: Exception | None) -> None:
        """Tell Locust that it has ended, and how."""
        user = self.user
        user.environment.events.request.fire(
            request_type=user.request_type,
            name=self.name,
            start_time=self.start_time,
            response_time=seconds * 1000,
            response_length=self.length,
            response=None,
            context=user.context(),
            exception=error,
        )


class _Shared:
    """What all users of a class share, in one environment."""

    def __init__(self, user: GreendropUser, kafka: Mapping[str, object]) -> None:
        self.environment = user.environment
        self.kafka = kafka
        self.producer = Producer(kafka=kafka, **user.settings)
        self._timeout = user.flush_timeout
        #: Messages that nobody waits for, in the order in which they were sent.
        self.pending: Queue[tuple[_Sent, DeliveryHandle]] = Queue()
        self._telling = False
        gevent.spawn(self._tell_pending)
        self.environment.events.test_stop.add_listener(self._on_test_stop)

    def _tell_pending(self) -> None:
        for sent, handle in self.pending:
            self._telling = True
            try:
                seconds = handle.wait().latency
                error = None
            except ProduceError as problem:
                seconds, error = time.perf_counter() - sent.began, problem
            sent.tell(seconds, error)
            self._telling = False

    def _on_test_stop(self, **_: object) -> None:
        """Wait for what the users left behind; the producer stays for the next test."""
        deadline = time.monotonic() + self._timeout
        while left := self.producer.queue_size + len(self.pending) + self._telling:
            if time.monotonic() > deadline:
                text = "%d messages had no verdict %g s after the test's end"
                _log.warning(text, left, self._timeout)
                return
            gevent.sleep(0.01)


# By class. A subclass has its own.
_all_shared: dict[type[GreendropUser], _Shared] = {}


def _shared_by(user: GreendropUser) -> _Shared:
    kafka = dict(user.kafka)
    if not {"bootstrap.servers", "metadata.broker.list"} & kafka.keys():
        if user.host is None:
            raise StopTest("set kafka['bootstrap.servers'], or the host (--host)")
        kafka["bootstrap.servers"] = user.host
    shared = _all_shared.get(type(user))
    if (
        shared is None
        or shared.environment is not user.environment
        or shared.kafka != kafka
    ):
        shared = _all_shared[type(user)] = _Shared(user, kafka)
    return shared
