import contextlib
import linecache
import os
import select
import sys
import threading
import time

import gevent
import pytest

from greendrop import _concurrency
from greendrop._concurrency.waiters import GreenletWaiter, ThreadWaiter
from greendrop._concurrency.wakeup import WakeupFd
from greendrop.errors import IllegalWaitError

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 10.0


def in_thread(function):
    """Run a function in a native thread, wait for it, and return its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(LONG)
    return results[0]


def in_hub(hub, function):
    """Call a function in the hub, as a callback of gevent's loop; return its result."""
    results = []

    def call():
        try:
            results.append(function())
        except Exception as error:  # noqa: BLE001 - raised in the test
            results.append(error)

    hub.loop.run_callback(call)
    while not results:
        gevent.sleep(0.001)
    return results[0]


# -- kinds of waits --------------------------------------------------------------------


def test_thread_without_a_hub_blocks():
    """In a thread without greenlets, waiting blocks the thread."""
    assert _concurrency.current_hub() is None
    assert isinstance(_concurrency.new_waiter(), ThreadWaiter)


def test_thread_with_a_hub_switches(hub):
    """In a thread with greenlets, waiting lets them run."""
    assert _concurrency.current_hub() is hub
    assert isinstance(_concurrency.new_waiter(), GreenletWaiter)


def test_calling_thread_decides_the_kind_of_wait(hub):
    """The main thread's hub does not affect other threads."""
    assert isinstance(in_thread(_concurrency.new_waiter), ThreadWaiter)


def test_looking_for_a_hub_makes_none():
    """Looking for a hub does not make one."""
    _concurrency.new_waiter()

    assert gevent._hub_local.get_hub_if_exists() is None


def test_hub_can_not_wait(hub):
    """A wait in the hub would never end, so it is refused."""
    answer = in_hub(hub, _concurrency.new_waiter)

    assert isinstance(answer, IllegalWaitError)


def test_hub_is_recognised(hub):
    """Only a callback of the loop runs in the hub."""
    assert not _concurrency.in_hub()
    assert in_hub(hub, _concurrency.in_hub) is True


def test_tasks_are_distinguished(hub):
    """Each greenlet is a task of its own, and so is each thread."""
    tasks = [
        _concurrency.current_task(),
        gevent.spawn(_concurrency.current_task).get(),
        in_thread(_concurrency.current_task),
    ]

    assert len(set(tasks)) == 3
    assert _concurrency.current_task() == tasks[0]


def test_thread_that_gets_a_hub_stays_the_same_task(request):
    """A main greenlet has its thread's identity, which its first wait keeps."""
    before = _concurrency.current_task()
    request.getfixturevalue("hub")

    assert _concurrency.current_task() == before


def test_destroyed_hub_is_dead(hub):
    """A destroyed hub runs nothing any more."""
    assert not _concurrency.hub_is_dead(hub)

    hub.destroy(destroy_loop=True)

    assert _concurrency.hub_is_dead(hub)


def test_hub_of_an_ended_thread_is_dead():
    """A hub whose thread has ended keeps its loop, but runs nothing."""

    def use():
        gevent.sleep(0)
        return gevent.get_hub()

    hub = in_thread(use)
    try:
        # The thread's greenlets die a moment after `join` has returned.
        deadline = time.monotonic() + LONG
        while not _concurrency.hub_is_dead(hub):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert hub.loop is not None
    finally:
        hub.loop.destroy()


# -- waiters --------------------------------------------------------------------------


@pytest.fixture(params=["thread", "greenlet"])
def new_waiter(request):
    """Make waiters of either kind, for the test's own thread."""
    if request.param == "greenlet":
        request.getfixturevalue("hub")
    return _concurrency.new_waiter


def test_wake_ends_a_wait(new_waiter):
    """Another thread wakes the waiter."""
    waiter = new_waiter()
    timer = threading.Timer(0.02, waiter.wake)
    timer.start()
    started = time.monotonic()

    assert waiter.wait(LONG) is True
    assert time.monotonic() - started < LONG / 2
    timer.join()


