"""Locust users that send to Kafka, for load tests of the consumers behind it.

    from greendrop.contrib.locust import GreendropUser
    from locust import between, task

    class Shop(GreendropUser):
        kafka = {"bootstrap.servers": "localhost:9092"}
        wait_time = between(0.5, 1.5)

        @task
        def order(self):
            self.client.produce_sync(topic="orders", payload=b"one book")

Each message is a request in Locust's statistics, of type `KAFKA` and named by its
topic.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import gevent
from gevent.queue import Queue
from locust import User
from locust.exception import StopTest

from greendrop.errors import SENDING_ERRORS
from greendrop.producer import Producer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from locust.env import Environment
    from typing_extensions import Unpack

    from greendrop.config.types import MessageFields, ProducerSettings
    from greendrop.delivery import DeliveryHandle, DeliveryReport
    from greendrop.message import Message

__all__ = ["GreendropClient", "GreendropUser"]

_log = logging.getLogger("greendrop")


class GreendropUser(User):
    """A Locust user whose `client` sends to Kafka and reports to Locust.

    All users of a class share one producer, as all requests of a web worker do.
    Subclasses may set the attributes below.
    """

    abstract = True

    #: librdkafka's configuration. `bootstrap.servers` defaults to Locust's host
    #: (`--host` or the attribute `host`).
    kafka: ClassVar[Mapping[str, Any]] = {}
    #: greendrop's settings, see docs/reference/settings.md.
    settings: ClassVar[ProducerSettings] = {}
    #: The type of the requests in Locust's statistics.
    request_type: ClassVar[str] = "KAFKA"
    #: Seconds that the end of a test waits for messages in flight.
    flush_timeout: ClassVar[float] = 10.0

    def __init__(self, environment: Environment) -> None:
        """Make a user, and the producer with the first user; called by Locust."""
        super().__init__(environment)
        #: The client of this user.
        self.client = GreendropClient(self, _shared_by(self))


class GreendropClient:
    """The client of a Locust user. The producer itself is at `producer`.

    Like Locust's HTTP clients it does not raise for failed deliveries, which are in the
    statistics. Invalid messages and a closed producer raise.
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
        **message: Unpack[MessageFields],
    ) -> DeliveryReport | None:
        """Send a message and wait for its delivery report; return None if it failed.

        Args:
            name: The name of the request in the statistics; by default the topic.
            **message: As for `Producer.produce_sync`.

        Blocking:
            As `Producer.produce_sync`: lets other users run.
        """
        request = self._start(name or message.get("topic"), [message])
        report, error = None, None
        try:
            report = self.producer.produce_sync(**message)
        except SENDING_ERRORS as problem:
            error = problem
        request.finish(time.perf_counter() - request.started, error)
        return report

    def produce_many_sync(
        self,
        messages: Iterable[Message | Mapping[str, object]],
        *,
        name: str = "batch",
    ) -> list[DeliveryReport] | None:
        """Send a batch and wait for its delivery reports; return None if any failed.

        Args:
            messages: As for `Producer.produce_many_sync`.
            name: The name of the one request in the statistics.

        Blocking:
            As `Producer.produce_many_sync`: lets other users run.
        """
        batch = list(messages)
        request = self._start(name, batch)
        reports, error = None, None
        try:
            reports = self.producer.produce_many_sync(batch)
        except SENDING_ERRORS as problem:
            error = problem
        request.finish(time.perf_counter() - request.started, error)
        return reports

    def produce_async(
        self,
        *,
        name: str | None = None,
        **message: Unpack[MessageFields],
    ) -> DeliveryHandle | None:
        """Send a message without waiting; return None if it could not be queued.

        It is added to the statistics when its delivery report arrives, with the time
        that librdkafka took to deliver it, and at the latest when the test stops.

        Args:
            name: The name of the request in the statistics; by default the topic.
            **message: As for `Producer.produce_async`.

        Blocking:
            As `Producer.produce_async`: lets other users run.
        """
        request = self._start(name or message.get("topic"), [message])
        try:
            handle = self.producer.produce_async(**message)
        except SENDING_ERRORS as error:
            request.finish(time.perf_counter() - request.started, error)
            return None
        self._shared.pending.put((request, handle))
        return handle

    def _start(self, name: str | None, messages: Iterable[object]) -> _Request:
        length = sum(_length(message) for message in messages)
        return _Request(self._user, str(name), length, time.time(), time.perf_counter())


def _length(message: Any) -> int:  # noqa: ANN401 - a Message, or a mapping
    get = getattr(message, "get", None)
    payload = get("payload") if get else getattr(message, "payload", None)
    # The producer refuses other types.
    return len(payload) if isinstance(payload, (bytes, str)) else 0


class _Request(NamedTuple):
    """A started request."""

    user: GreendropUser
    name: str
    length: int
    start_time: float
    started: float

    def finish(self, seconds: float, error: Exception | None) -> None:
        """Report the outcome to Locust."""
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
    """The producer and pending messages that all users of a class share."""

    def __init__(self, user: GreendropUser, kafka: Mapping[str, object]) -> None:
        self.environment = user.environment
        self.kafka = kafka
        self.producer = Producer(kafka=kafka, **user.settings)
        self._timeout = user.flush_timeout
        #: Requests of `produce_async`, in the order of sending.
        self.pending: Queue[tuple[_Request, DeliveryHandle]] = Queue()
        self._finishing = False
        gevent.spawn(self._finish_pending)
        self.environment.events.test_stop.add_listener(self._on_test_stop)

    def _finish_pending(self) -> None:
        for request, handle in self.pending:
            self._finishing = True
            try:
                seconds = handle.wait().latency
                error = None
            except SENDING_ERRORS as problem:
                seconds, error = time.perf_counter() - request.started, problem
            request.finish(seconds, error)
            self._finishing = False

    def _on_test_stop(self, **_: object) -> None:
        """Wait for pending messages. The producer stays open for the next test."""
        deadline = time.monotonic() + self._timeout
        while pending := self.producer.queue_size + len(self.pending) + self._finishing:
            if time.monotonic() > deadline:
                text = (
                    "%d messages had no delivery report %g s after the end of the test"
                )
                _log.warning(text, pending, self._timeout)
                return
            gevent.sleep(0.01)


# By class; a subclass has its own.
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
