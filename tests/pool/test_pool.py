"""Producer pools: checking out producers, waiting for them, reloading and closing."""

import functools
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greendrop import (
    ConfigurationInvalidError,
    IllegalWaitError,
    MessagePurgedError,
    MessagesAbandonedError,
    PoolClosedError,
    PoolNotConfiguredError,
    PoolStats,
    PoolTimeoutError,
    Producer,
    ProducerPool,
    default_pool,
    set_default_pool,
)

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 20.0
#: Seconds that an operation takes at most when it does not wait.
QUICK = 2.0
#: No broker listens there: a connection is refused at once.
NOWHERE = {"bootstrap.servers": "127.0.0.1:1"}


# The producers of `make`, which have ids that the next test needs too.
_made = []


def make(slot):
    """Make a producer that is named after its slot and opens nothing."""
    _made.append(Producer(NOWHERE, id=f"slot-{slot}"))
    return _made[-1]


def close_made():
    """Close all producers made so far, also those in use."""
    while _made:
        _made.pop().close(force=True)


@pytest.fixture(autouse=True)
def _free_names():
    yield
    close_made()


class Holder:
    """A task that holds a producer until it is released."""

    def __init__(self, spawn, pause, pool, timeout=LONG):
        self._pause = pause
        self._pool = pool
        self._timeout = timeout
        self.producer = self.error = None
        self._leaving = False
        self.task = spawn(self._hold)

    def _hold(self):
        try:
            with self._pool.producer(self._timeout) as producer:
                self.producer = producer
                while not self._leaving:
                    self._pause(0.001)
        except Exception as error:  # noqa: BLE001 - raised in the test
            self.error = error

    def leave(self):
        """Return the producer, and end."""
        self._leaving = True
        self.task.join(LONG)


@pytest.fixture
def hold(spawn, pause, until):
    """Start tasks that hold a producer, and end them after the test."""
    holders = []

    def start(pool, *, waits=False):
        before = pool.stats.waiting
        holder = Holder(spawn, pause, pool)
        holders.append(holder)
        if waits:
            until(lambda: pool.stats.waiting > before)
        else:
            until(lambda: holder.producer or holder.error)
        return holder

    yield start
    for holder in holders:
        holder.leave()


@pytest.fixture
def make_connected(make_producer):
    """Make a producer for a slot, on the mock cluster."""
    return lambda slot: make_producer(id=f"slot-{slot}")


def send(producer, count=1):
    """Send messages without waiting; return their handles."""
    return [producer.produce_async(topic="t", payload=b"x") for _ in range(count)]


@contextmanager
def at_most(seconds):
    """Fail if the block takes longer."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


# -- making producers -----------------------------------------------------------------


def test_pool_makes_producers_at_first_use(world):
    """A new pool is empty; each slot makes its producer at first use, and keeps it."""
    made = []

    def factory(slot):
        made.append(slot)
        return make(slot)

    pool = ProducerPool(factory, size=3)
    assert made == []
    for _ in range(3):
        with pool.producer() as producer:
            assert producer.id == "slot-1"

    assert made == [1]


def make_for_keyword_only(*, slot):
    """A factory with a signature that no pool calls."""
    return make(slot)


def make_for_two(slot, other):
    """Another factory with a signature that no pool calls."""
    return make(slot + other)


@pytest.mark.parametrize(
    ("factory", "name"),
    [
        (lambda slot: Producer(NOWHERE, id=f"n{slot}"), "n1"),
        (lambda slot, more="-": Producer(NOWHERE, id=f"n{slot}{more}"), "n1-"),
        (lambda *slots: Producer(NOWHERE, id=f"n{slots}"), "n(1,)"),
        (lambda: Producer(NOWHERE, id="none"), "none"),
        (functools.partial(Producer, NOWHERE, id="partial"), "partial"),
        (functools.partial(Producer, kafka=NOWHERE, id="keywords"), "keywords"),
        (make_for_keyword_only, None),
        (make_for_two, None),
    ],
)
def test_factory_accepts_the_slot_number_or_nothing(factory, name):
    """A factory gets the slot's number if it has a parameter for it.

    A factory with other parameters is refused at once.
    """
    if name is None:
        with pytest.raises(TypeError, match="number of a slot or nothing, not \\("):
            ProducerPool(factory)
        return

    with ProducerPool(factory).producer() as producer:
        assert producer.id == name


def test_factory_must_be_callable():
    """A factory that can't be called is refused at once."""
    with pytest.raises(TypeError, match="not Producer"):
        ProducerPool(Producer(NOWHERE))


def test_settings_take_the_place_of_a_factory():
    """All producers get them, and the number of the slot in their names."""
    kafka = {**NOWHERE, "transactional.id": "orders-{slot}"}
    pool = ProducerPool(kafka=kafka, size=2, id="orders", max_wait_timeout=5)
    kafka.clear()

    with pool.producer() as producer:
        assert producer.id == "orders-1"
        assert producer.max_wait_timeout == 5.0
        assert producer.transactional
    pool.close()