def test_wake_before_the_wait_counts(new_waiter):
    """A waiter that was woken before does not wait at all."""
    waiter = new_waiter()
    waiter.wake()

    assert waiter.wait(LONG) is True


def test_wake_from_another_thread_before_the_wait_counts(new_waiter):
    """The wake-up may come first from another thread too."""
    waiter = new_waiter()
    in_thread(waiter.wake)

    assert waiter.wait(LONG) is True


def test_waking_twice_is_waking_once(new_waiter):
    """Several wake-ups have the effect of one."""
    waiter = new_waiter()
    for _ in range(3):
        waiter.wake()

    assert waiter.wait(LONG) is True
    waiter.wake()


def test_wait_ends_after_its_timeout(new_waiter):
    """A waiter that is not woken returns False after about its timeout."""
    started = time.monotonic()

    assert new_waiter().wait(0.02) is False
    assert 0.015 <= time.monotonic() - started < LONG / 2


@pytest.mark.parametrize("seconds", [0, -1, -0.0])
def test_wait_without_a_timeout_returns_at_once(new_waiter, seconds):
    """With a timeout of 0 or less the wait returns at once."""
    assert new_waiter().wait(seconds) is False


def test_wait_may_be_as_long_as_a_day(new_waiter):
    """A timeout longer than a lock supports is no OverflowError."""
    waiter = new_waiter()
    waiter.wake()

    assert waiter.wait(1e12) is True


def test_wake_after_the_timeout_has_no_effect(new_waiter):
    """A late wake-up does not disturb what the task does next."""
    waiter = new_waiter()
    assert waiter.wait(0.001) is False

    waiter.wake()
    started = time.monotonic()
    gevent.sleep(0.02)

    assert time.monotonic() - started >= 0.019


def test_wait_can_be_repeated_after_the_timeout(new_waiter):
    """A wait in several parts misses no wake-up between them."""
    waiter = new_waiter()
    assert waiter.wait(0.001) is False
    waiter.wake()

    assert waiter.wait(LONG) is True


def test_many_wakes_race_with_the_wait(new_waiter):
    """A wake-up is not lost, whether it comes before or during the wait."""
    for _ in range(200):
        waiter = new_waiter()
        thread = threading.Thread(target=waiter.wake)
        thread.start()
        assert waiter.wait(LONG) is True
        thread.join()


def test_greenlets_run_while_one_waits(longest_gap):
    """Waiting with a hub lets other greenlets run."""
    with longest_gap() as gap:
        _concurrency.new_waiter().wait(0.2)

    assert gap.seconds < 0.1
    assert gap.ticks > 20


def test_lone_greenlet_may_wait(hub):
    """With nothing else to wait for in the program, gevent raises no LoopExit."""
    assert _concurrency.new_waiter().wait(0.01) is False


def test_killed_greenlet_stops_waiting(hub):
    """A kill ends the wait, and a late wake-up has no effect."""
    waiters = []

    def wait():
        waiters.append(_concurrency.new_waiter())
        waiters[0].wait(LONG)

    greenlet = gevent.spawn(wait)
    gevent.sleep(0.01)
    greenlet.kill(timeout=LONG)
    waiters[0].wake()
    gevent.sleep(0.01)

    assert greenlet.dead
    assert isinstance(greenlet.value, gevent.GreenletExit)


def test_gevent_timeout_ends_a_wait(hub):
    """A `gevent.Timeout` around a wait works as around any other call."""
    waiter = _concurrency.new_waiter()
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
        waiter.wait(LONG)

    waiter.wake()
    assert waiter.wait(LONG) is True


# -- the shared timer ------------------------------------------------------------------


@pytest.fixture
def shared_timer(hub):
    """Make a timer that is shared by the waiting greenlets of this hub."""
    shared_timer = _concurrency.SharedTimer(hub)
    yield shared_timer
    shared_timer.close()


