"""Waiting for one's own messages: those that a greenlet or thread sends in a block.

A scope belongs to the greenlet or thread that entered it, by that one's identity and
not by a context variable: greenlets and threads that are started in the block may
inherit its context, but what they send is their own affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from greendrop import _concurrency, _pickling, _wording
from greendrop.errors import (
    SENDING_ERRORS,
    DeliveryTimeoutError,
    GreendropError,
    ProduceManyError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from typing_extensions import Self

    from greendrop.delivery import DeliveryHandle

#: From so many handles on, those of delivered messages are dropped.
_MANY = 1_024


class DeliveryScope(_pickling.PerProcess):
    """Collects the messages that are sent in a block, and waits for them at its end.

    Made by `Producer.scope`, and entered once. Only what the greenlet or thread that
    entered it sends counts, by whichever verb of the producer.
    """

    def __init__(
        self, open_scopes: ScopeRegistry, timeout: float, check: Callable[[], object]
    ) -> None:
        self._open_scopes = open_scopes
        self._timeout = timeout
        # Raises where nobody may wait.
        self._check = check
        self._task: object = None
        # In the order of sending. A dictionary, since others may wait meanwhile: each
        # single step with it is one step to all threads.
        self._handles: dict[DeliveryHandle, None] = {}
        self._many = _MANY

    def __enter__(self) -> Self:
        """Begin to collect.

        Raises:
            IllegalWaitError: In the hub itself, or in a listener of this producer,
                where the wait at the end of the block could never end.
            ProducerUsedInParentProcessError: See `Producer.reset`.
            RuntimeError: It was entered before.
        """
        if self._task is not None:
            text = "a scope is entered once; producer.scope() makes a new one"
            raise RuntimeError(text)
        self._check()
        self._task = _concurrency.current_task()
        self._open_scopes.enter(self._task, self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for what was sent in the block.

        An error of the block is the one that is seen, after the wait. What interrupts
        the block is not held up: Ctrl-C, the end of a greenlet, a `gevent.Timeout`.

        Raises:
            ProduceManyError: As `wait`.

        Blocking:
            As `wait`.
        """
        # Maybe by another one than entered it, as happens to forgotten generators.
        self._open_scopes.leave(self._task, self)
        try:
            if error is None or isinstance(error, Exception):
                self.wait()
        except GreendropError:
            if error is None:
                raise
        finally:
            self._handles.clear()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all that was sent so far is delivered.

        What this has told of, good or bad, it does not tell again. Messages without a
        verdict stay in the scope.

        Args:
            timeout: Seconds to wait for all of them together. None means the
                scope's own.

        Raises:
            ProduceManyError: Some were not delivered, or have no verdict yet: then
                the cause is a `DeliveryTimeoutError`, or others of `dispatched` are
                not done. `dispatched` has the handles in the order of sending, less
                many that were delivered, if the scope is large; `failed_index` is the
                place in it of the first that was not delivered.
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
        """Collect messages that were queued."""
        self._handles.update(dict.fromkeys(handles))
        if len(self._handles) >= self._many:
            for handle in list(self._handles):
                if _delivered(handle):
                    self._handles.pop(handle, None)
            # In twice as many, so that each is looked at twice or so in all.
            self._many = max(_MANY, 2 * len(self._handles))

    def __repr__(self) -> str:
        return f"<DeliveryScope {_wording.count(len(self._handles), 'message')}>"


class HandleSink(Protocol):
    """Who wants to know of what one greenlet or thread sends."""

    def add(self, handles: Iterable[DeliveryHandle]) -> None:
        """Take note of messages that were queued."""
        ...


class ScopeRegistry(dict[object, "list[HandleSink]"]):
    """The scopes, and the like, that are open in each greenlet or thread.

    By its `current_task`.
    """

    def enter(self, task: object, collector: HandleSink) -> None:
        """Have one collect what a task sends from now on."""
        self.setdefault(task, []).append(collector)

    def leave(self, task: object, collector: HandleSink) -> None:
        """Have it collect no more, if it does."""
        mine = self.get(task, [])
        if collector in mine:
            mine.remove(collector)
            if not mine:
                del self[task]

    def collect(self, handles: Iterable[DeliveryHandle]) -> None:
        """Add messages that were queued to the caller's scopes, inner and outer."""
        for each in tuple(self.get(_concurrency.current_task(), ())):
            each.add(handles)


def wait_for_each(
    handles: list[DeliveryHandle], timeout: float
) -> DeliveryTimeoutError | None:
    """Wait for all verdicts; give what is to say if they did not come in time."""
    deadline = _concurrency.Deadline(timeout)
    turns = _concurrency.CooperativeLoop()
    for index, handle in enumerate(handles):
        if not index % turns.CHUNK:
            turns.checkpoint()
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