@pytest.mark.parametrize(
    ("kafka", "settings", "mistake"),
    [
        (NOWHERE, {"max_wait_timout": 3}, "did you mean 'max_wait_timeout'"),
        ({}, {}, "bootstrap.servers"),
        (None, {"max_wait_timeout": 3}, "kafka"),
        ({**NOWHERE, "transactional.id": "{number}"}, {}, "kafka.transactional.id"),
    ],
)
def test_wrong_settings_are_refused_when_the_pool_is_constructed(
    kafka, settings, mistake
):
    """The program finds a mistake at its start, not at the first checkout."""
    with pytest.raises(ConfigurationInvalidError, match=mistake):
        ProducerPool(kafka=kafka, **settings)


def test_a_pool_takes_either_a_factory_or_settings():
    """Settings beside a factory would have no effect."""
    with pytest.raises(TypeError, match="a factory, or kafka"):
        ProducerPool(lambda: Producer(NOWHERE), kafka=NOWHERE)
    with pytest.raises(TypeError, match="a factory, or kafka"):
        ProducerPool(lambda: Producer(NOWHERE), max_wait_timeout=3.0)
    with pytest.raises(TypeError, match=r"needs kafka=\{...\}, or a factory"):
        ProducerPool(size=3)


def test_settings_in_the_place_of_a_factory_stay_secret():
    """The error names the keyword, and no password."""
    with pytest.raises(TypeError, match=r"not dict; .* ProducerPool\(kafka=") as raised:
        ProducerPool({**NOWHERE, "sasl.password": "hunter2"})

    assert "hunter2" not in str(raised.value)


def test_factory_must_return_a_new_producer_each_time():
    """A producer that another slot has, or that is closed, is refused."""
    shared = Producer(NOWHERE)
    pool = ProducerPool(lambda: shared, size=2)

    with pool.producer():
        with ThreadPoolExecutor() as threads:
            other = threads.submit(lambda: pool.producer().__enter__())
        with pytest.raises(ValueError, match="in the pool already"):
            other.result()
    pool.close()
    pool = ProducerPool(lambda: shared)
    with pytest.raises(ValueError, match="is closed"), pool.producer():
        pass


@pytest.mark.parametrize("size", [0, -1, 1.5, "5", True, None])
def test_size_is_a_number_of_producers(size):
    """A pool needs at least one slot."""
    with pytest.raises(ValueError, match=f"above 0, not {size!r}"):
        ProducerPool(make, size=size)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "1", True])
def test_every_timeout_is_finite(timeout):
    """Every wait ends; a timeout that is not finite is refused, and has no effect."""
    with pytest.raises(ValueError, match="finite seconds"):
        ProducerPool(make, timeout=timeout)
    pool = ProducerPool(make)
    with pytest.raises(ValueError, match="finite seconds"), pool.producer(timeout):
        pass
    with pytest.raises(ValueError, match="finite seconds"):
        pool.reload(timeout)
    with pytest.raises(ValueError, match="finite seconds"):
        pool.close(timeout)

    assert pool.stats == (5, 5, 0)


def test_bad_configuration_surfaces_at_first_use(world):
    """The error of the factory is raised in the first task that needs a producer."""
    pool = ProducerPool(lambda: Producer(kafka={}), size=1)

    for _ in range(3):
        with pytest.raises(ConfigurationInvalidError), pool.producer(0):
            pass
        assert pool.available == 1


def test_factory_that_fails_costs_no_slot(world):
    """The slot is free again, and the next producer has its number."""
    slots = []

    def factory(slot):
        slots.append(slot)
        if len(slots) < 3:
            raise OSError("no secret today")
        return make(slot)

    pool = ProducerPool(factory, size=1)
    for _ in range(2):
        with pytest.raises(OSError, match="no secret"), pool.producer(0):
            pass
    with pool.producer(0) as producer:
        assert producer.id == "slot-1"

    assert slots == [1, 1, 1]


@pytest.mark.parametrize("made", [None, "a producer", Producer, {"secret": "s3cr3t"}])
def test_factory_must_make_a_producer(made):
    """Any other result is an error of the factory, and costs no slot."""
    pool = ProducerPool(lambda: made, size=1)

    for _ in range(2):
        with (
            pytest.raises(TypeError, match="return a Producer") as raised,
            pool.producer(0),
        ):
            pass
        assert "s3cr3t" not in str(raised.value)


def test_factory_may_use_the_pool():
    """A factory that uses the pool itself gets another producer."""
    pool = ProducerPool(make, size=2)
    inner = []

    def factory(slot):
        if slot == 1:
            with pool.producer() as producer:
                inner.append(producer.id)
        return make(slot)

    pool = ProducerPool(factory, size=2)
    with pool.producer() as producer:
        assert (producer.id, inner) == ("slot-1", ["slot-2"])
        assert pool.available == 1

    assert pool.available == 2


# -- slots ----------------------------------------------------------------------------


def test_slots_are_numbered_from_one(world, hold):
    """Concurrent tasks get the slots 1 to `size`."""
    pool = ProducerPool(make, size=3)

    ids = [hold(pool).producer.id for _ in range(3)]

    assert ids == ["slot-1", "slot-2", "slot-3"]
    assert pool.stats == PoolStats(size=3, available=0, waiting=0)


