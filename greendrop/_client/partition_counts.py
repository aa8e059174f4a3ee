"""Partition counts: the routing of messages that have a `partition_key`.

`Router` chooses partitions. It requests the number of a topic's partitions from the
brokers, with one request for all callers, and caches it. `Rerouter` sends messages once
more whose partition no longer exists.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from greendrop import _concurrency
from greendrop._librdkafka import error_codes
from greendrop.delivery import DeliveryHandle
from greendrop.errors import BrokerError, IllegalWaitError, ProducerClosedError
from greendrop.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greendrop._client.poll_loop import PollLoop
    from greendrop._librdkafka.handle import KafkaHandle
    from greendrop._librdkafka.partitioners import Partitioner
    from greendrop.delivery import ReportQueue

#: Returned as the number of partitions of an unknown topic.
UNKNOWN = -1

#: Seconds for which a number is fresh. Topics rarely get more partitions, and get fewer
#: only when they are deleted and created again.
_FRESH = 30.0
#: Seconds for which `UNKNOWN` is fresh, and a number that could not be requested again.
#: Short, since the topic may be created, or a broker come back, at any time.
_BRIEFLY = 1.0
#: Seconds after `_FRESH` in which a number is still used, while a newer one is being
#: requested. Together 5 minutes, librdkafka's own age of metadata.
_USABLE = 270.0

#: Timeout of one request to a broker, in seconds.
_REQUEST = 2.0
#: Timeout of all attempts together, in seconds.
_LONGEST_WAIT = 5.0
#: Seconds between two attempts: at first, doubled each time, and at most.
_FIRST_PAUSE, _LAST_PAUSE = 0.2, 1.0
#: Seconds after which a topic that the brokers don't know counts as unknown. A broker
#: that creates topics on request answers "unknown" until it has done so: some 0.1 s.
_CREATION = 1.5

#: Maximum number of cached topics, for programs that generate topic names.
_MAX_TOPICS = 10_000

#: Transient errors of a metadata request.
_TRANSIENT = {
    error_codes.LEADER_NOT_AVAILABLE,
    error_codes.REQUEST_TIMED_OUT,
    error_codes.TIMED_OUT,
    error_codes.TRANSPORT,
}

# The constructor of a NamedTuple takes twice as long.
_new_message = tuple.__new__


class _Known(NamedTuple):
    """The number of a topic's partitions, and the time until which it is fresh."""

    partitions: int
    fresh_until: float


_NOTHING = _Known(UNKNOWN, -math.inf)