def test_slice_of_a_wait_ends_when_woken(hub, shared_timer):
    """The wake-up may come from its own hub's greenlets, or from a thread."""
    for wake in (lambda waiter: waiter.wake(), lambda waiter: in_thread(waiter.wake)):
        waiter = _concurrency.waiter_in(hub, shared_timer)
        gevent.spawn(wake, waiter)

        assert waiter.wait_slice(LONG) is True


def test_slice_of_a_wait_ends_by_the_shared_timer(hub, shared_timer):
    """A waiter that is not woken returns after a slice, and may wait on."""
    waiters = [_concurrency.waiter_in(hub, shared_timer)]

    def wait():
        waiter = _concurrency.waiter_in(hub, shared_timer)
        waiters.append(waiter)
        return waiter.wait_slice(LONG)

    others = [gevent.spawn(wait) for _ in range(3)]
    started = time.monotonic()
    assert waiters[0].wait_slice(LONG) is False
    assert time.monotonic() - started < LONG / 2
    assert [each.get(timeout=LONG) for each in others] == [False] * 3

    gevent.spawn(waiters[0].wake)
    assert waiters[0].wait_slice(LONG) is True


def test_short_timeout_does_not_use_the_shared_timer(hub, shared_timer):
    """Its own timeout ends before the slice does."""
    started = time.monotonic()

    assert _concurrency.waiter_in(hub, shared_timer).wait_slice(0.02) is False
    assert time.monotonic() - started < GreenletWaiter.SLICE / 2


def test_killed_greenlet_leaves_the_shared_timer(hub, shared_timer):
    """A late wake-up does not switch into the killed greenlet."""
    waiters = []

    def wait():
        waiters.append(_concurrency.waiter_in(hub, shared_timer))
        try:
            waiters[0].wait_slice(LONG)
        finally:
            gevent.sleep(0.05)
        return "not reached"

    greenlet = gevent.spawn(wait)
    gevent.sleep(0)
    greenlet.kill(block=False)
    gevent.sleep(0)
    waiters[0].wake()
    waiters[0].time_out()
    greenlet.join(LONG)

    assert isinstance(greenlet.value, gevent.GreenletExit)


def test_shared_timer_holds_the_loop_while_greenlets_wait(hub, shared_timer):
    """Otherwise a lone waiter would get LoopExit; later the loop is released."""
    waiter = _concurrency.waiter_in(hub, shared_timer)
    threading.Timer(0.05, waiter.wake).start()
    assert waiter.wait_slice(LONG) is True

    assert not shared_timer._timer.active


def test_shared_timer_forgets_interrupted_greenlets(hub, shared_timer, monkeypatch):
    """A signal handler may raise at any step of leaving; the loop is released."""
    waiter = _concurrency.waiter_in(hub, shared_timer)
    gevent.spawn(waiter.wake)
    with monkeypatch.context() as patch:
        patch.setattr(_concurrency.SharedTimer, "discard", lambda *_: None)
        assert waiter.wait_slice(LONG) is True

    gevent.sleep(GreenletWaiter.SLICE)

    assert not shared_timer._timer.active
    assert not shared_timer._new
    assert not shared_timer._old


def test_closing_the_shared_timer_wakes_all(hub, shared_timer):
    """Waiting greenlets return; later ones use timers of their own."""
    waiter = _concurrency.waiter_in(hub, shared_timer)
    gevent.spawn(shared_timer.close)
    started = time.monotonic()
    assert waiter.wait_slice(LONG) is False
    assert time.monotonic() - started < GreenletWaiter.SLICE / 2

    gevent.spawn_later(0.02, waiter.wake)
    assert waiter.wait_slice(LONG) is True


