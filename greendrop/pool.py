"""Several producers behind one `with`: who has which, and who waits for one.

One task has a producer at a time, and its slot keeps its number whatever producer is in
it. Knows nothing of how messages go.
"""

from __future__ import annotations

import inspect
import os
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

from greendrop import _concurrency, events
from greendrop._logging.log import ERROR, Log
from greendrop.config.placeholders import current_slot
from greendrop.errors import (
    MessagesAbandonedError,
    PoolClosedError,
    PoolNotConfiguredError,
    PoolTimeoutError,
    ProducerUsedInParentProcessError,
)
from greendrop.producer import Producer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from greendrop.transaction import Transaction

    Factory: TypeAlias = Callable[[int], Producer] | Callable[[], Producer]

_log = Log("greendrop")


class PoolStats(NamedTuple):
    """How a pool is used at a moment."""

    #: Slots.
    size: int
    #: Slots that nobody has, whether a producer was made for them or not.
    available: int
    #: Tasks that wait for a slot.
    waiting: int


class ProducerPool:
    """Gives each task that asks a producer of its own, for a while.

    Constructing it opens nothing and makes no producer, so it may be made at module
    level and before a fork. Use it as a context manager, or call `close`.

    Args:
        factory: Makes a producer. It is given the number of the slot, 1 to `size`, if
            it takes a positional argument. It is called when a slot is given out that
            has no producer, or one that was closed.
        size: How many producers there are at most.
        timeout: Seconds that `producer` waits for a free slot.

    Raises:
        TypeError: `factory` can't be called so.
        ValueError: `size` or `timeout` is none.
    """

    def __init__(
        self, factory: Factory, *, size: int = 5, timeout: float = 5.0
    ) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size needs to be a whole number above 0, not {size!r}")
        _concurrency.check_timeout(timeout)
        self._make = _taking_slot(factory)
        self._timeout = timeout
        self._slots = [_Slot(number) for number in range(1, size + 1)]
        self._generation = 0
        self._closed = False
        # How to close what comes back too late: timeout, and whether by force.
        self._ending: tuple[float | None, bool] = (None, False)
        self._start_over()
        self._tell("created", size=self.size, timeout=timeout)

    def _start_over(self) -> None:
        # Held over code that can't switch greenlets only.
        self._lock = _concurrency.new_lock()
        # A stack: what was used last is used next, so that others may stay idle.
        self._idle = self._slots[::-1]
        self._queue: deque[_Checkout] = deque()
        self._checkouts: dict[object, _Checkout] = {}
        self._pid: int | None = None

    # --- use ---------------------------------------------------------------------

    @contextmanager
    def producer(self, timeout: float | None = None) -> Iterator[Producer]:
        """Have a producer for the length of a `with` block.

        No other task has it meanwhile. A task is a greenlet, or a thread where there
        is no hub. A `with` inside another one of the same task gives the same producer.

        Args:
            timeout: Seconds to wait if all are in use; None means the pool's own.

        Raises:
            PoolTimeoutError: None became free in time.
            PoolClosedError: The pool is closed, or was while this one waited.
            ProducerUsedInParentProcessError: See `reset`.
            IllegalWaitError: All are in use, and the hub itself may not wait.
            TypeError: The factory gave no producer. What it raises comes as it is.

        Blocking:
            While all are in use, first come, first served: lets other greenlets run
            where the thread has a hub, else blocks the thread. Leaving the block
            never waits: a producer that is to be closed is closed in the background.
        """
        if timeout is None:
            timeout = self._timeout
        else:
            _concurrency.check_timeout(timeout)
        self._use()
        task = _concurrency.current_task()
        checkout = self._checkouts.get(task) or _Checkout(task)
        checkout.depth += 1
        try:
            producer = checkout.producer
            if producer is None:
                producer = self._check_out(checkout, timeout)
            yield producer
        finally:
            checkout.depth -= 1
            if not checkout.depth:
                self._check_in(checkout)

    @contextmanager
    def transaction(
        self, timeout: float | None = None
    ) -> Iterator[Transaction[Producer]]:
        """Have a producer, and a transaction of it, for the length of a `with` block.

        What the producers of a pool have at the same time are different transactions,
        so each needs a `transactional.id` of its own: put `{slot}` into it. Send with
        `tx.producer`.

        Args:
            timeout: As for `producer`.

        Raises:
            TransactionError: And all else that `producer` raises, or entering and
                leaving a `Transaction`.
            ProducerNotTransactionalError: Its producers have no `transactional.id`.

        Blocking:
            As `producer`, and then as a `Transaction`.
        """
        with self.producer(timeout) as producer, producer.transaction() as transaction:
            yield transaction

    def _use(self) -> None:
        if self._pid is None:
            self._pid = os.getpid()
        elif self._inherited:
            # Nothing is locked here: the lock may be held by a thread of the parent.
            text = (
                "this pool was used before this process was forked; call reset() here,"
                " or use it only after the fork"
            )
            raise ProducerUsedInParentProcessError(text)

    def _check_out(self, checkout: _Checkout, timeout: float) -> Producer:
        slot = self._take_slot(checkout, timeout)
        producer = slot.producer
        if producer is not None and producer.status in ("closing", "closed"):
            producer = None
            slot.vacate()
        if producer is None:
            producer = self._fill(slot)
        checkout.producer = producer
        self._checkouts[checkout.task] = checkout
        return producer

    def _take_slot(self, checkout: _Checkout, timeout: float) -> _Slot:
        with self._lock:
            self._check_open()
            # In the queue first: it decides, also when others come at this moment.
            self._queue.append(checkout)
            self._hand_out()
            if checkout.slot is None:
                checkout.waiter = _concurrency.new_waiter()
        if checkout.waiter is not None:
            checkout.waiter.wait(timeout)
        slot = checkout.slot
        if slot is None:
            self._check_open()
            text = f"none of {self.size} producers became free within {timeout:g} s"
            raise PoolTimeoutError(text)
        return slot

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosedError("the pool is closed")

    def _hand_out(self) -> None:
        """Give idle slots to those who wait; with the lock held.

        The slot is the waiter's from here on, not only promised: whether it wakes,
        gives up or is killed, `_check_in` finds it there and passes it on.
        """
        while self._idle and self._queue:
            checkout = self._queue.popleft()
            # A hub that is gone takes a wake-up, and never runs it.
            if not checkout.is_dead:
                checkout.slot = self._idle.pop()
                checkout.wake()

    def _fill(self, slot: _Slot) -> Producer:
        # Taken before the factory is called: a reload meanwhile is about this one, too.
        slot.generation = self._generation
        if slot.before is not None:
            timeout, force = self._ending
            _free_names(slot.before, timeout, force=force)
            slot.before = None
        token = current_slot.set(slot.number)
        try:
            producer: object = self._make(slot.number)
        finally:
            current_slot.reset(token)
        if not isinstance(producer, Producer):
            kind = type(producer).__name__
            raise TypeError(f"factory needs to make a Producer, not {kind}")
        if any(each.producer is producer for each in self._slots):
            raise ValueError(
                f"factory gave {producer.id!r}, which the pool has already"
            )
        if producer.status in ("closing", "closed"):
            raise ValueError(
                f"factory gave {producer.id!r}, which is {producer.status}"
            )
        slot.producer = producer
        return producer

    def _check_in(self, checkout: _Checkout) -> None:
        """End a use of a slot, however far it got."""
        if checkout.pid != os.getpid():
            return  # the parent's; `reset` forgets it
        unwanted = None
        with self._lock:
            if self._checkouts.get(checkout.task) is checkout:
                del self._checkouts[checkout.task]
            slot, checkout.slot = checkout.slot, None
            if slot is None:
                with suppress(ValueError):
                    self._queue.remove(checkout)
                return
            if self._closed or slot.generation != self._generation:
                unwanted = slot.vacate()
            ending = self._ending
            self._idle.append(slot)
            self._hand_out()
        if unwanted is not None:
            _close_in_background(unwanted, *ending)

    # --- looking -----------------------------------------------------------------

    @property
    def size(self) -> int:
        """How many producers there are at most."""
        return len(self._slots)

    @property
    def available(self) -> int:
        """How many slots nobody has; 0 when the pool is closed."""
        return 0 if self._closed else len(self._idle)

    @property
    def stats(self) -> PoolStats:
        """Size, available slots and waiting tasks; never blocks."""
        return PoolStats(self.size, self.available, len(self._queue))

    def __repr__(self) -> str:
        """Tell the state; never blocks or makes a producer."""
        size, available, waiting = self.stats
        state = "closed" if self._closed else f"{available} of {size} available"
        return f"<ProducerPool {state}, {waiting} waiting>"

    # --- ending ------------------------------------------------------------------

    def reload(self, timeout: float | None = None) -> None:
        """Replace the producers by fresh ones from the factory.

        Those that nobody has are closed now, those in use when they come back, in the
        background. The fresh ones are made when they are asked for, with the same slot
        numbers; for a moment an old one and a new one of the same `id` may exist side
        by side. Not so with a `transactional.id`: who gets such a slot waits until the
        old one is closed.

        Args:
            timeout: As for `close`.

        Raises:
            MessagesAbandonedError: As for `close`; the reload is done all the same.
            PoolClosedError, ProducerUsedInParentProcessError: Nothing was done.

        Blocking:
            As `close`.
        """
        if timeout is not None:
            _concurrency.check_timeout(timeout)
        self._use()
        self._check_open()
        self._tell("reload")
        old = []
        with self._lock:
            self._check_open()
            self._generation += 1
            for slot in self._idle:
                if slot.producer is not None:
                    old.append(slot.producer)
                    slot.vacate()
        try:
            _close_all(old, timeout, force=False)
        finally:
            self._tell("reloaded")

    def close(self, timeout: float | None = None, *, force: bool = False) -> None:
        """Give out no more producers, and close them all.

        Those that nobody has are closed now, those in use when they come back, in the
        background and within the same time. Who waits for one gets `PoolClosedError`.
        Closing again does nothing, except that `force` then holds for those still in
        use.

        Args:
            timeout: Seconds to wait for deliveries, for all of them together. None
                means the longest `max_wait_timeout` among them; with `force`, no wait.
            force: Drop what isn't delivered in time, and don't complain.

        Raises:
            MessagesAbandonedError: So many messages were not delivered; `buffered` has
                those that were buffered. The producers are closed all the same. Not
                with `force`.

        Blocking:
            As `Producer.close`: lets other greenlets run. In the hub itself it returns
            at once, and closing goes on by itself.
        """
        if timeout is not None:
            _concurrency.check_timeout(timeout)
        if self._inherited:
            self.reset()
        with self._lock:
            first = not self._closed
            if force or first:
                self._ending = (timeout, force)
            self._closed = True
            idle = [slot.producer for slot in self._idle if slot.producer is not None]
            while self._queue:
                self._queue.popleft().wake()
        try:
            _close_all(idle, timeout, force=force)
        finally:
            if first:
                self._tell("shutdown")

    def _emit_setup(self) -> None:
        self._tell("setup", size=self.size, timeout=self._timeout)

    def _tell(self, what: str, **facts: object) -> None:
        events.monitor.emit(f"connection_pool.{what}", {"pool": self, **facts})

    @property
    def _inherited(self) -> bool:
        return self._pid not in (None, os.getpid())

    def reset(self) -> None:
        """Make a pool usable in a forked child, after use in the parent.

        All slots are free again, whoever had them in the parent, and each producer is
        reset. Does nothing in a process that may use the pool anyway; a closed pool
        stays closed.
        """
        if not self._inherited:
            return
        for slot in self._slots:
            if slot.producer is not None:
                slot.producer.reset()
            if slot.generation != self._generation:
                slot.vacate()
        self._start_over()

    def __enter__(self) -> Self:
        """Give the pool itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; an error that is on its way is not hidden by a second one."""
        try:
            self.close()
        except MessagesAbandonedError:
            if error is None:
                raise