class Router:
    """Chooses partitions, for one client. Used from any greenlet and thread.

    Args:
        partitioner: None if keys don't matter.
        kafka_handle: Requests numbers of partitions, on native threads.
        poll_loop: Returns waiters for the callers.
        now: The clock by which cached numbers age.
    """

    def __init__(
        self,
        partitioner: Partitioner | None,
        kafka_handle: KafkaHandle,
        poll_loop: PollLoop,
        now: Callable[[], float] = _concurrency.monotonic,
    ) -> None:
        self._partitioner = partitioner
        self._kafka_handle = kafka_handle
        self._poll_loop = poll_loop
        self._now = now
        self._known: dict[str, _Known] = {}
        # Topics that are being requested, and the tasks that wait for the answer. They
        # are woken in the order of waiting, and send in that order. Changed under the
        # lock, which is held for a few instructions.
        self._asking: dict[str, _concurrency.WaitQueue] = {}
        self._lock = _concurrency.new_lock()
        self._stopped = False

    def routed(self, message: Message, counts: dict[str, int]) -> Message:
        """Return a message with the partition for its `partition_key`.

        While the number of the topic's partitions is unknown, the message keeps its own
        `partition`, if it has one.

        Args:
            message: In wire form, with a `partition_key`. It is not changed.
            counts: Numbers of partitions by topic, for all messages of a batch. Missing
                numbers are added.

        Raises, Blocking:
            As `count`.
        """
        if self._partitioner is None:
            return message._replace(partition=None)
        topic, payload, key, headers, _, partition_key, timestamp, label = message
        count = counts.get(topic)
        if count is None:
            count = counts[topic] = self.count(topic)
        if count <= 0:
            return message
        in_wire_form: Any = partition_key
        partition = self._partitioner(in_wire_form, count)
        return _new_message(
            Message,
            (topic, payload, key, headers, partition, partition_key, timestamp, label),
        )

    def routed_many(
        self, messages: Sequence[Message], counts: dict[str, int]
    ) -> list[Message]:
        """Return messages with partitions for those that have a `partition_key`.

        The list ends before a message for which the caller would have to wait and
        can't; `routed` raises the error of that message.

        Blocking:
            As `count`.
        """
        routed: list[Message] = []
        for message in messages:
            try:
                has_key = message.partition_key is not None
                routed.append(self.routed(message, counts) if has_key else message)
            except IllegalWaitError:
                break
        return routed

    def count(self, topic: str) -> int:
        """Return the number of a topic's partitions; -1 if it is unknown.

        Raises:
            IllegalWaitError: It is not known yet, and the caller can't wait.

        Blocking:
            While no number is cached, or it is older than 5 minutes: for some 5 s at
            most. Lets other greenlets run. Returns early when stopped.
        """
        known = self._known.get(topic, _NOTHING)
        now = self._now()
        if now < known.fresh_until:
            return known.partitions
        answered = self._start_asking(topic)
        if known.partitions > 0 and now < known.fresh_until + _USABLE:
            return known.partitions
        try:
            self._wait(topic, answered)
        except IllegalWaitError as error:
            if known.partitions > 0:
                return known.partitions
            text = (
                f"{error}; how many partitions {topic!r} has is not known yet, so"
                " nothing was sent (call partition_count() before, elsewhere)"
            )
            raise IllegalWaitError(text) from error
        return self._known.get(topic, _NOTHING).partitions

    def on_failed_message(
        self, code: int | None, topic: str, partition: int | None
    ) -> None:
        """Forget a topic's number if a failed message shows that it is out of date.

        The next message requests it again. The number is kept if it is too small for
        the partition of the failed message: then it has been requested again since that
        message was routed.

        Args:
            code: The code of the error, if it has one.
            topic: The topic of the message.
            partition: The partition that was chosen by its `partition_key`, if it has
                one.
        """
        if code in {error_codes.UNKNOWN_TOPIC_OR_PARTITION, error_codes.UNKNOWN_TOPIC}:
            outdated = True
        elif code == error_codes.UNKNOWN_PARTITION and partition is not None:
            known = self._known.get(topic, _NOTHING)
            outdated = 0 <= partition < known.partitions
        else:
            return
        if outdated:
            with self._lock:
                self._known.pop(topic, None)

    @property
    def stopped(self) -> bool:
        """Whether no more requests are made, because the client closes."""
        return self._stopped

    @property
    def has_waiters(self) -> bool:
        """Whether a task waits for an answer."""
        with self._lock:
            return any(answered.has_waiters for answered in self._asking.values())

    def stop(self) -> None:
        """Make no more requests, and end all waits for answers."""
        self._stopped = True
        with self._lock:
            asking = list(self._asking.values())
        for answered in asking:
            answered.notify_all()

    # --- requests ---------------------------------------------------------------

    def _start_asking(self, topic: str) -> _concurrency.WaitQueue:
        """Start a request, unless one is under way; return the queue for its answer."""
        with self._lock:
            if (answered := self._asking.get(topic)) is not None:
                return answered
            answered = _concurrency.WaitQueue()
            if self._stopped:
                return answered
            self._asking[topic] = answered
        try:
            if not _concurrency.start_thread(self._find_out, topic):
                self._find_out(topic)  # the interpreter is ending
        except RuntimeError:  # the system has no more threads
            self._answer(topic, None)
            raise
        return answered

    def _wait(self, topic: str, answered: _concurrency.WaitQueue) -> None:
        def has_answer() -> bool:
            return self._stopped or self._asking.get(topic) is not answered

        deadline = _concurrency.Deadline(_LONGEST_WAIT + _REQUEST)
        if not answered.wait_until(has_answer, deadline, self._poll_loop.new_waiter):
            # No thread asks: a signal handler has raised before the thread started.
            self._answer(topic, None)

    def _find_out(self, topic: str) -> None:
        # On a thread of its own, and not in the task of a caller: that task may be
        # killed, or run out of time, while other tasks wait for the same answer.
        count = None
        try:
            count = self._ask_repeatedly(topic)
        finally:
            self._answer(topic, count)

    def _ask_repeatedly(self, topic: str) -> int | None:
        """Return the brokers' answer, None if there was none; on a native thread."""
        started = _concurrency.monotonic()
        deadline = _concurrency.Deadline(_LONGEST_WAIT)
        pause = _FIRST_PAUSE
        while not self._stopped:
            seconds = min(max(deadline.remaining(), _FIRST_PAUSE), _REQUEST)
            count, worthwhile = self._ask_once(topic, seconds)
            if count is not None and count > 0:
                return count
            if _concurrency.monotonic() + pause - started >= worthwhile:
                return count
            _concurrency.ThreadWaiter().wait(pause)
            pause = min(pause * 2, _LAST_PAUSE)
        return None

    def _ask_once(self, topic: str, seconds: float) -> tuple[int | None, float]:
        """Return the answer, None without one, and for how long to try again."""
        try:
            count = self._kafka_handle.fetch_partition_count(topic, seconds)
        except ProducerClosedError:
            return None, 0.0
        except BrokerError as error:
            if error.code == error_codes.UNKNOWN_TOPIC_OR_PARTITION:
                return UNKNOWN, _CREATION
            return None, _LONGEST_WAIT if error.code in _TRANSIENT else 0.0
        # 0 is not an answer: the topic is just being created.
        return count or None, _LONGEST_WAIT

    def _answer(self, topic: str, count: int | None) -> None:
        """Cache an answer, and wake the tasks that wait for it."""
        if count is None:
            count, holds = self._known.get(topic, _NOTHING).partitions, _BRIEFLY
        else:
            holds = _FRESH if count > 0 else _BRIEFLY
        with self._lock:
            if topic not in self._known and len(self._known) >= _MAX_TOPICS:
                del self._known[next(iter(self._known))]
            self._known[topic] = _Known(count, self._now() + holds)
            answered = self._asking.pop(topic, None)
        if answered is not None:
            answered.notify_all()


