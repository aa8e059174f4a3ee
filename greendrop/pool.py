"""Producer pools: several producers, of which a task checks one out for a `with` block.

A producer is checked out by one task at a time. Each of a pool's slots holds a producer
and keeps its number when that producer is replaced.
"""

from __future__ import annotations

import inspect
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

from greendrop import _concurrency, _pickling, _wording, events
from greendrop._concurrency.fair_lock import FairPool, Request
from greendrop._frames import concealed
from greendrop._logging.log import ERROR, Log
from greendrop.config.placeholders import current_slot
from greendrop.config.settings import build_settings
from greendrop.errors import (
    MessagesAbandonedError,
    PoolClosedError,
    PoolNotConfiguredError,
    PoolTimeoutError,
    ProducerUsedInParentProcessError,
)
from greendrop.producer import Producer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from typing_extensions import Self, Unpack

    from greendrop.config.types import ProducerSettings
    from greendrop.events import EventName
    from greendrop.transaction import Transaction

__all__ = [
    "PoolStats",
    "ProducerFactory",
    "ProducerPool",
    "default_pool",
    "set_default_pool",
]

#: Makes a producer of a pool, given the number of its slot or nothing.
ProducerFactory: TypeAlias = "Callable[[int], Producer] | Callable[[], Producer]"

_log = Log("greendrop")


class PoolStats(NamedTuple):
    """The use of a pool at one moment."""

    #: Number of slots.
    size: int
    #: Slots that are not checked out, with or without a producer in them.
    available: int
    #: Tasks that are waiting for a slot.
    waiting: int


