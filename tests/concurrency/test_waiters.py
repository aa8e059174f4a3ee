import os
import select
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
    """Run a function in a native thread, let this one wait, and give the result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(LONG)
    return results[0]


def in_hub_itself(hub, function):
    """Call a function in the hub, as a callback of gevent's loop; give the result."""
    results = []

    def call():
        try:
            results.append(function())
        except Exception as error:  # noqa: BLE001 - told to the test
            results.append(error)

    hub.loop.run_callback(call)
    while not results:
        gevent.sleep(0.001)
    return results[0]


# -- which kind -----------------------------------------------------------------------


def test_thread_without_a_hub_blocks():
    """Where no greenlet lives, waiting is plain blocking."""
    assert _concurrency.current_hub() is None
    assert isinstance(_concurrency.new_waiter(), ThreadWaiter)


def test_thread_with_a_hub_switches(hub):
    """Where greenlets live, waiting lets them run."""
    assert _concurrency.current_hub() is hub
    assert isinstance(_concurrency.new_waiter(), GreenletWaiter)


def test_choice_is_made_by_the_calling_thread(hub):
    """The main thread's hub says nothing about other threads."""
    assert isinstance(in_thread(_concurrency.new_waiter), ThreadWaiter)


def test_asking_makes_no_hub():
    """To look for a hub doesn't make one."""
    _concurrency.new_waiter()

    assert gevent._hub_local.get_hub_if_exists() is None


def test_hub_itself_can_not_wait(hub):
    """Whoever would wait in the hub would wait for ever, so it is refused."""
    answer = in_hub_itself(hub, _concurrency.new_waiter)

    assert isinstance(answer, IllegalWaitError)


def test_hub_itself_is_known(hub):
    """Only a callback of the loop runs in the hub."""
    assert not _concurrency.in_hub()
    assert in_hub_itself(hub, _concurrency.in_hub) is True


def test_tasks_are_told_apart(hub):
    """Each greenlet is a task of its own, and so is each thread."""
    tasks = [
        _concurrency.current_task(),
        gevent.spawn(_concurrency.current_task).get(),
        in_thread(_concurrency.current_task),
    ]

    assert len(set(tasks)) == 3
    assert _concurrency.current_task() == tasks[0]


def test_thread_that_gets_a_hub_stays_the_same_task(request):
    """A main greenlet goes by its thread, so that its first wait changes nothing."""
    before = _concurrency.current_task()
    request.getfixturevalue("hub")

    assert _concurrency.current_task() == before


def test_destroyed_hub_is_gone(hub):
    """Nothing runs on a destroyed hub any more."""
    assert not _concurrency.hub_is_dead(hub)

    hub.destroy(destroy_loop=True)

    assert _concurrency.hub_is_dead(hub)


def test_hub_of_a_thread_that_ended_is_gone():
    """A hub whose thread has ended keeps its loop, and yet nothing runs there."""

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
    """Another thread wakes the one who waits."""
    waiter = new_waiter()
    timer = threading.Timer(0.02, waiter.wake)
    timer.start()
    began = time.monotonic()

    assert waiter.wait(LONG) is True
    assert time.monotonic() - began < LONG / 2
    timer.join()


def test_wake_before_the_wait_counts(new_waiter):
    """A waiter that was woken first doesn't wait at all."""
    waiter = new_waiter()
    waiter.wake()

    assert waiter.wait(LONG) is True


def test_wake_from_another_thread_before_the_wait_counts(new_waiter):
    """The same when a thread of another kind was first."""
    waiter = new_waiter()
    in_thread(waiter.wake)

    assert waiter.wait(LONG) is True


def test_waking_twice_is_waking(new_waiter):
    """Any number of wake-ups is as good as one."""
    waiter = new_waiter()
    for _ in range(3):
        waiter.wake()

    assert waiter.wait(LONG) is True
    waiter.wake()


def test_wait_ends_when_its_time_is_over(new_waiter):
    """Nobody wakes it: False, in about the time that was given."""
    began = time.monotonic()

    assert new_waiter().wait(0.02) is False
    assert 0.015 <= time.monotonic() - began < LONG / 2


@pytest.mark.parametrize("seconds", [0, -1, -0.0])
def test_wait_without_time_only_looks(new_waiter, seconds):
    """No time, or less: the answer comes at once."""
    assert new_waiter().wait(seconds) is False