class _Slot:
    """A place for a producer."""

    __slots__ = ("before", "generation", "number", "producer")

    def __init__(self, number: int) -> None:
        self.number = number
        self.producer: Producer | None = None
        #: The one that had this place before, and may not be closed yet.
        self.before: Producer | None = None
        #: The pool's when the producer was made: which reloads it has not seen.
        self.generation = 0

    def vacate(self) -> Producer | None:
        """Make room for another producer; give the one that was there."""
        producer, self.producer = self.producer, None
        # If there was none, the one before that may still have its names.
        self.before = producer or self.before
        return producer


class _Checkout:
    """A task's use of a slot, from the moment it asks to the end of its block."""

    __slots__ = ("depth", "pid", "producer", "slot", "task", "waiter")

    def __init__(self, task: object) -> None:
        self.task = task
        self.pid = os.getpid()
        #: Blocks that the task is in, one inside the other.
        self.depth = 0
        #: None while it waits.
        self.slot: _Slot | None = None
        self.producer: Producer | None = None
        self.waiter: _concurrency.ThreadWaiter | _concurrency.GreenletWaiter | None = (
            None
        )

    @property
    def is_dead(self) -> bool:
        """Whether it waited in a hub that does not run any more."""
        return self.waiter is not None and self.waiter.is_dead

    def wake(self) -> None:
        if self.waiter is not None:
            self.waiter.wake()