def test_most_recently_used_producer_is_reused_first(world, hold):
    """The most recently used producer is reused, so that few producers stay active."""
    pool = ProducerPool(make, size=3)
    first, second, third = (hold(pool) for _ in range(3))
    for holder in (first, third, second):
        holder.leave()

    for expected in (second, third, first):
        assert hold(pool).producer is expected.producer


def test_one_task_has_one_producer(world, hold):
    """A nested block gets the same producer, and another task a different one."""
    pool = ProducerPool(make, size=2)

    with pool.producer() as outer:
        with pool.producer() as inner, pool.producer(0) as innermost:
            assert outer is inner is innermost
            assert pool.available == 1
            assert hold(pool).producer is not outer
        assert pool.available == 0
        with pool.producer(0) as again:
            assert again is outer


def test_blocks_of_a_task_may_end_in_any_order(world):
    """The producer goes back when the last of the blocks ends."""
    pool = ProducerPool(make, size=1)
    outer, inner = pool.producer(), pool.producer()
    outer.__enter__()
    inner.__enter__()

    outer.__exit__(None, None, None)
    assert pool.available == 0
    inner.__exit__(None, None, None)
    assert pool.available == 1


def test_blocks_can_decorate_functions(world):
    """`producer` decorates functions, as any context manager does."""
    pool = ProducerPool(make, size=1)

    @pool.producer()
    def work():
        return pool.available

    assert [work(), work(), pool.available] == [0, 0, 1]


def test_error_in_the_block_returns_the_producer(world):
    """The error is raised on, and the slot is free."""
    pool = ProducerPool(make, size=1)

    for error in (ZeroDivisionError, StopIteration, KeyboardInterrupt):
        with pytest.raises(error), pool.producer(0):
            raise error
        assert pool.available == 1


def test_greenlets_are_distinguished_from_threads(hub):
    """Greenlets and native threads use one pool at the same time."""
    pool = ProducerPool(make, size=3)
    seen = []
    entered = threading.Barrier(2)

    def in_thread():
        with pool.producer() as producer, pool.producer() as same:
            seen.append((producer.id, same.id))
            entered.wait(LONG)

    def in_greenlet():
        with pool.producer() as producer:
            gevent.sleep(0.01)
            seen.append(producer.id)

    with pool.producer() as main:
        greenlet = gevent.spawn(in_greenlet)
        gevent.sleep(0)
        thread = threading.Thread(target=in_thread)
        thread.start()
        greenlet.join(LONG)
        entered.wait(LONG)
        thread.join(LONG)

    assert main.id == "slot-1"
    assert sorted(seen, key=str) == [("slot-3", "slot-3"), "slot-2"]
    assert pool.available == 3


def test_a_thread_that_gets_a_hub_keeps_its_producer(request):
    """A thread that gets a hub within a block keeps its producer in nested blocks."""
    pool = ProducerPool(make, size=1)
    with pool.producer() as before:
        request.getfixturevalue("hub")
        gevent.sleep(0)
        with pool.producer(0) as after:
            assert after is before

    assert pool.available == 1


# -- waiting for a producer -----------------------------------------------------------


def test_wait_ends_after_the_pools_timeout(world, hold):
    """With its only producer in use, a pool of 0.1 s gives up in 0.1 s."""
    pool = ProducerPool(make, size=1, timeout=0.1)
    hold(pool)

    started = time.monotonic()
    text = r"none of 1 .* within 0\.1 s"
    with pytest.raises(PoolTimeoutError, match=text), pool.producer():
        pass

    assert 0.09 < time.monotonic() - started < 1.0
    assert pool.stats == (1, 0, 0)


def test_a_call_may_have_its_own_timeout(world, hold):
    """The timeout of one call overrides the pool's; 0 does not wait."""
    pool = ProducerPool(make, size=1, timeout=LONG)
    holder = hold(pool)

    for timeout in (0, 0.02):
        with at_most(QUICK), pytest.raises(TimeoutError), pool.producer(timeout):
            pass
    holder.leave()

    with pool.producer(timeout=0) as producer:
        assert producer is holder.producer


def test_waiter_gets_the_returned_producer(world, hold):
    """A waiting task goes on as soon as a producer is free."""
    pool = ProducerPool(make, size=1)
    first = hold(pool)
    second = hold(pool, waits=True)
    assert pool.stats == (1, 0, 1)

    first.leave()
    with at_most(QUICK):
        second.leave()

    assert second.producer is first.producer
    assert pool.stats == (1, 1, 0)


def test_waiters_are_served_in_order(world, hold, until):
    """Waiters are served in order; a later or repeated request does not overtake."""
    pool = ProducerPool(make, size=1)
    holder = hold(pool)
    waiters = [hold(pool, waits=True) for _ in range(5)]

    for waiter in waiters:
        assert waiter.producer is None
        holder.leave()
        with pytest.raises(PoolTimeoutError), pool.producer(0):
            pass  # a new task
        until(lambda: waiter.producer)  # noqa: B023 - used at once
        holder = waiter

    holder.leave()
    assert [waiter.error for waiter in waiters] == [None] * 5


