import contextlib
import math
import threading
import time

import gevent
import pytest

from greendrop._client import batcher
from greendrop._client.batcher import HubBatcher
from tests.interrupting import at_entry

#: Seconds. Longer than any pace, so that the pace is at its maximum; and longer than
#: the hub works on all sends of a test.
SLOW = 1.0


class FakeTimer:
    """A timer that fires when the test says so."""

    def __init__(self):
        self.active = False
        self.closed = False
        self._callback = None

    def again(self, callback, **_options):
        """Record the function; the options are for real timers."""
        self._callback = callback
        self.active = True

    def stop(self):
        """Stop until it is started again."""
        self.active = False

    def close(self):
        """Stop for good."""
        self.active = False
        self.closed = True

    def fire(self):
        """Fire; a repeating timer continues."""
        self._callback()


class FakeCallback:
    """A loop's handle of a callback: pending until it is called."""

    def __init__(self, function):
        self.function = function
        self.pending = True


class FakeLoop:
    """gevent's loop, as far as a batcher uses it; the test ends its ticks."""

    def __init__(self):
        self.callbacks = []
        self.timers = []

    def timer(self, _after, _repeat):
        """Make a timer."""
        self.timers.append(FakeTimer())
        return self.timers[-1]

    def run_callback(self, function):
        """Record a function to call at the end of the tick."""
        self.callbacks.append(FakeCallback(function))
        return self.callbacks[-1]

    def end_tick(self):
        """Call the recorded functions at the end of this tick."""
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback.pending = False
            callback.function()


class FakeHub:
    """gevent's hub, as far as a batcher uses it."""

    #: Whether an exception has ended it.
    dead = False

    def __init__(self):
        self.loop = FakeLoop()


def add(small_batcher, item):
    """Add an item as the client does."""
    small_batcher.items.append(item)
    small_batcher._pending.append(item)
    if len(small_batcher.items) >= small_batcher.flush_at:
        small_batcher.maybe_flush()


def report(small_batcher, count, round_trip):
    """Report the first items in flight, as the report dispatcher does."""
    del small_batcher._pending[:count]
    small_batcher.on_reports(count, round_trip)


class Sink:
    """Accepts batches as librdkafka does, with space for some or all items."""

    def __init__(self):
        self.batches = []
        self.space = None

    def send_batch(self, items):
        """Accept the items that there is space for."""
        self.batches.append([])
        while items and self.space != 0:
            if self.space is not None:
                self.space -= 1
            self.batches[-1].append(items.popleft())

    @property
    def items(self):
        """Return all accepted items, in order."""
        return [item for batch in self.batches for item in batch]


@pytest.fixture
def fake_hub():
    """Make a hub whose ticks the test ends."""
    return FakeHub()


@pytest.fixture
def sink():
    """Make a sink for batches."""
    return Sink()


@pytest.fixture
def far_batcher(fake_hub, sink):
    """Make a batcher whose broker is as far away as the reports say."""
    return HubBatcher(fake_hub, [], sink)


@pytest.fixture
def idle_batcher(far_batcher, monkeypatch):
    """Make a batcher without items in flight, whose broker is near."""
    monkeypatch.setattr(batcher, "_FAR", math.inf)
    return far_batcher


@pytest.fixture
def small_batcher(idle_batcher, monkeypatch):
    """Make a batcher that starts a batch at the second item."""
    monkeypatch.setattr(batcher, "_FEW", 1)
    return idle_batcher


def test_send_goes_out_at_once_when_nothing_is_in_flight(small_batcher, sink):
    """A send with nothing in flight does not wait."""
    add(small_batcher, 1)

    assert sink.batches == [[1]]
    assert len(small_batcher.items) == 0


def test_sends_are_batched_while_something_is_in_flight(small_batcher, sink):
    """The second send waits for the report of the first one."""
    for item in (1, 2, 3):
        add(small_batcher, item)

    assert sink.batches == [[1]]
    assert len(small_batcher.items) == 2