def _taking_slot(factory: Factory) -> Callable[[int], Producer]:
    """Have a factory called with a slot's number, whether it takes it or not."""
    signature = inspect.signature(factory)
    with suppress(TypeError):
        signature.bind(1)
        return cast("Callable[[int], Producer]", factory)
    with suppress(TypeError):
        signature.bind()
        without = cast("Callable[[], Producer]", factory)
        return lambda _: without()
    raise TypeError(
        f"factory needs to take a slot's number or nothing, not {signature}"
    )


def _close_all(
    producers: Sequence[Producer], timeout: float | None, *, force: bool
) -> None:
    """Close producers within one time; all of them, whatever happens to some."""
    if timeout is None:
        timeout = 0.0 if force else max(map(_longest_wait, producers), default=0.0)
    deadline = _concurrency.monotonic() + timeout
    losses: list[MessagesAbandonedError] = []
    failure: BaseException | None = None
    for producer in producers:
        try:
            producer.close(max(deadline - _concurrency.monotonic(), 0.0), force=force)
        except MessagesAbandonedError as error:
            losses.append(error)
        except BaseException as error:  # noqa: BLE001 - raised below
            # Interrupted: be quick with the others.
            failure = failure or error
            deadline = 0.0
    if failure is not None:
        raise failure
    if losses:
        count = sum(loss.count for loss in losses)
        text = (
            f"{count} messages of a pool's producers were not delivered within"
            f" {timeout:g} s; the first: {losses[0]}"
        )
        buffered = [message for loss in losses for message in loss.buffered]
        raise MessagesAbandonedError(text, count, buffered) from losses[0]


