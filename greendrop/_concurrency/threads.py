"""Running functions in the background, and blocking calls on native threads.

`spawn` starts a background task of the kind that fits the calling thread.
`run_in_thread` keeps a blocking call off the hub, and `run_apart` protects a short one
from interruptions. When the interpreter is ending and starts no more threads, all of
them run the function in the calling thread.
"""

from __future__ import annotations

import contextlib
import os
import sys
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeAlias, TypeVar, cast

from greendrop import _wording
from greendrop._concurrency import native
from greendrop._concurrency.hub import current_hub, hub_is_dead, in_hub
from greendrop._concurrency.waiters import new_waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gevent import Greenlet

    from greendrop._concurrency.waiters import Waiter

_P = ParamSpec("_P")
_R = TypeVar("_R")
#: The result of a call, once it has ended, or its exception.
_Outcome: TypeAlias = "tuple[_R, None] | tuple[None, BaseException]"

# --- background tasks ---------------------------------------------------------------


def start_thread(
    function: Callable[..., object], *args: object, **kwargs: object
) -> bool:
    """Start a native thread; return False if the interpreter is ending.

    A hub that the function makes there is destroyed when the function ends: listeners
    that call gevent's patched functions make one, and its descriptors would stay open.
    Python 3.12 starts no threads once the main thread has ended, not even for exit
    handlers.

    Raises:
        RuntimeError: The system has no more threads.
    """

    def work() -> None:
        try:
            function(*args, **kwargs)
        finally:
            _destroy_own_hub()

    try:
        native.start_new_thread(work, ())
    except RuntimeError as error:
        if "shutdown" not in str(error):
            raise
        return False
    return True


class BackgroundTask:
    """A function in a greenlet where there is a hub, else in a thread of its own.

    Nothing runs before `start`. So a caller can first note which task does a piece of
    work: if the start is interrupted, the note names a task that is not alive.

    A signal handler may raise in the greenlet, also before the function has done
    anything. Then the function is called again, in another greenlet, to do the rest of
    its work. Signal handlers don't run in threads.

    Args:
        function: Is called in the task, and again after an interruption: each call does
            the rest of the work, if there is any.
        args: Its arguments.
        kwargs: Its keyword arguments.
    """

    __slots__ = ("_call", "_greenlet", "_hub", "_runs_in_thread")

    def __init__(
        self, function: Callable[..., object], *args: object, **kwargs: object
    ) -> None:
        self._hub = current_hub()
        self._call = partial(function, *args, **kwargs)
        self._greenlet: Greenlet[..., object] | None = None
        self._runs_in_thread = False

    @property
    def is_alive(self) -> bool:
        """Whether the function is still to be called, or has not ended.

        False before `start`, after an exception, and where the hub has died.
        """
        if self._greenlet is None or self._hub is None:
            return self._runs_in_thread
        return bool(self._greenlet) and not hub_is_dead(self._hub)

    def start(self) -> None:
        """Start the task. Call it once.

        Raises:
            RuntimeError: The system has no more threads.
        """
        if self._hub is not None:
            self._start_greenlet()
            return
        try:
            self._runs_in_thread = True
            started = start_thread(self._run_in_thread)
        except BaseException:
            self._runs_in_thread = False
            raise
        if not started:
            self._run_in_thread()

    def _start_greenlet(self) -> None:
        self._greenlet = greenlet = sys.modules["gevent"].Greenlet(self._call)
        greenlet.rawlink(self._on_end)
        greenlet.start()

    def _on_end(self, greenlet: Greenlet[..., object]) -> None:
        # gevent counts a greenlet that was killed as successful.
        if not isinstance(greenlet.exception, (Exception, NoneType)):
            self._start_greenlet()

    def _run_in_thread(self) -> None:
        try:
            self._call()
        finally:
            self._runs_in_thread = False


def spawn(function: Callable[..., object], *args: object, **kwargs: object) -> None:
    """Call a function in a new greenlet where there is a hub, else in a new thread.

    After an interruption it is called again; see `BackgroundTask`.
    """
    BackgroundTask(function, *args, **kwargs).start()


def spawn_thread(function: Callable[..., object], *args: object) -> None:
    """Call a function that may block on a new native thread."""
    if not start_thread(function, *args):
        function(*args)


def _destroy_own_hub() -> None:
    local = sys.modules.get("gevent._hub_local")
    hub = None if local is None else local.get_hub_if_exists()
    if hub is not None:
        hub.destroy(destroy_loop=True)