def test_wait_may_be_as_long_as_a_day(new_waiter):
    """A wait longer than a lock can take is no OverflowError."""
    waiter = new_waiter()
    waiter.wake()

    assert waiter.wait(1e12) is True


def test_wake_after_the_time_was_over_does_no_harm(new_waiter):
    """Who gave up has gone on to something else, and is not disturbed there."""
    waiter = new_waiter()
    assert waiter.wait(0.001) is False

    waiter.wake()
    began = time.monotonic()
    gevent.sleep(0.02)

    assert time.monotonic() - began >= 0.019


def test_wait_again_after_the_time_was_over(new_waiter):
    """A wait that is done in pieces misses no wake-up between two of them."""
    waiter = new_waiter()
    assert waiter.wait(0.001) is False
    waiter.wake()

    assert waiter.wait(LONG) is True


def test_many_wakes_race_with_the_wait(new_waiter):
    """Whenever the wake-up comes, before or in the wait, it is not lost."""
    for _ in range(200):
        waiter = new_waiter()
        thread = threading.Thread(target=waiter.wake)
        thread.start()
        assert waiter.wait(LONG) is True
        thread.join()


def test_greenlets_run_while_one_waits(longest_gap):
    """Waiting with a hub lets the others run."""
    with longest_gap() as gap:
        _concurrency.new_waiter().wait(0.2)

    assert gap.seconds < 0.1
    assert gap.ticks > 20


def test_lone_greenlet_may_wait(hub):
    """With nothing else to wait for in the program, gevent raises no LoopExit."""
    assert _concurrency.new_waiter().wait(0.01) is False


def test_killed_greenlet_stops_waiting(hub):
    """A kill ends the wait, and a late wake-up goes nowhere."""
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
    """A `gevent.Timeout` around a wait works as around anything else."""
    waiter = _concurrency.new_waiter()
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
        waiter.wait(LONG)

    waiter.wake()
    assert waiter.wait(LONG) is True


# -- patient waits --------------------------------------------------------------------


@pytest.fixture
def shared_timer(hub):
    """Make a place where the greenlets of this hub wait patiently."""
    shared_timer = _concurrency.SharedTimer(hub)
    yield shared_timer
    shared_timer.close()


def test_patient_wait_ends_when_woken(hub, shared_timer):
    """By its own hub's greenlets, and by a thread."""
    for wake in (lambda waiter: waiter.wake(), lambda waiter: in_thread(waiter.wake)):
        waiter = _concurrency.waiter_in(hub, shared_timer)
        gevent.spawn(wake, waiter)

        assert waiter.wait_slice(LONG) is True


def test_patient_wait_ends_to_have_a_look(hub, shared_timer):
    """Nobody wakes it: it comes back within its patience, and may wait on."""
    waiters = [_concurrency.waiter_in(hub, shared_timer)]

    def wait():
        waiter = _concurrency.waiter_in(hub, shared_timer)
        waiters.append(waiter)
        return waiter.wait_slice(LONG)

    others = [gevent.spawn(wait) for _ in range(3)]
    began = time.monotonic()
    assert waiters[0].wait_slice(LONG) is False
    assert time.monotonic() - began < LONG / 2
    assert [each.get(timeout=LONG) for each in others] == [False] * 3

    gevent.spawn(waiters[0].wake)
    assert waiters[0].wait_slice(LONG) is True


def test_patient_wait_without_much_time_is_exact(hub, shared_timer):
    """Its own time is over before its patience."""
    began = time.monotonic()

    assert _concurrency.waiter_in(hub, shared_timer).wait_slice(0.02) is False
    assert time.monotonic() - began < GreenletWaiter.SLICE / 2


def test_killed_greenlet_stops_waiting_patiently(hub, shared_timer):
    """And what comes too late doesn't switch into it."""
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


def test_room_holds_the_loop_while_somebody_waits(hub, shared_timer):
    """Else the lone waiter would get LoopExit; and not a moment longer."""
    waiter = _concurrency.waiter_in(hub, shared_timer)
    threading.Timer(0.05, waiter.wake).start()
    assert waiter.wait_slice(LONG) is True

    assert not shared_timer._timer.active