def _free_names(producer: Producer, timeout: float | None, *, force: bool) -> None:
    """See to it that another producer may have the names of one that is closing.

    Blocking:
        If it has a `transactional.id`, until it is closed: they would fence each other.
    """
    core = producer._core  # noqa: SLF001 - as below
    if core is None:
        return
    if core.settings.transactional:
        _close_and_log(producer, timeout, force=force)
    core.give_up_id()


def _longest_wait(producer: Producer) -> float:
    core = producer._core  # noqa: SLF001 - a producer's own default for `close`
    return 0.0 if core is None else core.settings.max_wait_timeout


def _close_in_background(
    producer: Producer,
    timeout: float | None,
    force: bool,  # noqa: FBT001 - handed on
) -> None:
    _concurrency.spawn(lambda: _close_and_log(producer, timeout, force=force))


def _close_and_log(producer: Producer, timeout: float | None, *, force: bool) -> None:
    """Close a producer where no caller could catch what was not delivered."""
    try:
        producer.close(timeout, force=force)
    except MessagesAbandonedError as error:
        _log.write(ERROR, "producer.messages_abandoned", error=str(error))


# --- the process-wide default -------------------------------------------------------

_default: ProducerPool | None = None


def set_default_pool(pool: ProducerPool | None) -> ProducerPool | None:
    """Make a pool the one that `default_pool` gives in this process.

    Args:
        pool: None for none.

    Returns:
        The one before, or None. It is not closed.
    """
    global _default
    before, _default = _default, pool
    if pool is not None:
        pool._emit_setup()  # noqa: SLF001 - told of the pool, by what it knows
    return before


def default_pool() -> ProducerPool:
    """Give the pool that was set with `set_default_pool`.

    Raises:
        PoolNotConfiguredError: None was set.
    """
    if _default is None:
        raise PoolNotConfiguredError("call set_default_pool(ProducerPool(...)) first")
    return _default