@pytest.mark.slow
def test_no_task_starves(world, spawn, pause):
    """With five tasks for each producer, all get it about equally often."""
    pool = ProducerPool(make, size=2)
    turns = [0] * 10
    ends = time.monotonic() + 0.5

    def work(number):
        while time.monotonic() < ends:
            with pool.producer():
                turns[number] += 1
                pause(0.0005)

    tasks = [spawn(functools.partial(work, number)) for number in range(10)]
    for task in tasks:
        task.join(LONG)

    assert min(turns) > max(turns) / 3


@pytest.mark.slow
def test_waiting_lets_other_greenlets_run(longest_gap):
    """While one greenlet waits for a producer, others keep running."""
    pool = ProducerPool(make, size=1)

    def hold_for_some_ticks():
        with pool.producer():
            while gap.ticks <= 3:
                gevent.sleep(0.001)

    with longest_gap() as gap:
        holding = gevent.spawn(hold_for_some_ticks)
        gevent.sleep(0)
        with pool.producer(timeout=LONG):
            pass

    assert gap.seconds < 0.1
    holding.join(LONG)


def _hold_for(pool, seconds):
    with pool.producer():
        gevent.sleep(seconds)


def test_hub_gets_free_producers_and_never_waits(hub):
    """A callback of gevent's loop may get a free producer; it can't wait for one."""
    pool = ProducerPool(make, size=1)
    observed = []

    def call():
        try:
            with pool.producer() as producer:
                observed.append(producer.id)
        except IllegalWaitError as error:
            observed.append(type(error))

    hub.loop.run_callback(call)
    gevent.sleep(0.01)
    with pool.producer():
        hub.loop.run_callback(call)
        gevent.sleep(0.01)

    assert observed == ["slot-1", IllegalWaitError]
    assert pool.stats == (1, 1, 0)


# -- interrupted tasks ----------------------------------------------------------------


def test_killed_waiter_leaves_the_queue(hub):
    """A kill of a waiter costs no slot."""
    pool = ProducerPool(make, size=1)
    with pool.producer():
        greenlet = gevent.spawn(_hold_for, pool, LONG)
        gevent.sleep(0)
        assert pool.stats == (1, 0, 1)
        greenlet.kill(timeout=LONG)
        assert pool.stats == (1, 0, 0)

    assert pool.stats == (1, 1, 0)


def test_timed_out_waiter_leaves_the_queue(hub):
    """A `gevent.Timeout` around a block ends its wait, and costs no slot."""
    pool = ProducerPool(make, size=1)
    holding = gevent.spawn(_hold_for, pool, LONG)
    gevent.sleep(0)

    with pytest.raises(gevent.Timeout), gevent.Timeout(0.02), pool.producer():
        pass

    assert pool.stats == (1, 0, 0)
    holding.kill(timeout=LONG)
    assert pool.stats == (1, 1, 0)


@pytest.mark.parametrize("others", [0, 1])
def test_waiter_that_is_killed_after_getting_a_slot_passes_it_on(hub, others):
    """A kill between the hand-over and the wake-up costs no slot."""
    pool = ProducerPool(make, size=1)
    with pool.producer():
        killed = gevent.spawn(_hold_for, pool, LONG)
        gevent.sleep(0)
        waiters = [gevent.spawn(_hold_for, pool, 0) for _ in range(others)]
        gevent.sleep(0)
    # The slot is handed over, and the greenlet has not run yet.
    killed.kill(timeout=LONG)

    gevent.joinall(waiters, timeout=LONG, raise_error=True)
    assert pool.stats == (1, 1, 0)


def test_killed_holder_returns_its_producer(hub):
    """A kill inside the block ends the block like any other error."""
    pool = ProducerPool(make, size=1)
    holding = gevent.spawn(_hold_for, pool, LONG)
    gevent.sleep(0)
    holding.kill(timeout=LONG)

    with pool.producer(0) as producer:
        assert producer.id == "slot-1"


def test_task_killed_in_the_factory_returns_its_slot(hub):
    """The factory may wait, and be killed meanwhile."""
    pool = ProducerPool(lambda: gevent.sleep(LONG), size=1)
    asking = gevent.spawn(_hold_for, pool, 0)
    gevent.sleep(0)
    assert pool.available == 0
    asking.kill(timeout=LONG)

    assert pool.available == 1


def test_killed_waiter_leaves_its_producer_id_to_the_next(
    hub, make_connected, mock_cluster
):
    """The waiter is killed while the producer that is replaced closes."""
    pool = ProducerPool(make_connected, size=1)
    with pool.producer() as old:
        old.produce_sync(topic="t", payload=b"x")
        mock_cluster.round_trip(0.3)
        send(old)
        killed = gevent.spawn(_hold_for, pool, 0)
        gevent.sleep(0)
        pool.reload()
        killed.kill(block=False)  # before the waiter is woken
    killed.join(LONG)
    assert old.status == "closing"

    with pool.producer() as fresh:
        assert fresh.id == old.id