def test_room_forgets_who_could_not_leave(hub, shared_timer, monkeypatch):
    """A signal handler may raise at any step of the leaving. The loop is let go of."""
    waiter = _concurrency.waiter_in(hub, shared_timer)
    gevent.spawn(waiter.wake)
    with monkeypatch.context() as patch:
        patch.setattr(_concurrency.SharedTimer, "discard", lambda *_: None)
        assert waiter.wait_slice(LONG) is True

    gevent.sleep(GreenletWaiter.SLICE)

    assert not shared_timer._timer.active
    assert not shared_timer._new
    assert not shared_timer._old


def test_room_that_closes_sends_all_on(hub, shared_timer):
    """Whoever is there; and who comes later has a timer of its own."""
    waiter = _concurrency.waiter_in(hub, shared_timer)
    gevent.spawn(shared_timer.close)
    began = time.monotonic()
    assert waiter.wait_slice(LONG) is False
    assert time.monotonic() - began < GreenletWaiter.SLICE / 2

    gevent.spawn_later(0.02, waiter.wake)
    assert waiter.wait_slice(LONG) is True


def test_greenlet_of_another_hub_is_woken(hub):
    """A waiter of a thread's own hub is woken from here."""
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


def test_waking_in_a_hub_that_is_gone_is_ignored(hub):
    """Nobody waits there any more, so there is nobody to wake."""
    waiter = _concurrency.new_waiter()
    assert not waiter.is_dead
    hub.destroy(destroy_loop=True)

    waiter.wake()
    assert waiter.is_dead


def test_thread_that_waits_is_never_gone():
    """What waits in a thread can be woken for as long as the thread is there."""
    assert not _concurrency.new_waiter().is_dead


# -- running natively -----------------------------------------------------------------


def test_native_call_without_a_hub_is_made_on_the_spot():
    """With nobody to let run, there is no use for a second thread."""
    assert (
        _concurrency.run_in_thread(_concurrency.get_ident, LONG)
        == _concurrency.get_ident()
    )


@pytest.mark.slow
def test_native_call_with_a_hub_lets_greenlets_run(longest_gap):
    """What blocks natively blocks another thread than the hub's."""
    with longest_gap() as gap:
        ident = _concurrency.run_in_thread(
            lambda: (time.sleep(0.3), _concurrency.get_ident())[1], LONG
        )

    assert ident != _concurrency.get_ident()
    assert gap.seconds < 0.15