def test_greenlet_of_another_hub_is_woken(hub):
    """A waiter of another thread's hub is woken from this thread."""
    made = []

    def wait():
        gevent.get_hub()
        made.append(_concurrency.new_waiter())
        result = made[0].wait(LONG)
        gevent.get_hub().destroy(destroy_loop=True)
        return result

    results = []
    thread = threading.Thread(target=lambda: results.append(wait()))
    thread.start()
    while not made:
        gevent.sleep(0.001)
    gevent.sleep(0.01)
    made[0].wake()
    thread.join(LONG)

    assert results == [True]


def tracer_of(code, on_operation):
    """Return a trace function that calls another at each operation of some code."""

    def trace(frame, event, _):
        if event == "call" and frame.f_code is code:
            frame.f_trace_opcodes = True
            return on_operation
        return None

    return trace


def test_a_late_wake_up_does_nothing_after_an_interrupt_at_the_begin_of_a_wait(hub):
    """The greenlet would be resumed in the middle of its next wait."""
    code = GreenletWaiter._sleep.__code__
    number = count = 0
    reached_switch = False

    def on_operation(frame, *_):
        nonlocal count, reached_switch
        count += 1  # lines only where Python traces no operations
        if "hub.switch()" in linecache.getline(code.co_filename, frame.f_lineno):
            reached_switch = True
            sys.settrace(None)
            return None
        if count == number:
            sys.settrace(None)
            raise KeyboardInterrupt
        return on_operation

    while not reached_switch:
        number, count = number + 1, 0
        waiter = _concurrency.new_waiter()
        sys.settrace(tracer_of(code, on_operation))
        try:
            waiter.wait(0.01)
        except KeyboardInterrupt:
            waiter.wake()
        gevent.sleep(0.002)

    assert number > 1


@pytest.mark.parametrize("end", [GreenletWaiter.wake, GreenletWaiter.time_out])
def test_an_interrupted_wake_up_does_not_resume_the_next_wait(hub, hub_errors, end):
    """A signal handler may raise before or after the switch is scheduled."""
    number = count = 0
    interrupted = True

    def on_operation(*_):
        nonlocal count
        count += 1  # lines only where Python traces no operations
        if count == number:
            sys.settrace(None)
            raise KeyboardInterrupt
        return on_operation

    def interrupt():
        sys.settrace(tracer_of(end.__code__, on_operation))
        try:
            end(waiter)
        finally:
            sys.settrace(None)

    while interrupted:
        number, count = number + 1, 0
        waiter = _concurrency.new_waiter()
        gevent.spawn(interrupt)
        try:
            waiter.wait(LONG)
        except KeyboardInterrupt:
            gevent.sleep(0.002)
        else:
            interrupted = False

    assert number > 1
    hub_errors.clear()


def test_waking_in_a_dead_hub_is_ignored(hub):
    """A destroyed hub has no waiters to wake."""
    waiter = _concurrency.new_waiter()
    assert not waiter.is_dead
    hub.destroy(destroy_loop=True)

    waiter.wake()
    assert waiter.is_dead


def test_waiter_of_a_thread_is_never_dead():
    """A waiting thread can be woken as long as it runs."""
    assert not _concurrency.new_waiter().is_dead


# -- calls in threads ------------------------------------------------------------------


def test_thread_call_without_a_hub_is_made_directly():
    """Without other greenlets to run, a second thread would be of no use."""
    assert (
        _concurrency.run_in_thread(LONG, _concurrency.get_ident)
        == _concurrency.get_ident()
    )


@pytest.mark.slow
def test_thread_call_with_a_hub_lets_greenlets_run(longest_gap):
    """A blocking call blocks another thread than the hub's."""
    with longest_gap() as gap:
        ident = _concurrency.run_in_thread(
            LONG, lambda: (time.sleep(0.3), _concurrency.get_ident())[1]
        )

    assert ident != _concurrency.get_ident()
    assert gap.seconds < 0.15