def test_waiter_of_a_dead_hub_gets_no_slot(hub):
    """No slot is handed to a greenlet that will never run again."""
    pool = ProducerPool(make, size=1)
    hubs = []

    def in_thread():
        hubs.append(gevent.get_hub())
        gevent.spawn(_hold_for, pool, 0)
        gevent.sleep(0.001)  # the thread ends with its greenlet in the queue

    with pool.producer():
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join(LONG)
        assert pool.stats == (1, 0, 1)
        deadline = time.monotonic() + LONG
        while not hubs[0].dead:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        hubs.pop().loop.destroy()

    assert pool.stats == (1, 1, 0)
    with pool.producer(0):
        pass


class SlotUser:
    """A greenlet for `test_no_slot_is_lost`: waits, then holds until it is released."""

    def __init__(self, pool, timeout):
        self.holds = False
        self.leave = gevent.event.Event()
        self.greenlet = gevent.spawn(self._run, pool, timeout)

    def _run(self, pool, timeout):
        with suppress(PoolTimeoutError), pool.producer(timeout), pool.producer():
            self.holds = True
            try:
                self.leave.wait(LONG)
            finally:
                self.holds = False


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["ask", "ask", "ask in a hurry", "leave", "kill", "reload", "tick", "wait"]
        ),
        st.integers(0, 9),
    ),
    max_size=40,
)


@pytest.mark.slow
@given(actions=ACTIONS, size=st.integers(1, 3))
@settings(deadline=None, max_examples=150)
def test_no_slot_is_lost(actions, size):
    """Whenever waits and blocks end, all slots are available afterwards.

    No task waits while a slot is free, and no two tasks have the same slot.
    """
    close_made()
    pool = ProducerPool(make, size=size)
    askers = []
    for action, number in actions:
        asker = askers[number % len(askers)] if askers else None
        if action.startswith("ask"):
            askers.append(SlotUser(pool, LONG if action == "ask" else 0.0005 * number))
        elif action == "leave" and asker:
            asker.leave.set()
        elif action == "kill" and asker:
            asker.greenlet.kill(block=False)
        elif action == "reload":
            pool.reload()
        elif action == "wait":
            gevent.sleep(0.001)
        elif action == "tick":
            gevent.sleep(0)
            gevent.sleep(0)
            held = sum(asker.holds for asker in askers)
            assert held + pool.available <= size
            assert not (pool.stats.waiting and pool.available)

    gevent.sleep(0.006)  # the timeouts of all impatient waiters are over
    assert sum(asker.holds for asker in askers) + pool.available == size
    for asker in askers:
        asker.leave.set()
    gevent.joinall([asker.greenlet for asker in askers], timeout=LONG)
    assert pool.stats == (size, size, 0)
    ids = _ids_of_all_slots(pool, size)
    assert sorted(ids) == [f"slot-{number}" for number in range(1, size + 1)]


def _ids_of_all_slots(pool, size):
    ids = []

    def use():
        with pool.producer(0) as producer:
            ids.append(producer.id)
            gevent.sleep(0.001)

    greenlets = [gevent.spawn(use) for _ in range(size)]
    gevent.joinall(greenlets, timeout=LONG, raise_error=True)
    return ids


