"""Where a message with a `partition_key` goes.

Chooses its partition, and knows for that how many partitions each topic has: it asks
the brokers, once for all who want to know, and remembers the answer. How one asks them,
and what a partitioner does, is passed in. `Rerouter` sends messages once more whose
partition turned out to be gone.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from greendrop import _concurrency
from greendrop._librdkafka import error_codes
from greendrop.delivery import DeliveryHandle
from greendrop.errors import BrokerError, IllegalWaitError, ProducerClosedError
from greendrop.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greendrop._librdkafka.partitioners import Partitioner
    from greendrop.delivery import ReportQueue

#: What is told as the number of partitions of a topic that nobody knows.
UNKNOWN = -1

#: Seconds for which an answer holds. Topics hardly ever get partitions, and never lose
#: any, unless they are made anew.
_FRESH = 30.0
#: Seconds for which "unknown" holds, and a known number that could not be renewed.
#: Short, since the topic may be created, or a broker come back, at any time.
_BRIEFLY = 1.0
#: Seconds after that in which a known number is still used, while a newer one is being
#: asked for. Together 5 minutes, librdkafka's own age of metadata.
_USABLE = 270.0

#: Seconds that one request to a broker may take.
_REQUEST = 2.0
#: Seconds that all tries together may take.
_LONGEST_WAIT = 5.0
#: Seconds between two tries: the first ones, doubled each time up to the last ones.
_FIRST_PAUSE, _LAST_PAUSE = 0.2, 1.0
#: Seconds after which a topic that brokers don't know is taken for unknown. A broker
#: that creates topics when they are asked for says "unknown" until it has: some 0.1 s.
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

# Making a NamedTuple by its own constructor costs twice as much.
_new_message = tuple.__new__


class _Known(NamedTuple):
    """How many partitions a topic has, and until when that holds."""

    partitions: int
    fresh_until: float


_NOTHING = _Known(UNKNOWN, -math.inf)


class Router:
    """Chooses partitions, for one client. Used from any greenlet and thread.

    Args:
        partitioner: None if keys don't matter.
        ask: Asks a broker for the number of partitions of a topic, for as many
            seconds, and blocks the thread meanwhile. Raises a `BrokerError`, or
            `ProducerClosedError`. Called on native threads only.
        new_waiter: Makes a waiter for the caller, or raises `IllegalWaitError`.
        now: The clock by which answers age.
    """

    def __init__(
        self,
        partitioner: Partitioner | None,
        ask: Callable[[str, float], int],
        new_waiter: Callable[[], _concurrency.Waiter],
        now: Callable[[], float] = _concurrency.monotonic,
    ) -> None:
        self._partitioner = partitioner
        self._ask = ask
        self._new_waiter = new_waiter
        self._now = now
        self._known: dict[str, _Known] = {}
        # Topics that are being asked for, and who waits for the answer, in the order in
        # which they came: in that order they are woken, and send. Changed under the
        # lock, which is held for a few instructions.
        self._asking: dict[str, dict[_concurrency.Waiter, None]] = {}
        self._lock = _concurrency.new_lock()
        self._stopped = False

    def routed(self, message: Message, counts: dict[str, int]) -> Message:
        """Give a message the partition that its `partition_key` leads to.

        Its own `partition` stays, if it has any, while nobody knows how many the topic
        has.

        Args:
            message: In wire form, with a `partition_key`. It is not changed.
            counts: Numbers of partitions by topic, which hold for all messages of a
                batch; what is missing is added.

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
        """Do so for all messages that have a `partition_key`; in order, the others too.

        Fewer messages than given mean that something is in the way of the next one;
        `routed` says what.

        Blocking:
            As `count`.
        """
        routed: list[Message] = []
        for message in messages:
            try:
                routed.append(
                    message if message[5] is None else self.routed(message, counts)
                )
            except IllegalWaitError:
                break
        return routed

    def count(self, topic: str) -> int:
        """Tell how many partitions a topic has; -1 if nobody knows.

        Raises:
            IllegalWaitError: It is not known yet, and the caller can't wait.

        Blocking:
            Lets other greenlets run; for some 5 s at most, and only while no answer is
            known, or the last one is older than 5 minutes. Returns early when stopped.
        """
        known = self._known.get(topic, _NOTHING)
        now = self._now()
        if now < known.fresh_until:
            return known.partitions
        self._start_asking(topic)
        if known.partitions > 0 and now < known.fresh_until + _USABLE:
            return known.partitions
        try:
            waiter = self._new_waiter()
        except IllegalWaitError as error:
            if known.partitions > 0:
                return known.partitions
            text = (
                f"{error}; how many partitions {topic!r} has is not known yet, so"
                " nothing was sent (call partition_count() before, elsewhere)"
            )
            raise IllegalWaitError(text) from error
        self._wait(topic, waiter)
        return self._known.get(topic, _NOTHING).partitions

    def on_failed_message(
        self, code: int | None, topic: str, partition: int | None
    ) -> None:
        """Forget a topic's number if a failed message shows that it is out of date.

        The next message asks for it. It is kept if it does not allow the partition of
        the failed message: then it has been renewed since that message was routed.

        Args:
            code: Of the error, if it has one.
            topic: The message's.
            partition: The one that its `partition_key` led to, if it has any.
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
        """Whether no more is asked, because the client closes."""
        return self._stopped

    @property
    def has_waiters(self) -> bool:
        """Whether anybody waits for an answer."""
        with self._lock:
            return any(self._asking.values())

    def stop(self) -> None:
        """Send away who waits, and ask no more; the owner lets nobody new come."""
        self._stopped = True
        with self._lock:
            waiters = [each for all_of in self._asking.values() for each in all_of]
        for waiter in waiters:
            waiter.wake()

    # --- asking -----------------------------------------------------------------

    def _start_asking(self, topic: str) -> None:
        with self._lock:
            if self._stopped or topic in self._asking:
                return
            self._asking[topic] = {}
        try:
            if not _concurrency.start_thread(self._find_out, topic):
                self._find_out(topic)  # the interpreter is ending
        except RuntimeError:  # the system has no more threads
            self._answer(topic, None)
            raise

    def _wait(self, topic: str, waiter: _concurrency.Waiter) -> None:
        with self._lock:
            waiters = self._asking.get(topic)
            if waiters is None:
                return  # answered meanwhile
            waiters[waiter] = None
        try:
            if not (self._stopped or waiter.wait(_LONGEST_WAIT + _REQUEST)):
                # Nobody asks: a signal handler has raised before the thread was there.
                self._answer(topic, None)
        finally:
            waiters.pop(waiter, None)

    def _find_out(self, topic: str) -> None:
        # On a thread of its own, and not on that of one who wants to know: that one may
        # be killed, or run out of time, while others go on waiting for the same.
        count = None
        try:
            count = self._ask_until_told(topic)
        finally:
            self._answer(topic, count)

    def _ask_until_told(self, topic: str) -> int | None:
        """Give the brokers' answer, None if there was none; on a native thread."""
        began = _concurrency.monotonic()
        pause = _FIRST_PAUSE
        while not self._stopped:
            left = began + _LONGEST_WAIT - _concurrency.monotonic()
            seconds = min(max(left, _FIRST_PAUSE), _REQUEST)
            count, patience = self._ask_once(topic, seconds)
            if count is not None and count > 0:
                return count
            if _concurrency.monotonic() + pause >= began + patience:
                return count
            _concurrency.ThreadWaiter().wait(pause)
            pause = min(pause * 2, _LAST_PAUSE)
        return None

    def _ask_once(self, topic: str, seconds: float) -> tuple[int | None, float]:
        """Give the answer, None if there was none, and how long to try for a better."""
        try:
            count = self._ask(topic, seconds)
        except ProducerClosedError:
            return None, 0.0
        except BrokerError as error:
            if error.code == error_codes.UNKNOWN_TOPIC_OR_PARTITION:
                return UNKNOWN, _CREATION
            return None, _LONGEST_WAIT if error.code in _TRANSIENT else 0.0
        # 0 is no answer: the topic is just being created.
        return count or None, _LONGEST_WAIT

    def _answer(self, topic: str, count: int | None) -> None:
        """Remember an answer, and wake who waits for it."""
        if count is None:
            count, holds = self._known.get(topic, _NOTHING).partitions, _BRIEFLY
        else:
            holds = _FRESH if count > 0 else _BRIEFLY
        with self._lock:
            if topic not in self._known and len(self._known) >= _MAX_TOPICS:
                del self._known[next(iter(self._known))]
            self._known[topic] = _Known(count, self._now() + holds)
            waiters = list(self._asking.pop(topic, ()))
        for waiter in waiters:
            waiter.wake()