@pytest.mark.parametrize("with_hub", [False, True])
def test_thread_call_raises_its_error(request, with_hub):
    """An error of the call is raised in the caller."""
    if with_hub:
        request.getfixturevalue("hub")

    with pytest.raises(ZeroDivisionError):
        _concurrency.run_in_thread(LONG, divmod, 1, 0)


def test_thread_call_that_takes_too_long_goes_on(hub):
    """The caller goes on after its timeout, with a TimeoutError."""
    go = threading.Event()
    ended = threading.Event()

    def work():
        go.wait(LONG)
        ended.set()

    with pytest.raises(TimeoutError, match=r"within 0.02 s"):
        _concurrency.run_in_thread(0.02, work)

    go.set()
    assert ended.wait(LONG)


def test_thread_call_in_the_hub_is_not_waited_for(hub):
    """The hub can't wait for the call, so it runs in the background."""
    ended = threading.Event()

    assert in_hub(hub, lambda: _concurrency.run_in_thread(LONG, ended.set)) is None
    assert ended.wait(LONG)


def test_start_runs_in_a_thread_without_a_hub():
    """Without a hub the function runs in a new thread."""
    idents = []
    ended = threading.Event()
    _concurrency.spawn(lambda: (idents.append(_concurrency.get_ident()), ended.set()))

    assert ended.wait(LONG)
    assert idents != [_concurrency.get_ident()]


def test_start_runs_in_a_greenlet_with_a_hub(hub):
    """With a hub the function runs in a greenlet of that hub."""
    idents = []
    _concurrency.spawn(lambda: idents.append(_concurrency.get_ident()))
    assert idents == []
    gevent.sleep(0.01)

    assert idents == [_concurrency.get_ident()]


def test_a_background_task_is_alive_from_its_start_to_its_end(world, until):
    """A task is alive after its start, also before the function is called."""
    ended = []

    def work():
        _concurrency.new_waiter().wait(0.05)
        ended.append(1)

    task = _concurrency.BackgroundTask(work)
    assert not task.is_alive
    task.start()
    assert task.is_alive

    until(lambda: not task.is_alive)
    assert ended


def test_a_background_task_that_raised_is_not_alive(hub, hub_errors):
    """The exception of a signal handler ends a task."""
    task = _concurrency.BackgroundTask(int, "x")
    task.start()

    gevent.sleep(0.01)

    hub_errors.clear()
    assert not task.is_alive


def test_a_background_task_of_a_dead_hub_is_not_alive(hub):
    """A task never ends, and does no more, once its hub has died."""
    task = _concurrency.BackgroundTask(gevent.sleep, LONG)
    task.start()
    gevent.sleep(0.01)
    assert task.is_alive

    hub.destroy(destroy_loop=True)

    assert not task.is_alive


def test_yield_lets_others_run_once(hub):
    """Other greenlets run once; in the hub itself nothing happens."""
    turns = []
    gevent.spawn(turns.append, 1)

    _concurrency.yield_to_hub()

    assert turns == [1]
    assert in_hub(hub, _concurrency.yield_to_hub) is None


def test_yield_without_a_hub_does_nothing():
    """Threads need no yield, and no hub is made."""
    _concurrency.yield_to_hub()

    assert gevent._hub_local.get_hub_if_exists() is None


# -- the wake-up descriptor ------------------------------------------------------------


class PipeWakeup(WakeupFd):
    """A wake-up descriptor as on platforms without eventfd (macOS)."""

    __slots__ = ()

    @staticmethod
    def _open():
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        return read, write


@pytest.fixture(params=[WakeupFd, PipeWakeup])
def signal(request):
    """Make a wake-up descriptor of either kind."""
    made = request.param()
    yield made
    made.close()


def readable(signal):
    """Return whether the descriptor is readable now."""
    poll = select.poll()
    poll.register(signal.read_fd, select.POLLIN)
    return bool(poll.poll(0))


def clear(signal):
    """Read what was written to the descriptor, as a poller does."""
    with contextlib.suppress(OSError):
        os.read(signal.read_fd, 4096)


