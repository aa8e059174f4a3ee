"""Fair pools and locks: the order of tasks, and requests that were interrupted."""

import gevent
import pytest

from greendrop import _concurrency
from greendrop._concurrency.deadline import Deadline
from greendrop._concurrency.fair_lock import (
    DeadlockError,
    FairLock,
    FairPool,
    LockRequest,
    Request,
)

#: Seconds. No wait here takes nearly as long when it works.
LONG = 20.0


def new_request():
    """Return a request of the calling task."""
    return Request(_concurrency.current_task())


def test_items_are_handed_over_in_the_order_of_asking(world, spawn, until):
    """The task that waits longest gets the item that is released."""
    pool, served = FairPool(["item"]), []
    held = new_request()
    assert pool.acquire(held, Deadline(0))

    def take(name):
        request = new_request()
        try:
            if pool.acquire(request, Deadline(LONG)):
                served.append(name)
        finally:
            pool.release(request)

    tasks = []
    for number, name in enumerate("abc", start=1):
        tasks.append(spawn(lambda name=name: take(name)))
        until(lambda number=number: pool.waiting == number)
    pool.release(held)
    for task in tasks:
        task.join(LONG)

    assert "".join(served) == "abc"
    assert pool.free == ["item"]


def test_item_that_was_released_last_is_handed_over_next():
    """The other items can stay idle."""
    pool = FairPool("abc")
    first, second, third = new_request(), new_request(), new_request()
    for request in (first, second):
        pool.acquire(request, Deadline(0))
    assert (first.item, second.item) == ("c", "b")

    pool.release(first)
    pool.acquire(third, Deadline(0))

    assert third.item == "c"


def test_wait_without_an_item_ends_by_its_deadline(world):
    """A task that gives up leaves the queue by `release`."""
    pool, held, late = FairPool(["item"]), new_request(), new_request()
    pool.acquire(held, Deadline(0))

    assert not pool.acquire(late, Deadline(0.05))
    pool.release(late)

    assert pool.waiting == 0
    assert pool.holders == [held]


def test_request_that_is_marked_as_released_holds_nothing(world):
    """An exception at the start of `release` does not keep the item from others."""
    pool, interrupted, after = FairPool(["item"]), new_request(), new_request()
    pool.acquire(interrupted, Deadline(0))

    interrupted.released = True

    assert pool.free == ["item"]
    assert pool.acquire(after, Deadline(0))


def test_closed_pool_ends_all_waits(world, spawn, until):
    """Waiting tasks get no item, and neither do those that come later."""
    pool, held, results = FairPool(["item"]), new_request(), []
    pool.acquire(held, Deadline(0))
    task = spawn(lambda: results.append(pool.acquire(new_request(), Deadline(LONG))))
    until(lambda: pool.waiting == 1)

    pool.close()
    task.join(LONG)
    pool.release(held)

    assert results == [False]
    assert not pool.acquire(new_request(), Deadline(LONG))


def test_killed_greenlet_passes_the_item_on(hub):
    """A greenlet that is killed while it waits leaves the item to the next one."""
    pool, held, served = FairPool(["item"]), new_request(), []
    pool.acquire(held, Deadline(0))

    def take():
        request = new_request()
        try:
            served.append(pool.acquire(request, Deadline(LONG)))
        finally:
            pool.release(request)

    killed, other = gevent.spawn(take), gevent.spawn(take)
    gevent.sleep(0.01)
    killed.kill(block=False)  # takes effect when the hub runs next
    pool.release(held)  # hands the item over to the greenlet that is being killed
    other.join(LONG)

    assert served == [True]
    assert pool.free == ["item"]


def test_task_that_asks_for_its_own_lock_gets_an_error(world):
    """A signal handler can't wait for the task that it has interrupted."""
    lock, request = FairLock(), LockRequest(_concurrency.current_task())
    lock.acquire(request, Deadline(0))
    assert lock.held_by_me

    with pytest.raises(DeadlockError):
        lock.acquire(LockRequest(_concurrency.current_task()), Deadline(LONG))

    lock.release(request)
    assert lock.holder is None