@pytest.mark.slow
def test_no_slot_is_lost_between_threads_and_greenlets(hub):
    """Impatient threads and greenlets, kills, errors and reloads cost no slot."""
    pool = ProducerPool(make, size=3)
    random_ = random.Random(5)
    in_use = set()
    doubles = []
    ends = time.monotonic() + 1.0

    def use(sleep):
        chance = random.Random(random_.random())
        while time.monotonic() < ends:
            with (
                suppress(PoolTimeoutError, ZeroDivisionError),
                pool.producer(chance.random() * 0.002) as producer,
                alone(producer.id),
            ):
                sleep(chance.random() * 0.001)
                if chance.random() < 0.1:
                    raise ZeroDivisionError

    @contextmanager
    def alone(name):
        if name in in_use:
            doubles.append(name)
        in_use.add(name)
        try:
            yield
        finally:
            in_use.discard(name)

    threads = [threading.Thread(target=use, args=(time.sleep,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    greenlets = [gevent.spawn(use, gevent.sleep) for _ in range(6)]
    while time.monotonic() < ends:
        number = random_.randrange(6)
        greenlets[number].kill(block=False)
        greenlets[number] = gevent.spawn(use, gevent.sleep)
        gevent.sleep(random_.random() * 0.003)
        if random_.random() < 0.1:
            pool.reload()
    gevent.joinall(greenlets, timeout=LONG, raise_error=True)
    while any(thread.is_alive() for thread in threads):
        gevent.sleep(0.001)

    assert doubles == []
    assert pool.stats == (3, 3, 0)
    assert len(set(_ids_of_all_slots(pool, 3))) == 3


# -- real producers -------------------------------------------------------------------


@pytest.mark.slow
def test_pool_under_load_returns_all_reports(world, make_connected, spawn):
    """3 producers, 10 workers with 5 messages each: 50 reports."""
    pool = ProducerPool(make_connected, size=3)
    reports = []

    def work():
        for _ in range(5):
            with pool.producer() as producer:
                reports.append(producer.produce_sync(topic="t", payload=b"x"))

    tasks = [spawn(work) for _ in range(10)]
    for task in tasks:
        task.join(LONG)
    assert len({(report.partition, report.offset) for report in reports}) == 50
    assert pool.stats == (3, 3, 0)
    pool.close()


def test_producer_that_was_closed_is_replaced(world, make_connected):
    """If a task closes its producer, the next task gets a fresh one."""
    pool = ProducerPool(make_connected, size=1)
    with pool.producer() as broken:
        broken.produce_sync(topic="t", payload=b"x")
        broken.close()
        with pool.producer() as same:
            assert same is broken

    with pool.producer() as fresh:
        assert fresh is not broken
        assert fresh.id == broken.id == "slot-1"
        assert fresh.produce_sync(topic="t", payload=b"x")
    pool.close()


# -- reloading ------------------------------------------------------------------------


@pytest.mark.slow
def test_reload_closes_gracefully_and_keeps_the_slots(
    world, make_connected, hold, mock_cluster
):
    """Idle producers deliver their messages; fresh ones have the same slot numbers.

    In WaterDrop fresh producers got new numbers, which changed transactional ids.
    """
    pool = ProducerPool(make_connected, size=2)
    old = [hold(pool) for _ in range(2)]
    mock_cluster.round_trip(0.05)
    handles = [send(holder.producer)[0] for holder in old]
    for holder in old:
        holder.leave()

    pool.reload()

    assert all(handle.report for handle in handles)
    assert [holder.producer.status for holder in old] == ["closed", "closed"]
    assert pool.stats == (2, 2, 0)
    fresh = [hold(pool) for _ in range(2)]
    assert {new.producer for new in fresh}.isdisjoint(one.producer for one in old)
    assert sorted(one.producer.id for one in fresh) == ["slot-1", "slot-2"]


def test_reload_leaves_producers_in_use_open(world, make_connected, hold, until):
    """Producers in use go on, in nested blocks too, and are closed on return."""
    pool = ProducerPool(make_connected, size=1)
    with pool.producer() as old:
        pool.reload()
        assert old.produce_sync(topic="t", payload=b"x")
        with pool.producer() as same:
            assert same is old
        assert old.status == "connected"
        (handle,) = send(old)

    fresh = hold(pool)
    assert fresh.producer is not old
    assert fresh.producer.id == old.id
    until(lambda: old.status == "closed")
    assert handle.report
    assert fresh.producer.produce_sync(topic="t", payload=b"x")


@pytest.mark.slow
def test_reload_closes_no_producer_in_use(world, hold, spawn, until):
    """A task that comes while old producers close gets a fresh, open one."""
    pool = ProducerPool(make, size=2)
    old = [hold(pool) for _ in range(2)]
    for holder in old:
        send(holder.producer)
        holder.leave()

    def reload():
        with suppress(MessagesAbandonedError):
            pool.reload(timeout=0.2)

    reloading = spawn(reload)
    until(lambda: any(holder.producer.status == "closing" for holder in old))
    fresh = [hold(pool) for _ in range(2)]
    reloading.join(LONG)

    assert {each.producer.status for each in fresh} == {"configured"}
    assert {each.producer.status for each in old} == {"closed"}


def test_reload_includes_producers_that_are_being_made(world, spawn, until, pause):
    """A producer that was being made before a reload does not outlive it."""
    go = []
    made = []

    def factory(slot):
        while not go:
            pause(0.001)
        made.append(make(slot))
        return made[-1]

    pool = ProducerPool(factory, size=1)

    def use():
        with pool.producer():
            pass

    task = spawn(use)
    until(lambda: not pool.available)
    pool.reload()
    go.append(True)
    task.join(LONG)

    with pool.producer() as fresh:
        assert len(made) == 2
        assert fresh is made[1]
    until(lambda: made[0].status == "closed")


@pytest.mark.slow
def test_returning_an_old_producer_does_not_wait(world, until):
    """The task goes on, although its messages can't be delivered."""
    pool = ProducerPool(lambda: Producer(NOWHERE, max_wait_timeout=0.3), size=1)
    with ExitStack() as stack:
        old = stack.enter_context(pool.producer())
        (handle,) = send(old)
        pool.reload()
        with at_most(0.2):
            stack.close()

    assert not handle.done
    with at_most(QUICK):
        until(lambda: old.status == "closed")
    assert isinstance(handle.error, MessagePurgedError)


def test_reload_raises_for_undelivered_messages(world):
    """Reload waits for deliveries as long as its timeout allows, and completes."""
    pool = ProducerPool(make, size=1)
    with pool.producer() as old:
        send(old, 3)

    with (
        at_most(QUICK),
        pytest.raises(MessagesAbandonedError, match=r"0\.1 s") as raised,
    ):
        pool.reload(timeout=0.1)

    assert raised.value.count == 3
    with pool.producer(0) as fresh:
        assert fresh is not old


def test_closed_pool_is_not_reloaded(world):
    """A closed pool has no producers to replace."""
    pool = ProducerPool(make)
    pool.close()

    with pytest.raises(PoolClosedError):
        pool.reload()


# -- closing --------------------------------------------------------------------------


@pytest.mark.slow
def test_close_delivers_first(world, make_connected, hold, mock_cluster):
    """Closing delivers the messages of all producers."""
    pool = ProducerPool(make_connected, size=3)
    holders = [hold(pool) for _ in range(3)]
    mock_cluster.round_trip(0.05)
    handles = [send(holder.producer, 10) for holder in holders]
    for holder in holders:
        holder.leave()

    pool.close()

    assert all(handle.report for each in handles for handle in each)
    assert {holder.producer.status for holder in holders} == {"closed"}


@pytest.mark.parametrize("used", [False, True])
def test_closed_pool_has_no_producers(world, used):
    """Later requests raise; closing again does nothing."""
    pool = ProducerPool(make, size=2)
    if used:
        with pool.producer():
            pass
    pool.close()
    with at_most(QUICK):
        pool.close()
        pool.close(force=True)

    for _ in range(2):
        with pytest.raises(PoolClosedError, match="is closed"), pool.producer():
            pass
    assert pool.stats == (2, 0, 0)


def test_waiters_fail_at_once_when_the_pool_closes(world, hold, until):
    """Waiters of a closed pool fail at once instead of timing out."""
    pool = ProducerPool(make, size=1)
    hold(pool)
    waiters = [hold(pool, waits=True) for _ in range(3)]

    with at_most(QUICK):
        pool.close()
        until(lambda: all(waiter.error for waiter in waiters))

    assert {type(waiter.error) for waiter in waiters} == {PoolClosedError}
    assert pool.stats == (1, 0, 0)


def test_producers_in_use_are_closed_on_return(
    world, make_connected, mock_cluster, until
):
    """They work until then, and their messages are delivered."""
    pool = ProducerPool(make_connected, size=1)
    with pool.producer() as producer:
        pool.close()
        with pool.producer() as same:
            assert same.produce_sync(topic="t", payload=b"x")
        mock_cluster.round_trip(0.05)
        (handle,) = send(producer)

    until(lambda: producer.status == "closed")
    assert handle.report


@pytest.mark.parametrize("forced", ["at first", "later"])
def test_messages_of_producers_in_use_are_dropped_only_by_force(world, forced, until):
    """With `force`, messages of a producer that comes back are not waited for."""
    pool = ProducerPool(make, size=1)
    with pool.producer() as producer:
        handles = send(producer, 3)
        pool.close(force=forced == "at first")
        pool.close(force=forced == "later")
        pool.close()  # with nothing to take back

    with at_most(QUICK):
        until(lambda: producer.status == "closed")
    assert all(isinstance(handle.error, MessagePurgedError) for handle in handles)


def test_loss_of_a_producer_returned_late_is_logged(world, caplog, until):
    """No caller could catch the error."""
    pool = ProducerPool(make, size=1)
    with pool.producer() as producer:
        send(producer, 3)
        pool.close(timeout=0.05)

    until(lambda: "'slot-1' is closed; 3 messages were not delivered" in caplog.text)
    assert producer.status == "closed"


@pytest.mark.slow
def test_one_timeout_is_for_all_producers_together(world, hold):
    """Closing four takes as long as closing one; dropped messages are summed up."""
    pool = ProducerPool(make, size=4)
    holders = [hold(pool) for _ in range(4)]
    for number, holder in enumerate(holders):
        send(holder.producer, number)
        holder.leave()

    started = time.monotonic()
    with pytest.raises(
        MessagesAbandonedError, match=r"^6 messages .* 0\.3 s"
    ) as raised:
        pool.close(timeout=0.3)

    assert 0.29 < time.monotonic() - started < 0.9
    assert raised.value.count == 6
    assert {holder.producer.status for holder in holders} == {"closed"}


@pytest.mark.slow
def test_default_timeout_is_the_longest_of_the_producers(world, hold):
    """As in `Producer.close`, but for all producers together."""
    pool = ProducerPool(
        lambda slot: Producer(NOWHERE, max_wait_timeout=slot * 0.1), size=3
    )
    holders = [hold(pool) for _ in range(3)]
    for holder in holders:
        send(holder.producer)
        holder.leave()

    started = time.monotonic()
    with pytest.raises(MessagesAbandonedError):
        pool.close()

    assert 0.29 < time.monotonic() - started < 0.9


@pytest.mark.slow
def test_close_reports_buffered_messages_of_all_producers(world, hold):
    """The error has them, since the pool's producers can't be reached any more."""
    pool = ProducerPool(
        lambda: Producer({**NOWHERE, "message.timeout.ms": 300}), size=2
    )
    holders = [hold(pool) for _ in range(2)]
    for number, holder in enumerate(holders):
        holder.producer.buffer(topic="t", payload=str(number))
        holder.leave()

    with pytest.raises(MessagesAbandonedError, match="buffered") as raised:
        pool.close()

    assert raised.value.count == 2
    assert {each.payload for each in raised.value.buffered} == {"0", "1"}


@pytest.mark.slow
def test_loss_of_a_replaced_transactional_producer_is_logged(world, spawn, caplog):
    """The task that waits for the old producer may be the one that closes it."""
    kafka = {**NOWHERE, "transaction.timeout.ms": 1000}
    pool = ProducerPool(
        lambda slot: Producer(
            {**kafka, "transactional.id": f"{slot}"}, id=f"{slot}", max_wait_timeout=2
        ),
        size=2,
    )
    with pool.producer() as one, pool.producer() as two:
        old = [one, two]
        for each in old:
            each.buffer(topic="t", payload="x")
    lost = []

    def reload():
        try:
            pool.reload()
        except MessagesAbandonedError as error:
            lost.extend(error.buffered)

    task = spawn(reload)
    with pool.producer(), pool.producer():
        pass
    task.join(LONG)

    assert {each.status for each in old} == {"closed"}
    logged = caplog.text.count("1 buffered message was not delivered")
    assert len(lost) + logged == 2
    pool.close(force=True)


def test_forced_close_drops_at_once(world, hold):
    """`force` waits for nothing and raises nothing."""
    pool = ProducerPool(make, size=2)
    holders = [hold(pool) for _ in range(2)]
    handles = [send(holder.producer)[0] for holder in holders]
    for holder in holders:
        holder.leave()

    with at_most(QUICK):
        pool.close(force=True)

    assert all(isinstance(handle.error, MessagePurgedError) for handle in handles)


def test_all_producers_are_closed_when_closing_is_interrupted(hub):
    """A `gevent.Timeout` ends the wait, and no producer stays open."""
    pool = ProducerPool(make, size=3)
    producers = []

    def use():
        with pool.producer() as producer:
            producers.append(producer)
            send(producer)
            gevent.sleep(0.01)

    gevent.joinall([gevent.spawn(use) for _ in range(3)], raise_error=True)
    assert len(set(producers)) == 3

    with at_most(QUICK), pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        pool.close()

    assert {producer.status for producer in producers} == {"closed"}


def test_all_producers_are_closed_when_one_fails(world, hold):
    """An interrupt in a listener is raised by `close` after all are closed."""
    pool = ProducerPool(make, size=3)
    holders = [hold(pool) for _ in range(3)]

    def interrupt(event):
        raise KeyboardInterrupt

    holders[1].producer.monitor.subscribe("producer.closing", interrupt)
    for holder in holders:
        holder.leave()

    with pytest.raises(KeyboardInterrupt):
        pool.close()

    assert {holder.producer.status for holder in holders} == {"closed"}


def test_close_in_the_hub_continues_in_the_background(hub, make_connected):
    """The hub can't wait, so `close` returns at once."""
    pool = ProducerPool(make_connected, size=1)
    with pool.producer() as producer:
        (handle,) = send(producer)

    hub.loop.run_callback(pool.close)
    deadline = time.monotonic() + LONG
    while producer.status != "closed":
        assert time.monotonic() < deadline
        gevent.sleep(0.001)

    assert handle.report
    with pytest.raises(PoolClosedError), pool.producer():
        pass


def test_leaving_the_block_closes_the_pool(world, make_connected):
    """Leaving the block closes the pool, and delivers messages in flight."""
    with ProducerPool(make_connected) as pool, pool.producer() as producer:
        (handle,) = send(producer)

    pool.close()
    assert handle.report


@pytest.mark.parametrize("fails", [False, True])
def test_leaving_the_block_raises_for_undelivered_messages(world, fails):
    """An error of the block is not hidden by a second one."""
    pool = ProducerPool(lambda: Producer(NOWHERE, max_wait_timeout=0.05))
    with pool.producer() as producer:
        send(producer)

    error = ZeroDivisionError if fails else MessagesAbandonedError
    with pytest.raises(error), pool:
        1 / (not fails)

    assert producer.status == "closed"


# -- inspecting -----------------------------------------------------------------------


def test_inspecting_a_pool_does_not_block(world, hold):
    """Sizes and repr describe how the pool is used, and make no producer."""
    pool = ProducerPool(make, size=2)
    assert (pool.size, pool.available) == (2, 2)
    assert repr(pool) == "<ProducerPool 2 of 2 available, 0 waiting>"
    hold(pool)
    hold(pool)
    hold(pool, waits=True)

    with at_most(QUICK), _locked(pool):
        assert pool.stats == PoolStats(size=2, available=0, waiting=1)
        assert repr(pool) == "<ProducerPool 0 of 2 available, 1 waiting>"
    pool.close()
    assert repr(pool) == "<ProducerPool closed, 0 waiting>"


@contextmanager
def _locked(pool):
    """Hold a lock in another thread."""
    locked, done = threading.Event(), threading.Event()

    def work():
        with pool._lock:
            locked.set()
            done.wait(LONG)

    thread = threading.Thread(target=work)
    thread.start()
    locked.wait(LONG)
    yield
    done.set()
    thread.join(LONG)


# -- the default pool -----------------------------------------------------------------


@pytest.fixture
def no_default_pool():
    """Remove the default pool before and after a test."""
    set_default_pool(None)
    yield
    set_default_pool(None)


def test_default_pool_is_the_one_that_was_set(no_default_pool):
    """Until the default pool is set there is none, and the error says what to do."""
    with pytest.raises(PoolNotConfiguredError, match=r"call set_default_pool\("):
        default_pool()
    first, second = ProducerPool(make), ProducerPool(make)

    assert set_default_pool(first) is None
    assert default_pool() is first
    assert set_default_pool(second) is first
    assert default_pool() is second
    assert set_default_pool(None) is second
    with pytest.raises(PoolNotConfiguredError):
        default_pool()
