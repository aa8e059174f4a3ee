"""Wait queues: the order of wake-ups, and what interrupted waits leave behind."""

import random
import sys
import threading
import time

import gevent
import pytest

from greendrop import _concurrency
from greendrop._client.in_flight import InFlight
from greendrop._concurrency.deadline import Deadline
from greendrop._concurrency.wait_queue import FairQueue, WaitQueue

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 20.0


def never():
    """Return that nothing is free."""
    return False


@pytest.fixture
def enter(spawn, until):
    """Let a task wait in a fair queue behind others; return it and its result."""

    def start(queue, name, served, seconds=LONG, **options):
        def wait():
            if queue.wait(
                never, _concurrency.new_waiter(), Deadline(seconds), **options
            ):
                served.append(name)

        before = len(queue)
        task = spawn(wait)
        until(lambda: len(queue) > before)
        return task

    return start


# -- deadlines ------------------------------------------------------------------------


def test_deadline_counts_down():
    """The remaining seconds decrease, and never below zero."""
    deadline = Deadline(0.05)

    assert 0 < deadline.remaining() <= 0.05
    assert not deadline.has_expired
    time.sleep(0.06)
    assert deadline.remaining() == 0
    assert deadline.has_expired
    assert Deadline(-1).remaining() == 0


def test_earlier_deadline_is_found():
    """Of two deadlines the one that expires first counts."""
    soon, late = Deadline(1), Deadline(2)

    assert late.earlier(soon) is soon
    assert soon.earlier(late) is soon
    assert "s>" in repr(soon)


# -- tasks that wait for a condition --------------------------------------------------


def test_condition_that_holds_is_not_waited_for(world):
    """A condition is checked before the first wait, also when no time is left."""
    queue = WaitQueue()

    assert queue.wait_until(lambda: True, Deadline(0)) is True
    assert not queue.has_waiters


def test_condition_that_never_holds_ends_the_wait_in_time(world):
    """A wait ends by its deadline and leaves nothing in the queue."""
    queue = WaitQueue()
    started = time.monotonic()

    held = queue.wait_until(never, Deadline(0.1))

    assert held is False
    assert 0.09 < time.monotonic() - started < LONG
    assert not queue.has_waiters


def test_notify_all_wakes_all(world, spawn, until):
    """Each task that waits finds that the condition holds."""
    queue, holds, woken = WaitQueue(), [], []

    def wait():
        woken.append(queue.wait_until(lambda: bool(holds), Deadline(LONG)))

    tasks = [spawn(wait) for _ in range(5)]
    until(lambda: len(queue.waiters) == 5)
    holds.append(True)
    queue.notify_all()
    for task in tasks:
        task.join(LONG)

    assert woken == [True] * 5
    assert not queue.has_waiters


def test_task_that_is_notified_in_vain_waits_on(world, spawn, until):
    """A wait does not end before its condition holds, however often it is notified."""
    queue, checks, holds, results = WaitQueue(), [], [], []

    def condition():
        checks.append(None)
        return bool(holds)

    def wait():
        results.append(queue.wait_until(condition, Deadline(LONG)))

    task = spawn(wait)
    for _ in range(3):
        until(lambda: queue.has_waiters)
        before = len(checks)
        queue.notify_all()
        until(lambda before=before: len(checks) > before)
    assert not results
    until(lambda: queue.has_waiters)
    holds.append(True)
    queue.notify_all()
    task.join(LONG)

    assert results == [True]
    assert not queue.has_waiters


# -- fair waits -----------------------------------------------------------------------


def test_slots_are_granted_in_the_order_of_waiting(world, enter, until):
    """The task that has waited longest is served first."""
    queue, served = FairQueue(), []
    for name in "abcd":
        enter(queue, name, served)

    for count in range(1, 5):
        queue.grant(1)
        until(lambda count=count: len(served) == count)

    assert "".join(served) == "abcd"
    assert not queue.has_waiters
    assert queue.granted == 0


def test_task_that_got_nothing_waits_at_the_front(world, enter, until):
    """A task that found nothing free is served before those that came later."""
    queue, served = FairQueue(), []
    enter(queue, "a", served)
    enter(queue, "b", served)
    enter(queue, "again", served, first=True)

    for count in range(1, 4):
        queue.grant(1)
        until(lambda count=count: len(served) == count)

    assert served == ["again", "a", "b"]