def test_a_few_wait_for_the_end_of_their_tick_only(idle_batcher, sink, fake_hub):
    """With so few items in flight, batching gains nothing."""
    for item in (1, 2, 3):
        add(idle_batcher, item)
    assert sink.batches == [[1]]
    fake_hub.loop.end_tick()
    add(idle_batcher, 4)
    fake_hub.loop.end_tick()

    assert sink.batches == [[1], [2, 3], [4]]
    assert not fake_hub.loop.timers[0].active


def test_more_than_a_few_are_batched(idle_batcher, sink, fake_hub):
    """One more than a few, and all wait for reports or the timer."""
    (timer,) = fake_hub.loop.timers
    for item in range(batcher._FEW + 1):
        add(idle_batcher, item)
    report(idle_batcher, 0, SLOW)
    for _ in range(100):
        idle_batcher.flush()
        batches = len(sink.batches)
        started = time.monotonic()
        add(idle_batcher, "late")
        idle_batcher.flush()
        add(idle_batcher, "later")
        fake_hub.loop.end_tick()
        if time.monotonic() - started < batcher._MAX_PACE / 2:
            break
    else:
        pytest.fail("this machine never ran ten lines within half a millisecond")

    assert sink.batches[batches:] == [["late"]]
    assert timer.active
    time.sleep(2 * batcher._MAX_PACE)
    timer.fire()
    assert sink.batches[batches:] == [["late"], ["later"]]


def test_sends_to_a_distant_broker_wait_for_the_end_of_their_tick_only(
    far_batcher, sink, fake_hub
):
    """While the hub has time to spare, collecting would only delay them."""
    add(far_batcher, "first")
    report(far_batcher, 1, SLOW)
    for item in range(2 * batcher._FEW):
        add(far_batcher, item)
        fake_hub.loop.end_tick()

    assert sink.batches == [["first"], *([item] for item in range(2 * batcher._FEW))]
    assert not fake_hub.loop.timers[0].active


def test_a_tick_hands_over_to_a_distant_broker_in_parts(far_batcher, sink, fake_hub):
    """The broker works on the first part while the hub runs the other greenlets."""
    add(far_batcher, "first")
    add(far_batcher, "second")
    report(far_batcher, 1, SLOW)
    few = batcher._FEW
    for item in range(2 * few):
        add(far_batcher, item)
    fake_hub.loop.end_tick()

    assert [len(batch) for batch in sink.batches] == [1, few, few, 1]
    assert sink.items == ["first", "second", *range(2 * few)]


def test_the_parts_grow_with_the_messages_in_flight(far_batcher, sink, fake_hub):
    """So a round trip has at most some sixteen hand-overs."""
    many = 10 * batcher._PARTS * batcher._FEW
    add(far_batcher, "first")
    report(far_batcher, 1, 100 * SLOW)
    far_batcher._pending.extend(range(many))
    for item in range(many):
        add(far_batcher, item)
    fake_hub.loop.end_tick()

    assert len(sink.batches) <= 1 + batcher._PARTS
    assert sink.items == ["first", *range(many)]


def test_many_sends_to_a_distant_broker_are_batched(far_batcher, sink, fake_hub):
    """The hub works on so many for longer than a round trip takes."""
    round_trip = 2 * batcher._FAR
    add(far_batcher, "first")
    report(far_batcher, 1, round_trip)
    far_batcher._pending.extend(range(int(round_trip / batcher._HUB_TIME)))
    add(far_batcher, "late")

    assert sink.batches == [["first"]]
    assert fake_hub.loop.timers[0].active


def test_batched_sends_go_out_together_when_all_is_reported(
    small_batcher, sink, fake_hub
):
    """The batch is flushed at the end of the tick that brought the last report."""
    for item in (1, 2, 3):
        add(small_batcher, item)
    report(small_batcher, 1, SLOW)

    assert sink.batches == [[1]], "the greenlets that were freed have had no turn yet"
    fake_hub.loop.end_tick()

    assert sink.batches == [[1], [2, 3]]