@pytest.mark.parametrize("with_hub", [False, True])
def test_native_call_gives_its_error(request, with_hub):
    """An error of the call is raised in the caller."""
    if with_hub:
        request.getfixturevalue("hub")

    with pytest.raises(ZeroDivisionError):
        _concurrency.run_in_thread(lambda: 1 // 0, LONG)


def test_native_call_that_takes_too_long_is_left_alone(hub):
    """The caller goes on after its time, with a TimeoutError."""
    go = threading.Event()
    ended = threading.Event()

    def work():
        go.wait(LONG)
        ended.set()

    with pytest.raises(TimeoutError, match=r"within 0.02 s"):
        _concurrency.run_in_thread(work, 0.02)

    go.set()
    assert ended.wait(LONG)


def test_native_call_in_the_hub_itself_is_started(hub):
    """The hub can't wait for it, so it goes on by itself."""
    ended = threading.Event()

    assert (
        in_hub_itself(hub, lambda: _concurrency.run_in_thread(ended.set, LONG)) is None
    )
    assert ended.wait(LONG)


def test_start_runs_in_a_thread_without_a_hub():
    """Without a hub, what is started has a thread."""
    idents = []
    ended = threading.Event()
    _concurrency.spawn(lambda: (idents.append(_concurrency.get_ident()), ended.set()))

    assert ended.wait(LONG)
    assert idents != [_concurrency.get_ident()]


def test_start_runs_in_a_greenlet_with_a_hub(hub):
    """With a hub, what is started has a greenlet of it."""
    idents = []
    _concurrency.spawn(lambda: idents.append(_concurrency.get_ident()))
    assert idents == []
    gevent.sleep(0.01)

    assert idents == [_concurrency.get_ident()]


def test_give_way_lets_others_run_once(hub):
    """Other greenlets have their turn; in the hub itself nothing happens."""
    turns = []
    gevent.spawn(turns.append, 1)

    _concurrency.yield_to_hub()

    assert turns == [1]
    assert in_hub_itself(hub, _concurrency.yield_to_hub) is None


def test_give_way_without_a_hub_does_nothing():
    """Threads need nobody to give way, and no hub is made for it."""
    _concurrency.yield_to_hub()

    assert gevent._hub_local.get_hub_if_exists() is None


# -- the descriptor -------------------------------------------------------------------


class PipeSignal(WakeupFd):
    """A signal as it is where there is no eventfd (macOS)."""

    __slots__ = ()

    @staticmethod
    def _open():
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        return read, write


@pytest.fixture(params=[WakeupFd, PipeSignal])
def signal(request):
    """Make a signal of either kind."""
    made = request.param()
    yield made
    made.close()


def readable(signal):
    """Tell whether a signal's descriptor is readable now."""
    poll = select.poll()
    poll.register(signal.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def fill(signal):
    """Write until there is no shared_timer for more."""
    most = (2**64 - 2).to_bytes(8, "little")
    try:
        while True:
            os.write(signal.write_fd, most)
    except BlockingIOError:
        return


def test_signal_is_readable_while_set(signal):
    """Set, it is readable; cleared, it is not; and so again."""
    for _ in range(2):
        assert not readable(signal)
        signal.set()
        assert readable(signal)
        signal.clear()
    assert not readable(signal)


def test_signal_set_many_times_is_cleared_by_one_clear(signal):
    """One clear is enough, however often it was set."""
    for _ in range(100):
        signal.set()
    signal.clear()

    assert not readable(signal)


def test_clearing_an_unset_signal_does_not_block(signal):
    """There may be nothing to clear."""
    signal.clear()

    assert not readable(signal)


def test_signal_blocks_at_neither_end(signal):
    """A blocking descriptor would stop librdkafka while it holds its lock."""
    assert not os.get_blocking(signal.fileno())
    assert not os.get_blocking(signal.write_fd)
    assert not os.get_inheritable(signal.fileno())
    assert not os.get_inheritable(signal.write_fd)


def test_full_signal_can_be_set_again(signal):
    """A signal that nobody clears takes any number of sets without a word."""
    fill(signal)

    signal.set()

    assert readable(signal)


def test_full_signal_can_be_cleared(signal):
    """A full one is empty after a few clears, and works as before."""
    fill(signal)
    clears = 0
    while readable(signal):
        signal.clear()
        clears += 1
    signal.set()

    assert readable(signal)
    assert clears < 100


@pytest.mark.parametrize("kind", [WakeupFd, PipeSignal])
def test_closed_signal_ignores_being_set(kind):
    """Somebody may set it a moment too late."""
    signal = kind()
    signal.close()

    signal.set()
    signal.clear()


def test_renewed_signal_has_the_same_numbers_and_is_another(signal):
    """Behind the same numbers is a descriptor that shares nothing with the old one.

    A forked child that reads the parent's wake-ups would take them from the parent.
    """
    numbers = signal.fileno(), signal.write_fd
    old_read, old_write = os.dup(numbers[0]), os.dup(numbers[1])
    signal.set()

    signal.renew()

    assert (signal.fileno(), signal.write_fd) == numbers
    assert not readable(signal)
    os.write(old_write, (1).to_bytes(8, "little"))
    assert not readable(signal)
    signal.set()
    assert readable(signal)
    signal.clear()
    assert os.read(old_read, 4096)
    os.close(old_read)
    os.close(old_write)


def test_renewed_signal_is_as_good_as_new(signal):
    """After renewing, neither end blocks or is inherited by other programs."""
    signal.renew()

    assert not os.get_blocking(signal.fileno())
    assert not os.get_blocking(signal.write_fd)
    assert not os.get_inheritable(signal.fileno())
    assert not os.get_inheritable(signal.write_fd)


def test_child_does_not_take_the_parents_signals(signal):
    """In a forked child, after renewing, the parent's wake-up stays the parent's."""
    signal.set()
    pid = os.fork()
    if not pid:
        signal.renew()
        signal.clear()
        os._exit(0)
    os.waitpid(pid, 0)

    assert readable(signal)


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("mode", ["unpatched", "patched", "late"])
def test_descriptors_are_closed_at_once(mode, run_script):
    """Not when the hub comes round, as gevent's `os.close` does it."""
    run_script(
        """
        import gevent, os
        from greendrop._concurrency.wakeup import WakeupFd

        gevent.sleep(0)
        signal = WakeupFd()
        fd = signal.fileno()
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
