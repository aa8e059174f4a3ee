"""Cooperative waits: other greenlets run, and interrupted waits are harmless."""

import threading
import time
from collections import Counter

import gevent
import pytest

from greendrop import DeliveryTimeoutError, IllegalWaitError
from tests.interpreter import MODES
from tests.tasks import LongestGap, Task, await_true, together

#: Seconds that the hub may be held.
HELD = 0.05


class EventCounter:
    """A listener that records its events."""

    def __init__(self):
        self.events = []

    def __call__(self, event):
        """Record an event."""
        self.events.append(event)

    def __len__(self):
        return len(self.events)


# --- waiting lets others run ----------------------------------------------------------


@pytest.mark.slow
def test_greenlets_take_turns_while_one_sends(mock_cluster, make_producer, longest_gap):
    """While one greenlet sends, two others go on sleeping in small steps."""
    producer = make_producer()
    mock_cluster.round_trip(0.2)
    calls, ticks = [], []

    def send():
        for number in range(5):
            started = time.monotonic()
            producer.produce_sync(topic=f"new-{number}", payload=b"x")
            calls.append((started, time.monotonic()))

    def tick(sender):
        while not sender.ready():
            gevent.sleep(0.01)
            ticks.append(time.monotonic())

    with longest_gap() as gap:
        sender = gevent.spawn(send)
        tickers = [gevent.spawn(tick, sender) for _ in range(2)]
        gevent.joinall([sender, *tickers], raise_error=True)

    assert len(calls) == 5
    for started, ended in calls:
        assert ended - started >= 0.2
        assert [each for each in ticks if started < each < ended]
    assert gap.seconds < HELD


@pytest.mark.slow
def test_many_senders_share_one_round_trip(mock_cluster, make_producer, longest_gap):
    """Twenty greenlets that send at the same time wait for one round trip, not 20."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"first")
    mock_cluster.round_trip(0.2)
    started = time.monotonic()

    with longest_gap() as gap:
        reports = together(
            [lambda: producer.produce_sync(topic="events", payload=b"x")] * 20
        )

    took = time.monotonic() - started
    assert len({(each.partition, each.offset) for each in reports}) == 20
    assert 0.2 <= took < 2
    assert gap.seconds < HELD


SENDS = """
    from greendrop import Producer
    from tests.tasks import LongestGap, together

    def send():
        return [producer.produce_sync(topic="events", payload=b"x") for _ in range(3)]

    with Producer({"bootstrap.servers": servers}) as producer:
        with LongestGap() as gap:
            reports = together([send, send, send])
    places = {(each.partition, each.offset) for each in sum(reports, [])}
    print(len(places), gap.ticks > 50, gap.seconds)