def test_greenlets_that_reports_freed_join_the_batch(small_batcher, sink, fake_hub):
    """Sends between the reports and the end of their tick join the batch.

    Otherwise a hundred greenlets would send one message per request.
    """
    add(small_batcher, 1)
    add(small_batcher, 2)
    small_batcher.flush()
    report(small_batcher, 2, SLOW)
    for item in (3, 4, 5):
        add(small_batcher, item)
    fake_hub.loop.end_tick()

    assert sink.batches == [[1], [2], [3, 4, 5]]


def test_lone_sender_does_not_wait(small_batcher, sink, fake_hub):
    """One greenlet that sends and waits in turn is never held up.

    Nor is any callback scheduled at the end of each tick.
    """
    for item in range(5):
        add(small_batcher, item)
        report(small_batcher, 1, SLOW)

    assert sink.batches == [[item] for item in range(5)]
    assert fake_hub.loop.callbacks == []


def test_reports_of_one_tick_schedule_one_flush(small_batcher, fake_hub):
    """Ten reports in one tick schedule one flush."""
    for item in range(12):
        add(small_batcher, item)
    small_batcher.flush()
    for _ in range(10):
        report(small_batcher, 1, SLOW)

    assert len(fake_hub.loop.callbacks) == 1


def test_end_of_a_tick_without_sends_flushes_nothing(small_batcher, sink, fake_hub):
    """Reports without waiting sends cost nothing; the next send goes out at once."""
    add(small_batcher, 1)
    report(small_batcher, 1, SLOW)
    fake_hub.loop.end_tick()
    assert sink.batches == [[1]]

    add(small_batcher, 2)

    assert sink.batches == [[1], [2]]


def test_nothing_goes_out_early_while_a_part_is_in_flight(
    small_batcher, sink, fake_hub
):
    """While some items are in flight, the batch waits for a round trip."""
    for _ in range(100):
        # A round trip counts as at most 1 ms; a busy machine may exceed that.
        small_batcher.flush()
        batches = len(sink.batches)
        started = time.monotonic()
        for item in (1, 2, 3):
            add(small_batcher, item)
        small_batcher.flush()
        report(small_batcher, 1, SLOW)
        add(small_batcher, 4)
        fake_hub.loop.end_tick()
        if time.monotonic() - started < batcher._MAX_PACE / 2:
            break
    else:
        pytest.fail("this machine never ran ten lines within half a millisecond")

    assert [4] not in sink.batches[batches:]
    assert len(small_batcher.items) == 1


def test_more_goes_out_a_round_trip_after_the_last_flush(small_batcher, sink, fake_hub):
    """A slow broker does not slow down messages to other brokers."""
    for item in (1, 2, 3):
        add(small_batcher, item)
    small_batcher.flush()
    add(small_batcher, 4)
    time.sleep(2 * batcher._MAX_PACE)
    report(small_batcher, 1, SLOW)
    fake_hub.loop.end_tick()

    assert sink.batches == [[1], [2, 3], [4]]


def test_fast_broker_gets_the_next_batch_sooner(small_batcher, sink, fake_hub):
    """With a round trip of 0, each report flushes the next batch."""
    for item in (1, 2, 3):
        add(small_batcher, item)
    small_batcher.flush()
    add(small_batcher, 4)
    report(small_batcher, 1, 0.0)
    fake_hub.loop.end_tick()

    assert sink.batches == [[1], [2, 3], [4]]


def test_failed_reports_do_not_change_the_round_trip(small_batcher, sink, fake_hub):
    """A round trip below 0 means unknown: failed reports don't change the pace."""
    report(small_batcher, 1, 0.0)
    fake_hub.loop.end_tick()
    for item in (1, 2, 3):
        add(small_batcher, item)
    small_batcher.flush()
    add(small_batcher, 4)
    report(small_batcher, 1, -1.0)
    fake_hub.loop.end_tick()

    assert sink.batches == [[1], [2, 3], [4]]


def test_timer_flushes_when_no_report_comes(small_batcher, sink, fake_hub):
    """A batch does not wait for a report that may take seconds."""
    add(small_batcher, 1)
    add(small_batcher, 2)
    (timer,) = fake_hub.loop.timers
    assert timer.active

    timer.fire()

    assert sink.batches == [[1], [2]]
    assert not timer.active