class ProducerPool(_pickling.PerProcess):
    """A pool of producers, for tasks that each need one of their own for a while.

    Construction opens nothing and makes no producer, so a pool may be constructed at
    module level and before a fork. Use it as a context manager, or call `close`.

    Args:
        factory: Makes a producer. If it takes a positional argument, it is called with
            the number of the slot, 1 to `size`. It is called when a slot is checked out
            that has no producer, or a closed one.
        size: Maximum number of producers.
        timeout: Seconds that `producer` waits for a free slot.
        kafka: In place of `factory`: librdkafka's settings of all producers, as for
            `Producer`. Write the slot's number into a `transactional.id` as `{slot}`.
        settings: With `kafka`: the other settings of all producers. To an `id` each
            producer adds the number of its slot, as in "orders-1".

    Raises:
        ConfigurationInvalidError: Some settings are invalid; the text names all of
            them.
        TypeError: `factory` takes other arguments, or there are settings as well, or
            neither.
        ValueError: `size` or `timeout` is out of range.
    """

    @concealed
    def __init__(
        self,
        factory: ProducerFactory | None = None,
        *,
        size: int = 5,
        timeout: float = 5.0,
        kafka: Mapping[str, object] | None = None,
        **settings: Unpack[ProducerSettings],
    ) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size needs to be a whole number above 0, not {size!r}")
        _concurrency.check_timeout(timeout)
        if factory is None:
            self._make = _factory_of(kafka, settings)
        elif kafka is None and not settings:
            self._make = _adapt_factory(factory)
        else:
            raise TypeError("a pool takes a factory, or kafka={...} and settings")
        self._timeout = timeout
        self._slots = [_Slot(number) for number in range(1, size + 1)]
        self._generation = 0
        self._closed = False
        # How to close a producer that is checked in after `close`: timeout and force.
        self._close_args: tuple[float | None, bool] = (None, False)
        self._clear()
        self._emit("connection_pool.created", size=self.size, timeout=timeout)

    def _clear(self) -> None:
        # The slot used last is used next, so that the others can stay idle.
        self._assigner = FairPool(self._slots[::-1])
        if self._closed:
            self._assigner.close()
        # Held only over code that can't switch greenlets.
        self._lock = self._assigner.lock
        self._checkouts: dict[object, _Checkout] = {}
        self._pid: int | None = None

    # --- use ---------------------------------------------------------------------

    @contextmanager
    def producer(self, timeout: float | None = None) -> Iterator[Producer]:
        """Check out a producer for the length of a `with` block.

        No other task gets it meanwhile. A task is a greenlet, or a thread where there
        is no hub. Nested blocks of one task get the same producer.

        Args:
            timeout: Seconds to wait while all are in use; the pool's `timeout` if
                omitted.

        Raises:
            PoolTimeoutError: No producer became free in time.
            PoolClosedError: The pool is closed, or was closed during the wait.
            ProducerUsedInParentProcessError: The pool was used before a fork; call
                `reset`.
            IllegalWaitError: All are in use, and the caller is the hub, which must not
                wait.
            TypeError: The factory did not return a producer. Exceptions of the factory
                are passed on unchanged.

        Blocking:
            While all are in use, in the order of waiting. Lets other greenlets run
            where the thread has a hub, and blocks the thread elsewhere. Leaving the
            block never waits: producers are closed in the background.
        """
        if timeout is None:
            timeout = self._timeout
        else:
            _concurrency.check_timeout(timeout)
        self._check_not_forked()
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
                try:
                    self._check_in(checkout)
                except BaseException:
                    # A signal handler may have raised before the slot was free.
                    self._check_in(checkout)
                    raise

    @contextmanager
    def transaction(
        self, timeout: float | None = None
    ) -> Iterator[Transaction[Producer]]:
        """Check out a producer and open a transaction for the length of a `with` block.

        The producers of a pool have transactions at the same time, so each needs a
        `transactional.id` of its own: put `{slot}` into it. Send with `tx.producer`.

        Args:
            timeout: As for `producer`.

        Raises:
            TransactionError: The transaction failed; see `Transaction`.
            ProducerNotTransactionalError: The producers have no `transactional.id`.
            PoolTimeoutError: As for `producer`, like the other errors there.

        Blocking:
            As `producer`, and then as a `Transaction`.
        """
        with self.producer(timeout) as producer, producer.transaction() as transaction:
            yield transaction

    def _check_not_forked(self) -> None:
        if self._pid is None:
            self._pid = os.getpid()
        elif self._inherited:
            # Without the lock: a thread of the parent may have held it at the fork.
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
        self._assigner.acquire(checkout, _concurrency.Deadline(timeout))
        slot = checkout.item
        if slot is None:
            self._check_open()
            text = (
                f"none of {_wording.count(self.size, 'producer')} became free within"
                f" {_wording.seconds(timeout)}"
            )
            raise PoolTimeoutError(text)
        return slot

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosedError("the pool is closed")

    def _fill(self, slot: _Slot) -> Producer:
        # Read before the factory is called: a reload meanwhile concerns this producer,
        # too.
        slot.generation = self._generation
        if slot.predecessor is not None:
            timeout, force = self._close_args
            _release_ids(slot.predecessor, timeout, force=force)
            slot.predecessor = None
        token = current_slot.set(slot.number)
        try:
            producer: object = self._make(slot.number)
        finally:
            current_slot.reset(token)
        if not isinstance(producer, Producer):
            kind = type(producer).__name__
            raise TypeError(f"factory needs to return a Producer, not {kind}")
        if any(each.producer is producer for each in self._slots):
            raise ValueError(
                f"factory returned {producer.id!r}, which is in the pool already"
            )
        if producer.status in ("closing", "closed"):
            raise ValueError(
                f"factory returned {producer.id!r}, which is {producer.status}"
            )
        slot.producer = producer
        return producer

    def _check_in(self, checkout: _Checkout) -> None:
        """End a checkout, in whatever state it is."""
        if checkout.pid != os.getpid():
            return  # the parent's; `reset` forgets it
        to_close = None
        with self._lock:
            if self._checkouts.get(checkout.task) is checkout:
                del self._checkouts[checkout.task]
            slot = checkout.item
            if slot is not None and (
                self._closed or slot.generation != self._generation
            ):
                to_close = slot.vacate()
            close_args = self._close_args
            self._assigner.release(checkout)
        if to_close is not None:
            _close_in_background(to_close, *close_args)

    # --- state -------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Maximum number of producers."""
        return len(self._slots)

    @property
    def available(self) -> int:
        """Number of slots that are not checked out; 0 if the pool is closed."""
        return 0 if self._closed else len(self._assigner.free)

    @property
    def stats(self) -> PoolStats:
        """Size, available slots and waiting tasks; never blocks."""
        return PoolStats(self.size, self.available, self._assigner.waiting)

    def __repr__(self) -> str:
        """Return the state; never blocks or makes a producer."""
        size, available, waiting = self.stats
        state = "closed" if self._closed else f"{available} of {size} available"
        return f"<ProducerPool {state}, {waiting} waiting>"

    # --- closing -----------------------------------------------------------------

    def reload(self, timeout: float | None = None) -> None:
        """Replace the producers by new ones from the factory.

        Idle producers are closed at once. Those in use are closed in the background
        when they are checked in. New ones are made on demand, with the same slot
        numbers; for a moment an old and a new producer with the same `id` may exist
        side by side. With a `transactional.id` they don't: the next task that gets the
        slot waits until the old producer is closed.

        Args:
            timeout: As for `close`.

        Raises:
            MessagesAbandonedError: As for `close`; the producers are replaced all the
                same.
            PoolClosedError: The pool is closed; nothing was done.
            ProducerUsedInParentProcessError: See `producer`; nothing was done.

        Blocking:
            As `close`.
        """
        if timeout is not None:
            _concurrency.check_timeout(timeout)
        self._check_not_forked()
        self._check_open()
        self._emit("connection_pool.reload")
        idle = []
        with self._lock:
            self._check_open()
            self._generation += 1
            for slot in self._assigner.free:
                if slot.producer is not None:
                    idle.append(slot.producer)
                    slot.vacate()
        try:
            _close_all(idle, timeout, force=False)
        finally:
            self._emit("connection_pool.reloaded")

    def close(self, timeout: float | None = None, *, force: bool = False) -> None:
        """Close the pool and all its producers.

        Idle producers are closed at once. Those in use are closed in the background
        when they are checked in, within the same timeout. Tasks that wait for a
        producer get `PoolClosedError`. Closing again does nothing, except that `force`
        then applies to the producers that are still in use.

        Args:
            timeout: Seconds to wait for deliveries, for all producers together; if
                omitted, the longest `max_wait_timeout` among them, or no wait with
                `force`.
            force: Drop messages that are not delivered in time, and don't raise.

        Raises:
            MessagesAbandonedError: Some messages were not delivered; `buffered` has
                those that were buffered. The producers are closed all the same. Not
                with `force`.

        Blocking:
            As `Producer.close`: lets other greenlets run. In the hub itself it returns
            at once, and the producers are closed in the background.
        """
        if timeout is not None:
            _concurrency.check_timeout(timeout)
        if self._inherited:
            self.reset()
        with self._lock:
            first = not self._closed
            if force or first:
                self._close_args = (timeout, force)
            self._closed = True
            slots = self._assigner.free
            idle = [slot.producer for slot in slots if slot.producer is not None]
            self._assigner.close()
        try:
            _close_all(idle, timeout, force=force)
        finally:
            if first:
                self._emit("connection_pool.shutdown")

    def _emit_setup(self) -> None:
        self._emit("connection_pool.setup", size=self.size, timeout=self._timeout)

    def _emit(self, name: EventName, **payload: object) -> None:
        events.monitor.emit(name, {"pool": self, **payload})

    @property
    def _inherited(self) -> bool:
        return self._pid not in (None, os.getpid())

    def reset(self) -> None:
        """Make the pool usable in a forked child after use in the parent.

        All slots become free, and each producer is reset. Does nothing in a process
        that may use the pool anyway. A closed pool stays closed.
        """
        if not self._inherited:
            return
        for slot in self._slots:
            if slot.producer is not None:
                slot.producer.reset()
            if slot.generation != self._generation:
                slot.vacate()
        self._clear()

    def __enter__(self) -> Self:
        """Return the pool itself."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        """Close the pool; an exception from the block is not replaced."""
        try:
            self.close()
        except MessagesAbandonedError:
            if error is None:
                raise


class _Slot:
    """A numbered slot for a producer."""

    __slots__ = ("generation", "number", "predecessor", "producer")

    def __init__(self, number: int) -> None:
        self.number = number
        self.producer: Producer | None = None
        #: The previous producer of this slot, which may not be closed yet.
        self.predecessor: Producer | None = None
        #: The pool's generation when the producer was made; each reload starts a new
        #: one.
        self.generation = 0

    def vacate(self) -> Producer | None:
        """Empty the slot and return its producer."""
        producer, self.producer = self.producer, None
        # If the slot was empty, the predecessor may still hold its ids.
        self.predecessor = producer or self.predecessor
        return producer


class _Checkout(Request[_Slot]):
    """A task's use of a slot, from the request to the end of the block."""

    __slots__ = ("depth", "producer")

    def __init__(self, task: object) -> None:
        super().__init__(task)
        #: Number of nested blocks that the task is in.
        self.depth = 0
        self.producer: Producer | None = None