def fill(signal):
    """Write until the descriptor is full."""
    most = (2**64 - 2).to_bytes(8, "little")
    try:
        while True:
            os.write(signal.write_fd, most)
    except BlockingIOError:
        return


def test_wakeup_is_readable_while_set(signal):
    """The descriptor is readable while set, and not when cleared, repeatedly."""
    for _ in range(2):
        assert not readable(signal)
        signal.set()
        assert readable(signal)
        clear(signal)
    assert not readable(signal)


def test_wakeup_set_many_times_is_cleared_by_one_clear(signal):
    """One clear is enough, however often it was set."""
    for _ in range(100):
        signal.set()
    clear(signal)

    assert not readable(signal)


def test_clearing_an_unset_wakeup_does_not_block(signal):
    """Clearing returns at once when there is nothing to clear."""
    clear(signal)

    assert not readable(signal)


def test_wakeup_blocks_at_neither_end(signal):
    """A blocking descriptor would block librdkafka while it holds its lock."""
    assert not os.get_blocking(signal.read_fd)
    assert not os.get_blocking(signal.write_fd)
    assert not os.get_inheritable(signal.read_fd)
    assert not os.get_inheritable(signal.write_fd)


def test_full_wakeup_can_be_set_again(signal):
    """A descriptor that is never cleared can be set any number of times."""
    fill(signal)

    signal.set()

    assert readable(signal)


def test_full_wakeup_can_be_cleared(signal):
    """A full descriptor is empty after a few clears, and works as before."""
    fill(signal)
    clears = 0
    while readable(signal):
        clear(signal)
        clears += 1
    signal.set()

    assert readable(signal)
    assert clears < 100


@pytest.mark.parametrize("kind", [WakeupFd, PipeWakeup])
def test_closed_wakeup_ignores_being_set(kind):
    """A thread may set it a moment too late."""
    signal = kind()
    signal.close()

    signal.set()
    clear(signal)


def test_renewed_wakeup_has_the_same_numbers_and_new_descriptors(signal):
    """The new descriptor has the same number and shares nothing with the old one.

    A forked child that reads the parent's wake-ups would take them from the parent.
    """
    numbers = signal.read_fd, signal.write_fd
    old_read, old_write = os.dup(numbers[0]), os.dup(numbers[1])
    signal.set()

    signal.renew()

    assert (signal.read_fd, signal.write_fd) == numbers
    assert not readable(signal)
    os.write(old_write, (1).to_bytes(8, "little"))
    assert not readable(signal)
    signal.set()
    assert readable(signal)
    clear(signal)
    assert os.read(old_read, 4096)
    os.close(old_read)
    os.close(old_write)


def test_renewed_wakeup_has_the_flags_of_a_new_one(signal):
    """After renewing, neither end blocks or is inherited by other programs."""
    signal.renew()

    assert not os.get_blocking(signal.read_fd)
    assert not os.get_blocking(signal.write_fd)
    assert not os.get_inheritable(signal.read_fd)
    assert not os.get_inheritable(signal.write_fd)


def test_child_does_not_take_the_parents_wakeups(signal):
    """In a forked child, a renewed descriptor gets no wake-ups of the parent."""
    signal.set()
    pid = os.fork()
    if not pid:
        signal.renew()
        clear(signal)
        os._exit(0)
    os.waitpid(pid, 0)

    assert readable(signal)


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("mode", ["unpatched", "patched", "late"])
def test_descriptors_are_closed_at_once(mode, run_script):
    """They are not closed in a later turn of the hub, as by gevent's `os.close`."""
    run_script(
        """
        import gevent, os
        from greendrop._concurrency.wakeup import WakeupFd

        gevent.sleep(0)
        signal = WakeupFd()
        fd = signal.read_fd
        os.fstat(fd)
        signal.close()
        try:
            os.fstat(fd)
        except OSError:
            pass
        else:
            raise AssertionError("still open")
        """,
        mode,
    )