def test_timer_waits_for_the_round_trip_too(small_batcher, sink, fake_hub):
    """A timer that fires early, as a coarse one may, flushes nothing early."""
    (timer,) = fake_hub.loop.timers
    add(small_batcher, 1)
    report(small_batcher, 1, SLOW)
    fake_hub.loop.end_tick()
    for number in range(100):
        small_batcher.flush()
        started = time.monotonic()
        add(small_batcher, 2)
        small_batcher.flush()
        batches = list(sink.batches)
        add(small_batcher, number)
        timer.fire()
        if time.monotonic() - started < batcher._MAX_PACE / 2:
            break
    else:
        pytest.fail("this machine never ran ten lines within half a millisecond")

    assert sink.batches == batches
    assert timer.active
    time.sleep(2 * batcher._MAX_PACE)
    timer.fire()
    assert sink.batches == [*batches, [number]]


def test_timer_runs_only_while_something_waits(small_batcher, fake_hub):
    """A send that goes out at once starts no timer."""
    add(small_batcher, 1)

    assert not fake_hub.loop.timers[0].active


def test_long_batch_goes_out_inside_the_call(small_batcher, sink):
    """A loop that never yields does not extend its batch for ever."""
    count = 3 * batcher._MAX_BATCH + 1
    for item in range(count):
        add(small_batcher, item)

    assert len(small_batcher.items) < batcher._MAX_BATCH
    small_batcher.flush()
    assert sink.items == list(range(count))


def test_order_of_calls_is_kept(small_batcher, sink, fake_hub):
    """Items are flushed in the order of the calls, whatever triggers the flush."""
    for item in range(5_000):
        add(small_batcher, item)
        if not item % 7:
            report(small_batcher, 3, 0.0)
        if not item % 11:
            fake_hub.loop.end_tick()
        if not item % 501 and fake_hub.loop.timers[0].active:
            fake_hub.loop.timers[0].fire()
    small_batcher.flush()

    assert sink.items == list(range(5_000))


def test_items_without_space_stay_at_the_front(small_batcher, sink, fake_hub):
    """Items without space stay at the front, and are tried again."""
    add(small_batcher, 0)
    for item in range(1, 6):
        add(small_batcher, item)
    sink.space = 2
    small_batcher.flush()
    assert len(small_batcher.items) == 3
    add(small_batcher, 6)

    sink.space = None
    report(small_batcher, 3, 0.0)
    fake_hub.loop.end_tick()

    assert sink.items == list(range(7))


def test_rest_is_tried_again_by_the_timer(small_batcher, sink, fake_hub):
    """Without reports the timer tries again until there is space."""
    add(small_batcher, 0)
    add(small_batcher, 1)
    sink.space = 0
    (timer,) = fake_hub.loop.timers
    timer.fire()
    timer.fire()
    assert len(small_batcher.items) == 1
    assert timer.active
    sink.space = None

    timer.fire()

    assert sink.items == [0, 1]


def test_rest_of_a_first_send_is_kept(small_batcher, sink, fake_hub):
    """A first send may find no space either, and is tried again."""
    sink.space = 0
    add(small_batcher, 1)
    sink.space = None
    fake_hub.loop.timers[0].fire()

    assert sink.items == [1]


def test_empty_batch_is_not_flushed(small_batcher, sink):
    """An empty batch is not flushed."""
    small_batcher.flush()

    assert sink.batches == []


def test_sends_made_during_a_flush_come_after_it(fake_hub):
    """A flush that causes another send neither loses nor reorders items."""
    taken = []

    class SendingSink:
        def send_batch(self, items):
            while items:
                taken.append(items.popleft())
                if taken[-1] == 2:
                    add(small_batcher, 3)

    small_batcher = HubBatcher(fake_hub, [], SendingSink())
    add(small_batcher, 1)
    add(small_batcher, 2)
    small_batcher.flush()

    assert taken == [1, 2, 3]


def test_take_empties_the_batch(small_batcher, sink):
    """The client that closes takes the waiting items in order; none is left."""
    for item in (1, 2, 3):
        add(small_batcher, item)

    assert list(small_batcher.take()) == [2, 3]
    assert not small_batcher.take()
    small_batcher.flush()
    assert sink.items == [1]