# --- blocking calls -----------------------------------------------------------------


class ThreadCall(Generic[_R]):
    """A blocking call on a native thread of its own, started by the constructor.

    A `wait` that was interrupted can be repeated: the call goes on, and its result is
    kept.

    Args:
        function: Has to end by itself.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Raises:
        RuntimeError: The system has no more threads.
    """

    __slots__ = ("_outcome", "_waiter")

    def __init__(
        self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> None:
        self._outcome: list[_Outcome[_R]] = []
        self._waiter: Waiter | None = None

        def work() -> None:
            try:
                self._outcome.append((function(*args, **kwargs), None))
            except BaseException as error:  # noqa: BLE001 - raised again in the caller
                self._outcome.append((None, error))
            waiter = self._waiter
            if waiter is not None:
                waiter.wake()

        if not start_thread(work):
            work()  # the interpreter is ending, so blocking the hub does no harm

    @property
    def ended(self) -> bool:
        """Whether the result is available."""
        return bool(self._outcome)

    def wait(self, seconds: float) -> _R:
        """Return the result, or raise the exception of the call; one task at a time.

        Raises:
            TimeoutError: The call did not end in time; it goes on in its thread.

        Blocking:
            Lets other greenlets run where the thread has a hub.
        """
        # Publish the waiter, then check for the outcome. The thread does the opposite:
        # it stores the outcome, then looks for a waiter. So no wake-up gets lost.
        self._waiter = waiter = new_waiter(is_short=True)
        if not self._outcome and not waiter.wait(seconds) and not self._outcome:
            text = f"a native call did not end within {_wording.seconds(seconds)}"
            raise TimeoutError(text)
        return _result(self._outcome[0])


def _result(outcome: _Outcome[_R]) -> _R:
    value, error = outcome
    if error is not None:
        raise error
    return cast("_R", value)


def run_in_thread(
    seconds: float, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
) -> _R | None:
    """Run a blocking call off the hub, and return its result.

    Without a hub the call runs in the calling thread. In the hub itself, where waiting
    is illegal, the call is started and None is returned at once.

    Args:
        seconds: Maximum wait for the result.
        function: Has to end by itself within about `seconds`.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Raises:
        TimeoutError: The call did not end in time; it goes on in its thread.

    Blocking:
        Lets other greenlets run where the thread has a hub.
    """
    if current_hub() is None:
        return function(*args, **kwargs)
    call = ThreadCall(function, *args, **kwargs)
    return None if in_hub() else call.wait(seconds)


def run_apart(
    seconds: float, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
) -> _R:
    """Run a function to its end, whatever interrupts the caller, and return its result.

    The function runs on a native thread. Signal handlers run in the main thread only:
    there they may raise while the caller waits, and the function goes on to its end all
    the same. So its work is done as a whole or not at all.

    Args:
        seconds: Maximum wait for the result.
        function: Has to end by itself. It must not need a lock that the caller may
            hold.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Raises:
        TimeoutError: The function did not end in time; it goes on in its thread.
        RuntimeError: The system has no more threads.

    Blocking:
        Blocks the thread, and its hub.
    """
    outcome: list[_Outcome[_R]] = []
    running = native.allocate_lock()
    running.acquire()

    def work() -> None:
        try:
            outcome.append((function(*args, **kwargs), None))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller
            outcome.append((None, error))
        running.release()

    if not start_thread(work):
        work()
    if not running.acquire(timeout=seconds):
        raise TimeoutError
    return _result(outcome.pop())


# --- scheduling ---------------------------------------------------------------------


@contextlib.contextmanager
def batch_scheduling() -> Iterator[None]:
    """Start native threads inside that don't preempt other threads when they wake.

    Threads inherit Linux's SCHED_BATCH: the same share of the processor, no privilege
    needed. librdkafka wakes a thread at the first message that is enqueued. A thread
    that took over the processor at once would send that message alone, and so the next
    ones, at ten times the cost. With SCHED_BATCH it runs when the hub sleeps or another
    processor is free. See docs/decisions/0005.

    Does nothing on other systems, where the system forbids it, or if the program has
    set a policy of its own.
    """
    try:
        changed = os.sched_getscheduler(0) == os.SCHED_OTHER
        if changed:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError):
        changed = False
    try:
        yield
    finally:
        if changed:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