class RoutedHandle(DeliveryHandle):
    """The handle of a message whose partition was chosen by its `partition_key`."""

    __slots__ = ("message",)

    #: The message in wire form, to route it once more. None after the message was
    #: delivered or routed once more: its payload must not live as long as the handle.
    message: Message | None

    def __init__(self, message: Message, reports: ReportQueue) -> None:
        # Without `super()`, by which a handle would cost half as much again.
        DeliveryHandle.__init__(self, message[0], message[7], reports)
        self.message = message

    def __call__(self, error: Any, message: Any) -> None:  # noqa: ANN401
        """Accept the report; as in `DeliveryHandle`, fill and append only."""
        if error is None:
            self.message = None
        DeliveryHandle.__call__(self, error, message)

    def _resolve(self) -> None:
        self.message = None
        super()._resolve()


class ReroutingClient(Protocol):
    """The client, as its rerouter needs it."""

    def send_again(self, message: Message, handle: DeliveryHandle) -> None:
        """Send a message by this client, or by its successor. May wait."""

    def on_interrupt(self) -> None:
        """Search for a message that an interrupted task may have lost."""


class Rerouter:
    """Sends messages of one client once more whose partition no longer exists.

    A topic that was deleted and created again may have fewer partitions. For up to 30 s
    `Router` then chooses partitions that librdkafka refuses, or reports as unknown.
    Such a message stays in flight, while a background task requests the new number and
    sends the message to its new partition.

    Args:
        router: Chooses partitions.
        client: The client.
        enabled: False for transactional producers: a failed message has failed its
            transaction, and if it was sent later it could become part of the next one.
    """

    def __init__(
        self,
        router: Router,
        client: ReroutingClient,
        *,
        enabled: bool,
    ) -> None:
        self._router = router
        self._client = client
        self._enabled = enabled
        # In the order of the failures: handle, message, and the function that makes its
        # failure final. Changed under the lock, which is held for a few instructions.
        self._taken: deque[tuple[DeliveryHandle, Message, Callable[[], None]]] = deque()
        self._running = False
        self._lock = _concurrency.new_lock()

    def __len__(self) -> int:
        return len(self._taken)

    def on_failure(self, handle: DeliveryHandle, code: int | None) -> bool:
        """Forget a number of partitions that a failed message shows to be out of date.

        Returns:
            Whether the message can be routed once more; see `take`.

        Args:
            handle: The handle of the message.
            code: The code of the error.
        """
        message = handle.message if isinstance(handle, RoutedHandle) else None
        partition = None if message is None else message.partition
        self._router.on_failed_message(code, handle.topic, partition)
        return (
            code == error_codes.UNKNOWN_PARTITION
            and message is not None
            and self._enabled
            and not self._router.stopped
        )

    def take(self, handle: DeliveryHandle, fail: Callable[[], None]) -> None:
        """Queue a failed message for which `on_failure` has returned True.

        Call `start` afterwards.

        Args:
            handle: The handle of the message. It must not be resolved meanwhile.
            fail: Makes the failure final, if the message can't be routed.
        """
        message: Any = None
        if isinstance(handle, RoutedHandle):
            message, handle.message = handle.message, None
        with self._lock:
            self._taken.append((handle, message, fail))

    def start(self) -> None:
        """Start the task, unless it is running or has nothing to do."""
        with self._lock:
            if self._running or not self._taken:
                return
            self._running = True
        try:
            _concurrency.spawn(self._run)
        except RuntimeError:  # the system has no more threads
            self._fail_all()
        except BaseException:  # a signal handler raised
            self._fail_all()
            raise

    def drop(self) -> list[tuple[Message, DeliveryHandle]]:
        """Remove and return the queued messages, in order."""
        with self._lock:
            taken, self._taken = self._taken, deque()
        return [(message, handle) for handle, message, _ in taken]

    def _run(self) -> None:
        try:
            while self._route_next():
                pass
        except BaseException:
            self._fail_all()
            self._client.on_interrupt()
            raise

    def _route_next(self) -> bool:
        """Route and send the first message; False if there is none."""
        with self._lock:
            if not self._taken:
                self._running = False
                return False
            first = self._taken[0]
        handle, message, fail = first
        try:
            routed = self._router.routed(message, {})
        except IllegalWaitError:
            routed = message
        with self._lock:
            if not self._taken or self._taken[0] is not first:
                return True  # removed by `drop`
            self._taken.popleft()
        if routed.partition == message.partition or self._router.stopped:
            fail()  # the router knows no other partition
        else:
            self._client.send_again(routed, handle)
        return True

    def _fail_all(self) -> None:
        # The task was interrupted, or could not start.
        with self._lock:
            self._running = False
            taken, self._taken = self._taken, deque()
        for _, _, fail in taken:
            fail()