class InterruptedHereError(Exception):
    """The exception of a signal handler."""


@pytest.mark.parametrize(
    "place",
    [
        HubBatcher.maybe_flush,
        HubBatcher.on_reports,
        HubBatcher.flush,
        HubBatcher._schedule,
        HubBatcher._end_of_tick,
        HubBatcher._on_timer,
        HubBatcher._flush_if_due,
        HubBatcher._collects,
        HubBatcher._has_waited_enough,
        HubBatcher._arm,
        Sink.send_batch,
    ],
)
@pytest.mark.parametrize("limits", [(1, math.inf), (16, math.inf), (1, 0.001)])
def test_an_exception_in_a_batcher_loses_nothing(
    fake_hub, sink, place, limits, monkeypatch
):
    """Wherever a handler raises, batched items go out with the next ones.

    If none follows, the poller resumes the batcher.
    """
    few, far = limits
    monkeypatch.setattr(batcher, "_FEW", few)
    monkeypatch.setattr(batcher, "_FAR", far)
    small_batcher = HubBatcher(fake_hub, [], sink)

    def raise_it():
        raise InterruptedHereError

    def try_to(step, *arguments):
        with contextlib.suppress(InterruptedHereError):
            step(*arguments)

    (timer,) = fake_hub.loop.timers
    with at_entry(place, raise_it) as calls:
        for item in range(5):
            try_to(add, small_batcher, item)
        time.sleep(2 * batcher._MAX_PACE)
        try_to(report, small_batcher, 1, SLOW)
        try_to(fake_hub.loop.end_tick)
        if timer.active:
            try_to(timer.fire)
        # With one item in flight, that item waits for a round trip.
        try_to(add, small_batcher, 5)
        try_to(small_batcher.flush)
        try_to(add, small_batcher, 6)
        try_to(fake_hub.loop.end_tick)
        if timer.active:
            try_to(timer.fire)
    small_batcher.resume()
    fake_hub.loop.end_tick()
    if timer.active:
        time.sleep(2 * batcher._MAX_PACE)
        timer.fire()

    assert sink.items == list(range(7))
    add(small_batcher, 7)
    small_batcher.resume()
    fake_hub.loop.end_tick()
    if timer.active:
        time.sleep(2 * batcher._MAX_PACE)
        timer.fire()
    assert sink.items == list(range(8))
    assert calls or few > 1 or far < SLOW


def test_more_reports_than_sends_are_ignored(small_batcher, sink, fake_hub):
    """Reports of other threads' messages count too, and never below zero."""
    add(small_batcher, 1)
    report(small_batcher, 1_000, SLOW)
    fake_hub.loop.end_tick()
    add(small_batcher, 2)
    add(small_batcher, 3)

    assert sink.batches == [[1], [2]]


def test_batcher_is_usable_in_its_own_hub_only(hub, sink):
    """Other threads must not touch the batch, with or without a hub of their own.

    Nor may a thread that reuses the number of a thread that ended.
    """
    small_batcher = HubBatcher(hub, [], sink)
    answers = []

    def ask():
        answers.append(small_batcher.in_own_hub())
        gevent.get_hub()
        answers.append(small_batcher.in_own_hub())
        gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()

    assert small_batcher.in_own_hub()
    assert answers == [False, False]


def test_batcher_of_a_destroyed_hub_is_unusable(hub, sink):
    """Nothing is batched for a hub that will not run again."""
    small_batcher = HubBatcher(hub, [], sink)
    hub.destroy(destroy_loop=True)

    assert not small_batcher.in_own_hub()
    gevent.get_hub()
    assert not small_batcher.in_own_hub()


def test_dead_hub_batches_nothing(small_batcher, fake_hub, sink):
    """When the hub has died no tick will end, so a send goes out at once."""
    small_batcher.current_hub = lambda: fake_hub
    add(small_batcher, 1)
    fake_hub.dead = True
    small_batcher.items.append(2)

    add(small_batcher, 3)

    assert sink.batches == [[1], [2, 3]]
    assert not small_batcher.in_own_hub()
