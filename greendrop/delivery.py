"""Delivery handles, reports and scopes: the outcome of messages.

A `DeliveryHandle` is filled inside librdkafka's poll, and resolved by the poller after
the listeners have run. Any greenlet and any thread may wait for it. A `DeliveryScope`
is a block that waits at its end for the messages that its task has sent in it.
"""

from __future__ import annotations

import copy
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from greendrop import _concurrency, _pickling, _wording
from greendrop._hints import handle_attribute_error
from greendrop._logging.log import ERROR, Log
from greendrop.errors import (
    SENDING_ERRORS,
    DeliveryError,
    DeliveryTimeoutError,
    GreendropError,
    IllegalWaitError,
    MessagePurgedError,
    ProduceError,
    ProduceManyError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from typing_extensions import Self

__all__ = ["DeliveryHandle", "DeliveryReport", "DeliveryScope"]

_log = Log("greendrop")

#: Number of handles in a scope from which on those of delivered messages are dropped.
_MANY = 1_024


class DeliveryReport(NamedTuple):
    """The report of a message that the broker has stored.

    Attributes:
        topic: Its topic.
        partition: Its partition.
        offset: Its offset there; None if the broker sends none (`acks=0`).
        timestamp: Milliseconds since 1970, as stored.
        latency: Seconds from librdkafka's queue to the acknowledgement.
        label: The message's label.
    """

    topic: str
    partition: int
    offset: int | None
    timestamp: int
    latency: float
    label: object


# Making a NamedTuple by its own constructor costs twice as much.
_new_report = tuple.__new__
# The values of a `DeliveryReport`, of the handle of a delivered message.
_report_fields = attrgetter(
    "topic", "_partition", "_offset", "_timestamp", "_latency", "label"
)


class ReportSource(Protocol):
    """The poll loop that brings the delivery reports, as handles need it."""

    def new_waiter(self, is_done: Callable[[], bool]) -> _concurrency.Waiter:
        """Return a waiter for the calling task, which waits until `is_done`."""

    def ensure_progress(self) -> None:
        """Keep a poller running while the caller waits for long."""

    def last_broker_error(self) -> str | None:
        """Return the last error of a broker since the last delivered message."""

    def on_limit(self) -> None:
        """Handle a queue that has reached `limit`; called inside librdkafka's poll."""

    def on_callback_error(self, error: BaseException) -> None:
        """Log and report that a function of `add_done_callback` raised."""


class ReportQueue(deque["DeliveryHandle"]):
    """Handles with a delivery report that the poller has not dispatched yet."""

    #: From this length on a callback calls `source.on_limit`. It is 0 while the poller
    #: is not polling, so that a report that another thread brings wakes the poller.
    limit = 0

    def __init__(self, source: ReportSource, max_wait_timeout: float = 180.0) -> None:
        super().__init__()
        self.source = source
        #: Seconds that a handle waits when its caller sets no timeout.
        self.max_wait_timeout = max_wait_timeout


def _check_callable(function: object) -> None:
    if not callable(function):
        kind = type(function).__name__
        raise TypeError(f"a callback needs to be callable, not {kind}")


class _DoneCallback:
    """A function of `add_done_callback`, among the waiters of its handle."""

    __slots__ = ("_function", "_source")

    def __init__(
        self,
        function: Callable[[DeliveryHandle], object],
        source: ReportSource | None,
    ) -> None:
        # A list: taking the function out is atomic, so that only one caller gets it.
        self._function = [function]
        self._source = source

    def wake(self) -> None:
        """Do nothing: `_resolve` calls the function after it has woken all waiters."""

    def call(
        self, handle: DeliveryHandle, swallow: type[BaseException] = Exception
    ) -> None:
        """Call the function, unless another thread has or does."""
        try:
            function = self._function.pop()
        except IndexError:
            return
        try:
            function(handle)
        except (KeyboardInterrupt, SystemExit):
            raise
        except swallow as error:
            if self._source is None:
                _log.write(
                    ERROR,
                    "listener.error",
                    exc_info=error,
                    listener_of="add_done_callback",
                )
            else:
                self._source.on_callback_error(error)


_Waiter: TypeAlias = (
    "_concurrency.Waiter | _concurrency.EventLoopWaiter | _concurrency.RawLink"
    " | _DoneCallback"
)
_Chain: TypeAlias = "tuple[_Waiter, _Chain] | None"

# Swapping a chain of waiters takes this lock, for a few instructions without a call.
_swap = _concurrency.new_lock()


def refused_handle(topic: str, label: object, error: DeliveryError) -> DeliveryHandle:
    """Make the handle of a message that librdkafka has refused; it is done."""
    return _unpickled({"topic": topic, "label": label, "_error": error})


def _unpickled(state: dict[str, object]) -> DeliveryHandle:
    handle = DeliveryHandle.__new__(DeliveryHandle)
    handle._reports = None
    handle._waiters = None
    for name, value in state.items():
        setattr(handle, name, value)
    return handle


class DeliveryHandle:
    """One message in flight, and later its outcome.

    Its methods are those of a `concurrent.futures.Future`, but `done` is a property.
    `gevent.wait([...])` and `gevent.iwait` accept handles, too.
    """

    __slots__ = (
        "_error",
        "_latency",
        "_offset",
        "_partition",
        "_reports",
        "_timestamp",
        "_waiters",
        "label",
        "topic",
    )

    _always_pickles = True
    #: The message's topic.
    topic: str
    #: The message's label, whatever the caller made it.
    label: object

    def __init__(self, topic: str, label: object, reports: ReportQueue) -> None:
        self.topic = topic
        self.label = label
        # None once the outcome is known; `_error` is set when the report has arrived.
        self._reports: ReportQueue | None = reports
        self._error: Any
        self._waiters: _Chain = None

    def __call__(self, error: Any, message: Any) -> None:  # noqa: ANN401
        """Record the report; called by librdkafka, inside its poll.

        Only fills and appends: a greenlet switch, a lock or an exception here can abort
        the process.
        """
        reports: Any = self._reports
        if reports is None:
            return  # it was reported as lost before
        self._error = error
        self._partition = message.partition()
        if error is None:
            self._offset = message.offset()
            self._timestamp = message.timestamp()[1]
            self._latency = message.latency()
        # Append first, then read the limit: the poller sets the limit to 0 first and
        # then looks into the queue, so one of the two sees the other.
        reports.append(self)
        if len(reports) >= reports.limit:
            reports.source.on_limit()

    @property
    def done(self) -> bool:
        """Whether the outcome is known. Never blocks."""
        return self._reports is None

    @property
    def report(self) -> DeliveryReport | None:
        """The report of a delivered message, else None. Never blocks."""
        return self._report() if self._reports is None and self._error is None else None

    def _report(self) -> DeliveryReport:
        return _new_report(DeliveryReport, _report_fields(self))

    @property
    def error(self) -> ProduceError | None:
        """Why the message was not delivered, else None. Never blocks."""
        error: ProduceError | None = self._error if self.done else None
        return error

    @property
    def refusal(self) -> DeliveryError | None:
        """Why librdkafka did not accept the message, if it did not. Never blocks.

        Known before the listeners are called and the handle is `done`.
        """
        error = getattr(self, "_error", None)
        refused = isinstance(error, DeliveryError) and not hasattr(self, "_partition")
        return error if refused and not isinstance(error, MessagePurgedError) else None

    def wait(self, timeout: float | None = None) -> DeliveryReport:
        """Wait for the delivery report of this message.

        Args:
            timeout: Seconds, finite. None means the producer's `max_wait_timeout`.

        Raises:
            DeliveryError: The message was not delivered and will not be.
            DeliveryTimeoutError: No report yet. The message may still be delivered,
                so sending it again may deliver it twice.
            ReportLostError: There will be no report. The message may have been
                delivered.
            IllegalWaitError: In the hub itself, or in a listener of the same
                producer, where the wait could never end.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread. May be called by many at once, and again.
        """
        reports = self._reports
        if reports is not None:
            timeout = reports.max_wait_timeout if timeout is None else timeout
            if not 0 <= timeout <= _concurrency.DAY:
                _concurrency.check_timeout(timeout)
            try:
                waiter = reports.source.new_waiter(self.ready)
            except IllegalWaitError as illegal:
                text = f"{illegal}; the message is in flight all the same"
                raise IllegalWaitError(text, "unknown") from illegal.__cause__
            deadline = _concurrency.monotonic() + timeout
            left = timeout
            with _swap:
                self._waiters = (waiter, self._waiters)
            try:
                while self._reports is not None:
                    if left <= 0:
                        raise self._timed_out(reports.source, timeout)
                    woken = waiter.wait_slice(left)
                    if not woken and self._reports is not None:
                        reports.source.ensure_progress()
                    left = deadline - _concurrency.monotonic()
            except KeyboardInterrupt as interrupt:
                _wording.add_note(interrupt, self._waited_for(reports.source))
                raise
            finally:
                if self._reports is not None:
                    self._remove(waiter)
        if self._error is not None:
            # A copy: many may wait for one message, and each raises its own.
            error = copy.copy(self._error)
            raise error from error.__cause__
        # As `_report`, inlined: each call costs every message.
        return _new_report(DeliveryReport, _report_fields(self))

    def __await__(self) -> Generator[Any, None, DeliveryReport]:
        """Wait for the delivery report in a coroutine of asyncio.

        As `wait` without a timeout, but the event loop goes on; `asyncio.wait_for` sets
        another one. A coroutine that is cancelled leaves the message in flight.

        Raises:
            RuntimeError: No asyncio event loop runs.
        """
        reports = self._reports
        if reports is not None:
            source, timeout = reports.source, reports.max_wait_timeout
            waiter = _concurrency.EventLoopWaiter(source, timeout)
            self._add(waiter)
            try:
                while self._reports is not None:
                    if _concurrency.monotonic() >= waiter.deadline:
                        raise self._timed_out(source, timeout)
                    woken = yield from waiter.wait_slice()
                    if not woken and self._reports is not None:
                        source.ensure_progress()
            finally:
                waiter.end()
                if self._reports is not None:
                    self._remove(waiter)
        return self.wait(0.0)

    def result(self, timeout: float | None = None) -> DeliveryReport:
        """Wait for the delivery report of this message; another name of `wait`."""
        return self.wait(timeout)

    def exception(self, timeout: float | None = None) -> ProduceError | None:
        """Wait for the outcome, and return why the message was not delivered, or None.

        Args:
            timeout: As for `wait`.

        Raises:
            DeliveryTimeoutError, IllegalWaitError: As for `wait`.

        Blocking:
            As `wait`.
        """
        try:
            self.wait(timeout)
        except ProduceError:
            if not self.done:
                raise
        return self.error

    def add_done_callback(self, function: Callable[[DeliveryHandle], object]) -> None:
        """Have a function called with this handle when the outcome is known.

        It runs where listeners run: in the poller of the producer, where it can't wait
        for messages of this producer. Functions are called in the order in which they
        were added. If the outcome is known, the function is called here at once. An
        exception of the function is logged and reported as that of a listener.

        Raises:
            TypeError: The function can't be called.
        """
        _check_callable(function)
        reports = self._reports
        if reports is None:
            _DoneCallback(function, None).call(self)
            return
        callback = _DoneCallback(function, reports.source)
        self._add(callback)
        if self.done:
            callback.call(self)

    def _waited_for(self, source: ReportSource) -> str:
        text = (
            f"interrupted while waiting for the delivery of a message to {self.topic!r}"
        )
        reason = source.last_broker_error()
        return text if reason is None else f"{text}; last broker error: {reason}"

    def _timed_out(self, source: ReportSource, timeout: float) -> DeliveryTimeoutError:
        reason = source.last_broker_error()
        text = (
            f"no delivery report for a message to {self.topic!r} within"
            f" {_wording.seconds(timeout)};"
            " it may still be delivered"
        )
        if reason is not None:
            text += f"; last broker error: {reason}"
        return DeliveryTimeoutError(text)

    @property
    def _is_filled(self) -> bool:
        """Whether the report is in, completely: one that was interrupted is not."""
        if not hasattr(self, "_error"):
            return False
        last = "_latency" if self._error is None else "_partition"
        return hasattr(self, last) or isinstance(self._error, ProduceError)

    def _resolve(self) -> None:
        """Publish the outcome and wake all waiters; called by the poller only.

        When interrupted it can be called again.
        """
        # Done first, then the waiters are read. A caller that adds a waiter in between
        # checks afterwards whether the handle is done, and doesn't wait.
        self._reports = None
        chain = self._waiters
        callbacks: list[_DoneCallback] = []  # the last one first
        while chain is not None:
            if type(chain[0]) is _DoneCallback:
                callbacks.append(chain[0])
            chain[0].wake()
            chain = chain[1]
        # A `gevent.Timeout` is not meant for the poller's greenlet.
        for callback in reversed(callbacks):
            callback.call(self, swallow=BaseException)
        self._waiters = None

    def _fail(self, error: ProduceError) -> None:
        """Fail the message where librdkafka reports nothing."""
        self._error = error
        reports: Any = self._reports
        if reports is not None:
            reports.append(self)

    def rawlink(self, callback: Callable[[DeliveryHandle], object]) -> None:
        """Call a function in this hub when the outcome is known (for gevent)."""
        waiter = _concurrency.link(callback, self)
        self._add(waiter)
        if self.done:
            self._remove(waiter)
            waiter.wake()

    def unlink(self, callback: Callable[[DeliveryHandle], object]) -> None:
        """Undo `rawlink` (for gevent)."""
        chain = self._waiters
        while chain is not None:
            waiter, chain = chain
            if isinstance(waiter, _concurrency.RawLink) and waiter.callback == callback:
                self._remove(waiter)
                waiter.cancel()

    def ready(self) -> bool:
        """Same as `done` (for gevent)."""
        return self._reports is None

    def _add(self, waiter: _Waiter) -> None:
        with _swap:
            self._waiters = (waiter, self._waiters)

    def _remove(self, unwanted: _Waiter) -> None:
        while True:
            before = self._waiters
            after: _Chain = before
            kept: list[_Waiter] = []
            while after is not None:
                if after[0] is not unwanted:
                    kept.append(after[0])
                after = after[1]
            for waiter in reversed(kept):
                after = (waiter, after)
            with _swap:
                if self._waiters is before:
                    self._waiters = after
                    return

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle what is known so far; a pending handle can't be waited for elsewhere.

        Errors that carry handles travel: as results of tasks, for example.
        """
        state: dict[str, object] = {
            name: getattr(self, name)
            for name in DeliveryHandle.__slots__
            if name not in ("_reports", "_waiters") and hasattr(self, name)
        }
        if not self.done:
            state["_error"] = DeliveryTimeoutError(
                f"no delivery report for a message to {self.topic!r} when its handle"
                " was pickled; it may still be delivered"
            )
        state["label"] = _pickling.picklable(self.label)
        return _unpickled, (state,)

    if not TYPE_CHECKING:  # else every attribute would exist

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - raises
            """Raise AttributeError, with a hint for names of other clients' futures."""
            raise handle_attribute_error(self, name)

    def __repr__(self) -> str:
        if not self.done:
            state = "pending"
        elif self._error is not None:
            state = "failed"
        else:
            state = f"delivered to {self._partition}@{self._offset}"
        return f"<DeliveryHandle {self.topic!r} {state} label={self.label!r}>"


# --- delivery scopes ---------------------------------------------------------------


class ScopeOwner(Protocol):
    """The core of a producer, as its delivery scopes need it."""

    #: The open scopes.
    scopes: ScopeRegistry

    def check_can_wait(self) -> None:
        """Raise `IllegalWaitError` if the caller can't wait."""


class DeliveryScope(_pickling.PerProcess):
    """Collects the messages that are sent in a block, and waits for them at its end.

    Made by `Producer.scope`, and entered once. It collects the messages of the greenlet
    or thread that entered it, by all verbs of the producer.

    A scope is found by the identity of that task and not by a context variable:
    greenlets and threads that are started in the block may inherit its context, but
    their messages do not belong to the scope.
    """

    def __init__(self, owner: ScopeOwner, timeout: float) -> None:
        self._owner = owner
        self._timeout = timeout
        self._task: object = None
        # In the order of sending. A dictionary, since other tasks may wait meanwhile:
        # each operation on it is atomic.
        self._handles: dict[DeliveryHandle, None] = {}
        self._many = _MANY

    def __enter__(self) -> Self:
        """Start collecting.

        Raises:
            IllegalWaitError: In the hub itself, or in a listener of this producer,
                where the wait at the end of the block could never end.
            ProducerUsedInParentProcessError: See `Producer.reset`.
            RuntimeError: The scope was entered before.
        """
        if self._task is not None:
            text = "a scope is entered once; producer.scope() makes a new one"
            raise RuntimeError(text)
        self._owner.check_can_wait()
        self._task = _concurrency.current_task()
        self._owner.scopes.enter(self._task, self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        """Wait for the messages that were sent in the block.

        An exception from the block is raised after the wait, and no other one.
        Interrupts end the block without a wait: Ctrl-C, a killed greenlet, a
        `gevent.Timeout`.

        Raises:
            ProduceManyError: As `wait`.

        Blocking:
            As `wait`.
        """
        # Another task may leave the block, if it is in a generator that was forgotten.
        self._owner.scopes.leave(self._task, self)
        try:
            if error is None or isinstance(error, Exception):
                self.wait()
        except GreendropError:
            if error is None:
                raise
        finally:
            self._handles.clear()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all messages that were sent so far are delivered.

        Each outcome is reported once: messages with a delivery report leave the scope.

        Args:
            timeout: Seconds to wait for all of them together; the timeout of the scope
                if omitted.

        Raises:
            ProduceManyError: Some messages were not delivered, or have no report yet;
                in that case the cause is a `DeliveryTimeoutError`, or others of
                `dispatched` are not done. `dispatched` has the handles in the order of
                sending; in a large scope many delivered ones are left out.
                `failed_index` is the index of the first one that was not delivered.
            IllegalWaitError: In the hub itself, or in a listener of this producer.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread.
        """
        if timeout is None:
            timeout = self._timeout
        _concurrency.check_timeout(timeout)
        handles = list(self._handles)
        late = wait_for_each(handles, timeout)
        failed: list[int] = []
        for index, handle in enumerate(handles):
            if handle.done:
                self._handles.pop(handle, None)
            if not _delivered(handle):
                failed.append(index)
        if failed:
            raise _failure(handles, failed, late)

    def add(self, handles: Iterable[DeliveryHandle]) -> None:
        """Add messages that were queued."""
        self._handles.update(dict.fromkeys(handles))
        if len(self._handles) >= self._many:
            for handle in list(self._handles):
                if _delivered(handle):
                    self._handles.pop(handle, None)
            # Next at twice as many: each handle is checked about twice in all.
            self._many = max(_MANY, 2 * len(self._handles))

    def __repr__(self) -> str:
        return f"<DeliveryScope {_wording.count(len(self._handles), 'message')}>"


class HandleSink(Protocol):
    """Receives the handles of the messages that one greenlet or thread sends."""

    def add(self, handles: Iterable[DeliveryHandle]) -> None:
        """Add messages that were queued."""


class ScopeRegistry(dict[object, "list[HandleSink]"]):
    """The open scopes of each greenlet or thread, by its `current_task`.

    Args:
        hooks: Holds each open scope: see `Core.hooks`.
    """

    def __init__(self, hooks: set[object]) -> None:
        super().__init__()
        self._hooks = hooks

    def enter(self, task: object, scope: HandleSink) -> None:
        """Open a scope for the messages that a task sends from now on."""
        self._hooks.add(scope)
        self.setdefault(task, []).append(scope)

    def leave(self, task: object, scope: HandleSink) -> None:
        """Close a scope, if it is open."""
        scopes = self.get(task, [])
        if scope in scopes:
            scopes.remove(scope)
            if not scopes:
                del self[task]
            self._hooks.discard(scope)

    def collect(self, handles: Iterable[DeliveryHandle]) -> None:
        """Add messages that were queued to the caller's scopes, inner and outer."""
        for each in tuple(self.get(_concurrency.current_task(), ())):
            each.add(handles)


def wait_for_each(
    handles: list[DeliveryHandle], timeout: float
) -> DeliveryTimeoutError | None:
    """Wait for all reports; return the error if they did not come in time."""
    deadline = _concurrency.Deadline(timeout)
    loop = _concurrency.CooperativeLoop()
    for index, handle in enumerate(handles):
        if not index % loop.CHUNK:
            loop.checkpoint()
        if handle.done:
            continue
        try:
            handle.wait(deadline.remaining())
        except DeliveryTimeoutError as late:
            return late
        except SENDING_ERRORS:
            continue  # the handle has it
    return None


def _delivered(handle: DeliveryHandle) -> bool:
    return handle._reports is None and handle._error is None


def _failure(
    handles: list[DeliveryHandle],
    failed: list[int],
    late: DeliveryTimeoutError | None,
) -> ProduceManyError:
    cause = handles[failed[0]].error or late
    text = (
        f"in this scope {_wording.count_were(len(failed), 'message')} not delivered, or"
        f" not yet; the first: {cause}"
    )
    error = ProduceManyError(text, dispatched=handles, failed_index=failed[0])
    error.__cause__ = cause
    return error