"""


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("mode", MODES)
def test_other_tasks_run_however_gevent_is_used(mode, mock_cluster, stored, run_script):
    """Senders let others run in every kind of program, also without gevent."""
    mock_cluster.round_trip(0.1)

    ended = run_script(SENDS, mode, servers=mock_cluster.bootstrap_servers)

    places, ticked, gap = ended.stdout.split()
    assert (places, ticked) == ("9", "True")
    assert float(gap) < HELD
    assert stored("events") == 9


def test_batches_let_others_run(make_producer, longest_gap):
    """A long batch is queued and awaited while other greenlets run."""
    producer = make_producer()
    batch = [{"topic": "events", "payload": b"x"}] * 20_000

    with longest_gap() as gap:
        reports = producer.produce_many_sync(batch)

    assert len(reports) == 20_000
    assert gap.seconds < HELD


@pytest.mark.slow
def test_a_flood_of_reports_lets_other_greenlets_run(
    mock_cluster, make_producer, longest_gap
):
    """While 100,000 reports arrive at once, other greenlets run."""
    producer = make_producer({"queue.buffering.max.messages": 200_000})
    producer.produce_sync(topic="events", payload=b"first")
    mock_cluster.round_trip(0.5)
    handles = []
    for _ in range(100):
        handles += [
            producer.produce_async(topic="events", payload=b"x") for _ in range(1_000)
        ]
        gevent.sleep(0)

    with longest_gap() as gap:
        await_true(lambda: not producer.queue_size, 20)

    assert all(each.report for each in handles)
    assert gap.seconds < HELD


def test_close_lets_other_greenlets_run_while_it_sums_up(mock_cluster, make_producer):
    """The handles of many messages are checked and freed a few at a time."""
    count, tick, freed = 40_000, 0, Counter()

    class Label:
        def __del__(self):
            freed[tick] += 1

    def run_again_and_again():
        nonlocal tick
        while True:
            tick += 1
            gevent.sleep(0.0001)

    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"first")
    mock_cluster.round_trip(0.5)
    for _ in range(count):
        producer.produce_async(topic="events", payload=b"x", label=Label())
    ticker = gevent.spawn(run_again_and_again)

    producer.close()

    ticker.kill()
    assert freed.total() == count
    assert max(freed.values()) < count // 2


# --- several waiters for one handle ---------------------------------------------------


def test_a_handle_wakes_all_its_waiters(mock_cluster, make_producer, hub):
    """Greenlets and native threads that wait for one message get the same report."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"first")
    mock_cluster.round_trip(0.1)
    reports = []
    handle = producer.produce_async(topic="events", payload=b"x", label="mine")
    threads = [
        threading.Thread(target=lambda: reports.append(handle.wait(10)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()

    reports += together([lambda: handle.wait(10)] * 10)

    await_true(lambda: not any(each.is_alive() for each in threads))
    assert [handle.report] * 14 == reports
    assert handle.report.label == "mine"
    assert producer.polling == "fd"


def test_gevent_waits_for_handles(mock_cluster, make_producer, hub):
    """gevent.wait and gevent.iwait accept handles, pending and resolved ones."""
    producer = make_producer()
    resolved = producer.produce_async(topic="events", payload=b"first")
    resolved.wait(10)
    mock_cluster.round_trip(0.1)
    handles = [producer.produce_async(topic="events", payload=b"x") for _ in range(10)]

    assert gevent.wait([*handles, resolved], timeout=10, count=1) == [resolved]
    assert gevent.wait(handles, timeout=0.01) == []
    assert set(gevent.iwait([*handles, resolved], timeout=10)) == {*handles, resolved}
    assert all(each.report for each in handles)


def test_a_wait_that_runs_out_can_be_repeated(mock_cluster, make_producer, hub):
    """After a DeliveryTimeoutError the message is still in flight, and arrives."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"first")
    mock_cluster.round_trip(0.2)
    handle = producer.produce_async(topic="events", payload=b"x")

    for timeout in (0, 0.02):
        with pytest.raises(DeliveryTimeoutError, match="may still be delivered"):
            handle.wait(timeout)

    assert not handle.done
    assert handle.wait(10).topic == "events"


@pytest.mark.parametrize("timeout", [-1, float("inf"), float("nan")])
def test_infinite_timeouts_are_refused(timeout, mock_cluster, make_producer):
    """A timeout that is not finite is refused."""
    mock_cluster.round_trip(0.1)
    handle = make_producer().produce_async(topic="events", payload=b"x")

    with pytest.raises(ValueError, match="finite"):
        handle.wait(timeout)


# --- interrupted waits ----------------------------------------------------------------


def test_a_killed_sender_loses_no_message(mock_cluster, make_producer, stored, hub):
    """A greenlet is killed while it waits: its message and later ones arrive."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"first")
    mock_cluster.round_trip(0.1)
    senders = [
        gevent.spawn(producer.produce_sync, topic="events", payload=b"x")
        for _ in range(20)
    ]
    gevent.sleep(0.02)
    assert producer.queue_size == 20

    gevent.killall(senders[::2], timeout=10)

    gevent.joinall(senders, timeout=10, raise_error=True)
    assert [isinstance(each.value, gevent.GreenletExit) for each in senders] == [
        True,
        False,
    ] * 10
    producer.produce_sync(topic="events", payload=b"last")
    assert producer.queue_size == 0
    assert stored("events") == 22


def test_a_gevent_timeout_around_a_send_loses_no_message(
    mock_cluster, make_producer, stored, hub
):
    """gevent.Timeout interrupts a send: its message and later ones arrive."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"first")
    mock_cluster.round_trip(0.1)

    for _ in range(3):
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
            producer.produce_sync(topic="events", payload=b"x")

    assert producer.queue_size == 3
    producer.produce_sync(topic="events", payload=b"last")
    await_true(lambda: not producer.queue_size)
    assert stored("events") == 5


# --- callers that can't wait ----------------------------------------------------------


def test_waiting_in_the_hub_is_refused(mock_cluster, make_producer, hub, stored):
    """In a callback of the event loop a wait raises; the message is sent."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"first")
    mock_cluster.round_trip(0.05)
    handle = producer.produce_async(topic="events", payload=b"x")
    errors = []

    def in_the_hub(call, *arguments, **fields):
        try:
            call(*arguments, **fields)
        except IllegalWaitError as error:
            errors.append(str(error))

    run = hub.loop.run_callback
    run(in_the_hub, handle.wait, 10)
    run(in_the_hub, lambda: producer.produce_sync(topic="events", payload=b"x"))
    gevent.sleep(0.01)

    assert len(errors) == 2
    assert all("hub" in each for each in errors)
    await_true(lambda: not producer.queue_size)
    assert stored("events") == 3


def test_waiting_in_a_listener_is_refused(make_producer, hub):
    """A listener that waits for its own producer gets an error; polling goes on."""
    producer = make_producer()
    failures = EventCounter()
    producer.monitor.subscribe("error.occurred", failures)

    @producer.monitor.subscribe("message.acknowledged")
    def send_again(event):
        if event["label"] == "start":
            producer.produce_sync(topic="events", payload=b"x", label="again")

    producer.produce_sync(topic="events", payload=b"x", label="start")

    producer.produce_sync(topic="events", payload=b"x", label="later")
    kinds = [(each["type"], type(each["error"])) for each in failures.events]
    assert ("listener.error", IllegalWaitError) in kinds
    await_true(lambda: not producer.queue_size)


def test_a_listener_may_send_without_waiting(make_producer, hub):
    """A listener may send by its own producer, and wait for another one."""
    producer, other = make_producer(), make_producer()
    reports = []

    @producer.monitor.subscribe("message.acknowledged")
    def time_out(event):
        if event["label"] == "start":
            reports.append(other.produce_sync(topic="other", payload=b"x"))
            reports.append(producer.produce_async(topic="events", payload=b"x"))

    producer.produce_sync(topic="events", payload=b"x", label="start")

    assert reports[0].topic == "other"
    assert reports[1].wait(10).topic == "events"


# --- failing and slow listeners -------------------------------------------------------


@pytest.mark.parametrize("driver", ["fd", "thread"])
@pytest.mark.parametrize("error", [ValueError, gevent.Timeout, gevent.GreenletExit])
def test_a_raising_listener_affects_no_send(
    error, driver, make_producer, request, hub_errors
):
    """Each send succeeds and each listener is called, whatever listeners raise.

    Of equal failures one per minute is reported.
    """
    if driver == "fd":
        request.getfixturevalue("hub")
    producer = make_producer()
    failures, after = EventCounter(), EventCounter()
    producer.monitor.subscribe("error.occurred", failures)

    @producer.monitor.subscribe("message.acknowledged")
    def fail(event):
        raise error

    producer.monitor.subscribe("message.acknowledged", after)
    started = time.monotonic()

    for _ in range(3):
        producer.produce_sync(topic="events", payload=b"x")

    assert time.monotonic() - started < 0.5
    assert driver == producer.polling
    assert len(after) == 3
    assert [each["type"] for each in failures.events] == ["listener.error"]
    assert type(failures.events[0]["error"]) is error


@pytest.mark.slow
def test_a_slow_listener_delays_no_other_producer(make_producer, hub):
    """While one producer's listener sleeps, another one's messages are delivered."""
    slow, other = make_producer(), make_producer()
    other.produce_sync(topic="events", payload=b"first")
    sleeping = []

    @slow.monitor.subscribe("message.acknowledged")
    def sleep(event):
        sleeping.append(event)
        gevent.sleep(1)
        sleeping.remove(event)

    handle = slow.produce_async(topic="events", payload=b"x")
    await_true(lambda: sleeping)
    with LongestGap() as gap:
        for _ in range(20):
            other.produce_sync(topic="events", payload=b"x")

    assert sleeping
    assert gap.seconds < HELD
    assert handle.wait(10).topic == "events"
    assert not sleeping


@pytest.mark.slow
def test_listeners_that_wait_miss_no_report(make_producer, longest_gap):
    """A listener that waits while thousands of reports arrive is called for each."""
    producer = make_producer()
    observed = []

    @producer.monitor.subscribe("message.acknowledged")
    def wait(event):
        if not event["label"] % 50:
            gevent.sleep(0.001)
        observed.append(event["label"])

    def send(worker):
        for number in range(500):
            label = worker * 500 + number
            handle = producer.produce_async(
                topic="events", payload=b"x", partition=0, label=label
            )
            if not number % 10:
                handle.wait(10)

    with longest_gap() as gap:
        together([lambda worker=worker: send(worker) for worker in range(10)])
        await_true(lambda: len(observed) == 5_000)

    assert sorted(observed) == list(range(5_000))
    assert gap.seconds < HELD


def test_listeners_run_before_senders_wake(make_producer, hub):
    """When produce_sync returns, the listeners have been called for its message."""
    producer = make_producer()
    observed = EventCounter()
    producer.monitor.subscribe("message.acknowledged", observed)

    def send(worker):
        for number in range(20):
            label = (worker, number)
            producer.produce_sync(topic="events", payload=b"x", label=label)
            assert label in [each["label"] for each in observed.events]

    together([lambda worker=worker: send(worker) for worker in range(10)])

    assert len(observed) == 200


def test_the_poller_of_a_hub_wakes_a_native_thread(
    mock_cluster, make_producer, longest_gap
):
    """A native thread waits while the hub polls, and the hub is not held."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"first")
    mock_cluster.round_trip(0.05)
    reports = []

    def send():
        reports.extend(
            producer.produce_sync(topic="events", payload=b"x") for _ in range(3)
        )

    thread = threading.Thread(target=send)
    with longest_gap() as gap:
        thread.start()
        await_true(lambda: not thread.is_alive())

    assert len(reports) == 3
    assert producer.polling == "fd"
    assert gap.seconds < HELD


def test_a_greenlet_that_never_waits_still_sends(make_producer, hub, stored):
    """A message that is sent without a wait is delivered once the hub runs."""
    producer = make_producer()
    for _ in range(5_000):
        producer.produce_async(topic="events", payload=b"x")

    Task(lambda: await_true(lambda: not producer.queue_size)).join()

    assert stored("events") == 5_000