def test_only_the_first_task_takes_a_free_slot(world, enter):
    """A task behind another one does not take a free slot."""
    queue, served = FairQueue(), []
    waiting = enter(queue, "first", served)

    passed = queue.wait(lambda: True, _concurrency.new_waiter(), Deadline(0.05))

    assert passed is False
    queue.grant(1)
    waiting.join(LONG)
    assert queue.wait(lambda: True, _concurrency.new_waiter(), Deadline(0)) is True


def test_slot_of_a_task_that_gives_up_goes_to_the_next(hub):
    """A greenlet that is killed after its slot was granted passes it on."""
    queue, served = FairQueue(), []

    def wait(name):
        if queue.wait(never, _concurrency.new_waiter(), Deadline(LONG)):
            served.append(name)

    tasks = [gevent.spawn(wait, name) for name in "abc"]
    gevent.sleep(0)
    tasks[0].kill(block=False)  # soon: before it is woken
    queue.grant(1)
    tasks[1].join(LONG)

    assert served == ["b"]
    assert len(queue) == 1
    assert queue.granted == 0
    tasks[2].kill()
    assert not queue.has_waiters


def test_interrupted_task_leaves_no_waiter_behind(hub):
    """A task that was interrupted while it left the queue is removed with its call."""
    queue = FairQueue()

    class BrokenList(list):
        def __contains__(self, one):
            raise KeyboardInterrupt

    def wait():
        with pytest.raises(KeyboardInterrupt):
            queue.wait(never, _concurrency.new_waiter(), Deadline(LONG))

    waiting = gevent.spawn(wait)
    gevent.sleep(0)
    queue.grant(1)
    queue._granted = BrokenList(queue._granted)
    waiting.join(LONG)
    del waiting

    assert queue.granted == 0
    assert not queue.has_waiters


def test_greenlets_and_threads_share_a_queue(hub):
    """Greenlets and threads are served in the order in which they came."""
    queue, served = FairQueue(), []

    def wait(name):
        if queue.wait(never, _concurrency.new_waiter(), Deadline(LONG)):
            served.append(name)

    greenlet = gevent.spawn(wait, "greenlet")
    gevent.sleep(0)
    thread = threading.Thread(target=wait, args=("thread",))
    thread.start()
    while len(queue) < 2:
        gevent.sleep(0.001)
    queue.grant(1)
    greenlet.join(LONG)
    queue.grant(1)
    thread.join(LONG)

    assert served == ["greenlet", "thread"]


@pytest.fixture
def fast_switching():
    """Let threads switch as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("fast_switching")
def test_no_grant_is_lost_between_threads():
    """Each granted slot reaches one task, while tasks come and give up."""
    queue, taken, given_up, errors = FairQueue(), [], [], []
    stop = threading.Event()

    def wait(seed):
        choose = random.Random(seed)
        try:
            while not stop.is_set():
                seconds = choose.choice((0.0, 0.0002, 1.0))
                waiter = _concurrency.new_waiter()
                done = queue.wait(never, waiter, Deadline(seconds))
                (taken if done else given_up).append(1)
        except Exception as error:  # noqa: BLE001 - raised in the test
            errors.append(error)

    threads = [threading.Thread(target=wait, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        queue.grant(1)
    stop.set()
    until_empty = time.monotonic() + LONG
    while any(thread.is_alive() for thread in threads):
        assert time.monotonic() < until_empty
        queue.grant(1)

    assert errors == []
    assert taken
    assert given_up
    assert queue.granted == 0
    assert len(queue) == 0


@pytest.mark.usefixtures("fast_switching")
def test_waiting_for_space_races_with_reports():
    """A sender that waits for space while reports come in goes on, and never fails."""
    outstanding = InFlight(5, 1_000_000)
    errors, passed = [], []
    stop = threading.Event()

    def send():
        try:
            while not stop.is_set():
                outstanding.wait_for_space(_concurrency.new_waiter(), LONG, again=False)
                passed.append(1)
        except Exception as error:  # noqa: BLE001 - raised in the test
            errors.append(error)

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and not errors:
        outstanding.on_reports(1)
    stop.set()
    for thread in threads:
        outstanding.wake_all()
        thread.join(LONG)

    assert errors == []
    assert passed
