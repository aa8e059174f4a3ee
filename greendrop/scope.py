"""Delivery scopes: a block that waits for the messages that its task has sent in it.

A scope belongs to the greenlet or thread that entered it. It is found by the identity
of
that task and not by a context variable: greenlets and threads that are started in the
block may inherit its context, but their messages do not belong to the scope.
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
    from collections.abc import Iterable

    from typing_extensions import Self

    from greendrop.delivery import DeliveryHandle

#: Number of handles from which on those of delivered messages are dropped.
_MANY = 1_024


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
        Interrupts
        end the block without a wait: Ctrl-C, a killed greenlet, a `gevent.Timeout`.

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