def _factory_of(
    kafka: Mapping[str, object] | None, settings: ProducerSettings
) -> Callable[[int], Producer]:
    """Make the factory of a pool whose producers have the same settings."""
    if kafka is None and not settings:
        raise TypeError("a pool needs kafka={...}, or a factory")
    build_settings(kafka, settings, slot=1)  # raises now what each producer would
    kafka = dict(kafka or ())

    def make(slot: int) -> Producer:
        own = settings.copy()
        if "id" in own:
            own["id"] = f"{own['id']}-{slot}"
        return Producer(kafka, **own)

    return make


def _adapt_factory(factory: object) -> Callable[[int], Producer]:
    """Adapt a factory to be called with the number of a slot."""
    if not callable(factory):
        # Without the value: settings may contain a password.
        kind = type(factory).__name__
        raise TypeError(
            f"factory needs to be a function that makes a producer, not {kind};"
            " settings are keywords: ProducerPool(kafka={...})"
        )
    signature = inspect.signature(factory)
    with suppress(TypeError):
        signature.bind(1)
        return cast("Callable[[int], Producer]", factory)
    with suppress(TypeError):
        signature.bind()
        without = cast("Callable[[], Producer]", factory)
        return lambda _: without()
    raise TypeError(
        f"factory needs to take the number of a slot or nothing, not {signature}"
    )