class RoutedHandle(DeliveryHandle):
    """The handle of a message whose partition was chosen by its `partition_key`."""

    __slots__ = ("message",)

    #: The message in wire form, to route it once more. None once it has been delivered
    #: or routed once more: its payload must not live as long as the handle.
    message: Message | None

    def __init__(self, message: Message, reports: ReportQueue) -> None:
        # Called by its name: `super()` makes a handle half as expensive again.
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


class Rerouter:
    """Routes messages of one client once more whose partition is gone.

    A topic that is recreated may have fewer partitions. For up to 30 s `Router` then
    leads messages to partitions that librdkafka refuses, or reports as unknown. Such a
    message stays in flight, and a task of its own asks brokers for the new number and
    sends it to its new partition.

    Args:
        router: Chooses partitions.
        send: Hands a message to librdkafka, or to a client that takes over. May wait.
            Called in the task.
        on_interrupt: Called when an exception has ended the task, and may have lost a
            message between two steps of it.
        enabled: False in a transaction: a message of it that has failed has failed the
            transaction, and one that is sent later could get into the next one.
    """

    def __init__(
        self,
        router: Router,
        send: Callable[[Message, DeliveryHandle], None],
        on_interrupt: Callable[[], None],
        *,
        enabled: bool,
    ) -> None:
        self._router = router
        self._send = send
        self._on_interrupt = on_interrupt
        self._enabled = enabled
        # In the order of the failures: handle, message, and what makes its failure
        # final. Changed under the lock, which is held for a few instructions.
        self._taken: deque[tuple[DeliveryHandle, Message, Callable[[], None]]] = deque()
        self._running = False
        self._lock = _concurrency.new_lock()

    def __len__(self) -> int:
        return len(self._taken)

    def on_failure(self, handle: DeliveryHandle, code: int | None) -> bool:
        """Have the router forget what a failed message shows to be out of date.

        Returns:
            Whether the message is one to be routed once more; see `take`.

        Args:
            handle: The message's.
            code: Of the error.
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

    def take(self, handle: DeliveryHandle, give_back: Callable[[], None]) -> None:
        """Take over a message that failed, of which `on_failure` has returned True.

        Call `start` afterwards.

        Args:
            handle: The message's. It must not be resolved meanwhile.
            give_back: Makes the failure final, if the message can't be routed.
        """
        message: Any = None
        if isinstance(handle, RoutedHandle):
            message, handle.message = handle.message, None
        with self._lock:
            self._taken.append((handle, message, give_back))

    def start(self) -> None:
        """Start the task, unless it is running or has nothing to do."""
        with self._lock:
            if self._running or not self._taken:
                return
            self._running = True
        try:
            _concurrency.spawn(self._run)
        except RuntimeError:  # the system has no more threads
            self._give_all_back()
        except BaseException:  # a signal handler raised
            self._give_all_back()
            raise

    def drop(self) -> list[tuple[Message, DeliveryHandle]]:
        """Give up what was taken and not sent yet, in order."""
        with self._lock:
            taken, self._taken = self._taken, deque()
        return [(message, handle) for handle, message, _ in taken]

    def _run(self) -> None:
        try:
            while self._route_next():
                pass
        except BaseException:
            self._give_all_back()
            self._on_interrupt()
            raise

    def _route_next(self) -> bool:
        """Route and send the first message; False if there is none."""
        with self._lock:
            if not self._taken:
                self._running = False
                return False
            first = self._taken[0]
        handle, message, release = first
        try:
            routed = self._router.routed(message, {})
        except IllegalWaitError:
            routed = message
        with self._lock:
            if not self._taken or self._taken[0] is not first:
                return True  # dropped meanwhile
            self._taken.popleft()
        if routed.partition == message.partition or self._router.stopped:
            release()  # nothing better is known
        else:
            self._send(routed, handle)
        return True

    def _give_all_back(self) -> None:
        # The task was interrupted, or could not start.
        with self._lock:
            self._running = False
            taken, self._taken = self._taken, deque()
        for _, _, release in taken:
            release()