def _close_all(
    producers: Sequence[Producer], timeout: float | None, *, force: bool
) -> None:
    """Close all producers within one timeout, whatever happens to some of them."""
    if timeout is None:
        timeout = 0.0 if force else max(map(_longest_wait, producers), default=0.0)
    deadline = _concurrency.Deadline(timeout)
    losses: list[MessagesAbandonedError] = []
    failure: BaseException | None = None
    for producer in producers:
        try:
            producer.close(deadline.remaining(), force=force)
        except MessagesAbandonedError as error:
            losses.append(error)
        except BaseException as error:  # noqa: BLE001 - raised below
            # Interrupted: close the others without waiting.
            failure = failure or error
            deadline = _concurrency.Deadline(0.0)
    if failure is not None:
        raise failure
    if losses:
        count = sum(loss.count for loss in losses)
        text = (
            f"{_wording.count_were(count, 'message')} not delivered by a pool's"
            f" producers within {_wording.seconds(timeout)}; the first: {losses[0]}"
        )
        buffered = [message for loss in losses for message in loss.buffered]
        raise MessagesAbandonedError(text, count, buffered) from losses[0]


def _release_ids(producer: Producer, timeout: float | None, *, force: bool) -> None:
    """Release the ids of a closing producer for its successor.

    Blocking:
        With a `transactional.id` until the producer is closed: the two would fence each
        other.
    """
    core = producer._core  # noqa: SLF001 - as below
    if core is None:
        return
    if core.settings.transactional:
        _close_and_log(producer, timeout, force=force)
    core.release_id()


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
    """Close a producer where no caller can catch an error; log it instead."""
    try:
        producer.close(timeout, force=force)
    except MessagesAbandonedError as error:
        _log.write(ERROR, "producer.messages_abandoned", error=str(error))


# --- the process-wide default -------------------------------------------------------

_default: ProducerPool | None = None


def set_default_pool(pool: ProducerPool | None) -> ProducerPool | None:
    """Set the pool that `default_pool` returns in this process.

    Args:
        pool: The pool, or None to unset it.

    Returns:
        The previous default pool, or None. It is not closed.
    """
    global _default
    previous, _default = _default, pool
    if pool is not None:
        pool._emit_setup()  # noqa: SLF001 - the payload has private values
    return previous


def default_pool() -> ProducerPool:
    """Return the pool that was set with `set_default_pool`.

    Raises:
        PoolNotConfiguredError: No pool was set.
    """
    if _default is None:
        raise PoolNotConfiguredError("call set_default_pool(ProducerPool(...)) first")
    return _default
