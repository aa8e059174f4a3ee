import gc
import signal
import threading
import time
import weakref

import gevent
import pytest

from greendrop import (
    MessagePurgedError,
    MessagesAbandonedError,
    ProduceManyError,
    Producer,
    ProducerAlreadyConfiguredError,
    ProducerClosedError,
)
from greendrop._producer.shutdown import Shutdown
from greendrop.testing import trigger_fatal_error
from tests.interrupting import at_entry, interrupt

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 20.0
#: Seconds that closing takes at most when it waits for nothing.
QUICK = 2.0
#: No broker listens there: a connection is refused at once.
NOWHERE = {"bootstrap.servers": "127.0.0.1:1"}


class Stopwatch:
    """Measures the duration of a block."""

    def __enter__(self):
        self._began = time.monotonic()
        return self

    def __exit__(self, *_):
        self.seconds = time.monotonic() - self._began


def send(producer, count=1, **fields):
    """Send messages without waiting; return their handles."""
    return [
        producer.produce_async(topic="t", payload=b"x", **fields) for _ in range(count)
    ]


def warm_up(producer):
    """Connect and get the topic's metadata, which both take round trips."""
    producer.produce_sync(topic="t", payload=b"warm")


# -- the usual close ------------------------------------------------------------------


@pytest.mark.slow
def test_close_waits_for_messages_in_flight(world, mock_cluster, make_producer, stored):
    """Messages sent before are delivered when close returns."""
    producer = make_producer()
    mock_cluster.round_trip(0.05)
    handles = send(producer, 100)

    producer.close()

    assert producer.status == "closed"
    assert all(each.report for each in handles)
    assert (producer.queue_size, producer.polling) == (0, None)
    assert stored("t") == 100


def test_closing_again_does_nothing(world, make_producer):
    """A second close, forced or not, returns at once."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    events = []
    producer.monitor.subscribe("producer.closed", events.append)
    producer.close()

    with Stopwatch() as watch:
        producer.close()
        producer.close(force=True)
        producer.close(timeout=5)

    assert watch.seconds < 0.5
    assert len(events) == 1


def test_closing_an_unused_producer_opens_nothing(mock_cluster, make_producer):
    """A producer that sent nothing closes without a connection."""
    producer = make_producer()
    mock_cluster.watch_requests()

    producer.close()

    assert producer.status == "closed"
    assert mock_cluster.requests() == []


@pytest.mark.parametrize("used", [False, True])
def test_closed_producer_refuses_messages(world, make_producer, used):
    """After close each verb raises, also if it has no message to send."""
    producer = make_producer(id="gone")
    if used:
        producer.produce_sync(topic="t", payload=b"x")
    producer.close()

    message = {"topic": "t", "payload": b"x"}
    for call in (
        lambda: producer.produce_sync(**message),
        lambda: producer.produce_async(**message),
        lambda: producer.produce_many_sync([message]),
        lambda: producer.produce_many_async([message]),
        lambda: producer.buffer(**message),
        lambda: producer.buffer_many([message]),
        producer.flush_sync,
        producer.flush_async,
        producer.scope,
        producer.__enter__,
    ):
        with pytest.raises(ProducerClosedError, match="'gone' is closed"):
            call()
    with pytest.raises(ProducerAlreadyConfiguredError):
        producer.setup(NOWHERE)
    producer.purge()
    producer.reset()
    assert not producer.disconnect()
    assert producer.status == "closed"


def test_closing_producer_refuses_messages(
    world, mock_cluster, make_producer, spawn, until
):
    """While one task closes, other tasks get an error that nothing was sent."""
    producer = make_producer(id="going")
    warm_up(producer)
    mock_cluster.round_trip(0.1)
    send(producer)
    closer = spawn(producer.close)
    until(lambda: producer.status == "closing")

    with pytest.raises(ProducerClosedError, match="'going' is closing"):
        send(producer)
    closer.join(LONG)

    assert producer.status == "closed"


def test_delivery_reports_outlive_the_producer(world, make_producer):
    """Handles and reports can be used after close."""
    producer = make_producer()
    (handle,) = send(producer)
    producer.close()

    assert handle.wait(0).topic == "t"


def test_five_producers_in_a_row_deliver(world, make_producer):
    """Five producers in a row open, send and close."""
    for count in range(5):
        producer = make_producer()
        assert (
            producer.produce_sync(topic="t", payload=b"x", partition=0).offset == count
        )
        with Stopwatch() as watch:
            producer.close()
        assert watch.seconds < QUICK


def test_close_emits_events_when_it_begins_and_ends(world, make_producer):
    """The events come in order, the second with the time that closing took."""
    producer = make_producer(id="p")
    events = []
    for name in ("producer.closing", "producer.closed"):
        producer.monitor.subscribe(
            name, lambda event: events.append((event.name, producer.status, event))
        )
    producer.produce_sync(topic="t", payload=b"x")
    producer.close()

    assert [each[:2] for each in events] == [
        ("producer.closing", "closing"),
        ("producer.closed", "closed"),
    ]
    assert 0 <= events[1][2]["time"] < QUICK


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "1", True])
def test_close_needs_a_finite_timeout(make_producer, timeout):
    """A timeout that is not finite is refused, and the producer stays open."""
    producer = make_producer()

    with pytest.raises(ValueError, match="finite seconds"):
        producer.close(timeout)

    assert producer.status == "configured"


def test_timeout_that_looks_like_milliseconds_is_refused(make_producer):
    """Timeouts of calls have the same limit as durations in the settings."""
    producer = make_producer()
    handle = producer.produce_async(topic="t", payload=b"x")

    for wait in (producer.close, handle.wait, producer.scope):
        with pytest.raises(ValueError, match=r"milliseconds; did you mean 180\?"):
            wait(180_000)


@pytest.mark.slow
def test_close_does_not_wait_for_linger(world, make_producer):
    """Messages that the user's `linger.ms` holds back are sent at once."""
    producer = make_producer({"linger.ms": 5_000})
    handles = send(producer, 10)

    with Stopwatch() as watch:
        producer.close()

    assert watch.seconds < QUICK
    assert all(each.report for each in handles)


# -- undelivered messages -------------------------------------------------------------


def test_close_gives_up_after_its_timeout(world, make_producer):
    """Messages that are not delivered in time are dropped, counted and reported.

    The producer is closed all the same.
    """
    producer = make_producer(NOWHERE, id="p")
    handles = send(producer, 7)

    with Stopwatch() as watch, pytest.raises(MessagesAbandonedError) as raised:
        producer.close(timeout=0.2)

    assert 0.19 < watch.seconds < QUICK
    assert raised.value.count == 7
    assert "'p' is closed; 7 messages" in str(raised.value)
    assert "0.2 s" in str(raised.value)
    assert producer.status == "closed"
    for handle in handles:
        assert isinstance(handle.error, MessagePurgedError)
        assert "dropped" in str(handle.error)


def test_close_waits_as_long_as_max_wait_timeout(world, make_producer):
    """Without a timeout of its own, close has the one of sync verbs."""
    producer = make_producer(NOWHERE, max_wait_timeout=0.2)
    send(producer)

    with Stopwatch() as watch, pytest.raises(MessagesAbandonedError):
        producer.close()

    assert 0.19 < watch.seconds < QUICK


def test_forced_close_drops_at_once_and_raises_nothing(world, make_producer):
    """`force` waits for nothing; the handles have the outcome of the messages."""
    producer = make_producer(NOWHERE)
    handles = send(producer, 7)

    with Stopwatch() as watch:
        producer.close(force=True)

    assert watch.seconds < QUICK
    assert producer.status == "closed"
    assert all(isinstance(each.error, MessagePurgedError) for each in handles)


def test_forced_close_waits_when_given_a_timeout(world, mock_cluster, make_producer):
    """`force` with a timeout drops only messages that are not delivered by then."""
    producer = make_producer()
    warm_up(producer)
    mock_cluster.round_trip(0.1)
    handles = send(producer, 5)

    producer.close(timeout=LONG, force=True)

    assert all(each.report for each in handles)


@pytest.mark.slow
def test_forced_close_against_a_dead_broker_does_not_hang(world, make_producer):
    """The same holds for messages whose sender has given up."""
    producer = make_producer(NOWHERE, max_wait_timeout=0.001)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            producer.produce_sync(topic="t", payload=b"x")

    with Stopwatch() as watch:
        producer.close(force=True)

    assert watch.seconds < QUICK
    assert producer.queue_size == 0


def test_close_drops_messages_in_flight_with_the_others(
    world, mock_cluster, make_producer
):
    """The error of a message in flight says that the broker may have it."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    mock_cluster.round_trip(3.0)
    (handle,) = send(producer)

    with pytest.raises(MessagesAbandonedError):
        producer.close(timeout=0.2)

    assert isinstance(handle.error, MessagePurgedError)
    assert "in flight" in str(handle.error)


def test_purges_are_reported_as_errors(world, make_producer):
    """Each dropped message emits `error.occurred`, with its label."""
    producer = make_producer(NOWHERE)
    events = []
    producer.monitor.subscribe(
        "error.occurred",
        lambda event: (
            event["type"] == "librdkafka.dispatch_error" and events.append(event)
        ),
    )
    for number in range(3):
        send(producer, label=number)
    producer.close(force=True)

    assert [event["label"] for event in events] == [0, 1, 2]
    assert all(isinstance(event["error"], MessagePurgedError) for event in events)


def test_waiter_of_a_dropped_message_wakes(world, make_producer, spawn, pause):
    """A task that waits for the message gets an error at once."""
    producer = make_producer(NOWHERE)
    raised = []

    def wait():
        try:
            producer.produce_sync(topic="t", payload=b"x")
        except MessagePurgedError as error:
            raised.append(error)

    tasks = [spawn(wait) for _ in range(5)]
    pause(0.05)
    with Stopwatch() as watch:
        producer.close(force=True)
        for task in tasks:
            task.join(LONG)

    assert len(raised) == 5
    assert watch.seconds < QUICK


@pytest.mark.slow
@pytest.mark.parametrize("linger", [0, 5_000])
@pytest.mark.parametrize("idempotent", [False, True])
def test_close_after_a_fatal_error_ends_closed(
    world, make_producer, idempotent, linger
):
    """Librdkafka's calls fail after a fatal error; close succeeds all the same."""
    producer = make_producer({"enable.idempotence": idempotent, "linger.ms": linger})
    handles = send(producer)
    trigger_fatal_error(producer)

    with Stopwatch() as watch:
        producer.close(timeout=5, force=True)

    assert watch.seconds < 6
    assert producer.status == "closed"
    assert all(each.done for each in handles)


@pytest.mark.slow
def test_close_at_once_after_a_fatal_error_ends_closed(world, make_producer):
    """A fatal error that was not polled yet is not raised by close."""
    for _ in range(5):
        producer = make_producer()
        producer.produce_sync(topic="t", payload=b"x")
        trigger_fatal_error(producer)

        producer.close()

        assert producer.status == "closed"


# -- context manager ------------------------------------------------------------------


def test_leaving_the_block_closes(world, make_producer):
    """Leaving the block closes, and delivers messages in flight."""
    with make_producer() as producer:
        (handle,) = send(producer)

    assert producer.status == "closed"
    assert handle.report


def test_leaving_the_block_raises_for_undelivered_messages(world, make_producer):
    """A block without an error raises for messages that were not delivered."""
    producer = make_producer(NOWHERE, max_wait_timeout=0.1)

    with pytest.raises(MessagesAbandonedError), producer:
        send(producer)

    assert producer.status == "closed"


def test_interrupted_block_is_left_within_the_exit_timeout(world, make_producer):
    """It takes `exit_timeout`, as at the interpreter's exit, and the loss is logged."""
    producer = make_producer(NOWHERE, exit_timeout=0.2)
    send(producer)
    started = time.monotonic()

    with pytest.raises(KeyboardInterrupt), producer:
        raise KeyboardInterrupt

    assert time.monotonic() - started < 5.0
    assert producer.status == "closed"


@pytest.mark.parametrize(
    "kind", [ZeroDivisionError, KeyboardInterrupt, gevent.GreenletExit, gevent.Timeout]
)
def test_leaving_the_block_hides_no_error(world, make_producer, kind):
    """An error of the block is not replaced by a second one."""
    producer = make_producer(NOWHERE, max_wait_timeout=0.1)
    problem = kind()

    send(producer)
    with pytest.raises(kind) as raised, producer:
        raise problem

    assert raised.value is problem
    assert producer.status == "closed"


# -- concurrent tasks -----------------------------------------------------------------


def test_concurrent_closes_all_succeed(world, mock_cluster, make_producer, spawn):
    """One task closes, the others wait for it, and no error is raised."""
    producer = make_producer()
    warm_up(producer)
    mock_cluster.round_trip(0.1)
    (handle,) = send(producer)
    events, states = [], []
    producer.monitor.subscribe("producer.closed", events.append)

    def close():
        producer.close()
        states.append((producer.status, handle.done))

    tasks = [spawn(close) for _ in range(10)]
    for task in tasks:
        task.join(LONG)

    assert states == [("closed", True)] * 10
    assert len(events) == 1


@pytest.mark.slow
def test_forced_close_by_another_waits_for_the_first(world, make_producer, spawn):
    """While one task waits in close, a forced close by another ends as well."""
    producer = make_producer(NOWHERE)
    send(producer)
    raised = []

    def close_with_timeout():
        try:
            producer.close(timeout=0.5)
        except MessagesAbandonedError as error:
            raised.append(error.count)

    tasks = [spawn(close_with_timeout), spawn(lambda: producer.close(force=True))]
    for task in tasks:
        task.join(LONG)

    assert raised == [1]
    assert producer.status == "closed"


@pytest.mark.slow
def test_close_while_others_send_loses_nothing(
    world, make_producer, spawn, pause, stored
):
    """Ten tasks send while one closes: no message is without an outcome."""
    producer = make_producer()
    handles, refused = [], []

    def sender():
        while True:
            try:
                handles.append(producer.produce_async(topic="t", payload=b"x"))
            except ProducerClosedError as error:
                refused.append(error)
                return
            if not len(handles) % 10:
                pause(0)

    tasks = [spawn(sender) for _ in range(10)]
    pause(0.2)
    producer.close(LONG)
    for task in tasks:
        task.join(LONG)

    assert len(refused) == 10
    assert all(each.done for each in handles)
    assert stored("t") == sum(1 for each in handles if each.report) == len(handles)


@pytest.mark.slow
def test_close_while_others_wait_for_reports_loses_nothing(
    world, make_producer, spawn, pause, stored
):
    """The same holds for senders that wait, for single messages and batches."""
    producer = make_producer()
    delivered, refused = [], []

    def one_by_one():
        try:
            while True:
                delivered.append(producer.produce_sync(topic="t", payload=b"x"))
        except ProducerClosedError as error:
            refused.append(error)

    def in_batches():
        batch = [{"topic": "t", "payload": b"x"}] * 50
        try:
            while True:
                delivered.extend(producer.produce_many_sync(batch))
        except ProducerClosedError as error:
            refused.append(error)
        except ProduceManyError as error:
            # The producer was closed in the middle of a batch.
            delivered.extend(each.report for each in error.dispatched)
            refused.append(error.__cause__)

    tasks = [spawn(one_by_one) for _ in range(8)] + [spawn(in_batches)]
    pause(0.2)
    producer.close(LONG)
    for task in tasks:
        task.join(LONG)

    assert [type(each) for each in refused] == [ProducerClosedError] * 9
    assert None not in delivered
    assert stored("t") == len(delivered)


@pytest.mark.slow
def test_forced_close_while_others_send_reports_every_message(
    world, mock_cluster, make_producer, spawn, pause
):
    """With a slow broker and no timeout every handle has an outcome."""
    producer = make_producer()
    mock_cluster.round_trip(0.1)
    handles = []

    def sender():
        try:
            while True:
                handles.append(producer.produce_async(topic="t", payload=b"x"))
                pause(0.001)
        except ProducerClosedError:
            return

    tasks = [spawn(sender) for _ in range(5)]
    pause(0.3)
    producer.close(force=True)
    for task in tasks:
        task.join(LONG)

    assert len(handles) > 20
    assert all(each.done for each in handles)
    for handle in handles:
        assert handle.report or isinstance(handle.error, MessagePurgedError)


# -- callers that can't wait ----------------------------------------------------------


def test_listener_may_close_on_the_first_acknowledgement(world, make_producer, until):
    """A listener may close its own producer, which ends closed."""
    producer = make_producer()
    times = []

    def listener(_event):
        with Stopwatch() as watch:
            producer.close()
        times.append(watch.seconds)

    producer.monitor.subscribe("message.acknowledged", listener)
    producer.produce_sync(topic="t", payload=b"x")
    until(lambda: producer.status == "closed")

    assert times[0] < 0.5


def test_three_producers_close_themselves(world, make_producer, until):
    """Each of three producers closes on its own acknowledgement."""
    producers = [make_producer() for _ in range(3)]
    for producer in producers:
        producer.monitor.subscribe(
            "message.acknowledged", lambda _, producer=producer: producer.close()
        )
        send(producer)

    until(lambda: all(each.status == "closed" for each in producers))


@pytest.mark.slow
def test_close_during_many_acknowledgements_loses_nothing(
    world, make_producer, spawn, until, pause
):
    """The 50th of 100 acknowledgements closes, while messages are being sent.

    Senders get an error that the producer is closed, and stop.
    """
    producer = make_producer()
    acknowledged, handles = [], []

    def listener(event):
        acknowledged.append(event)
        if len(acknowledged) == 50:
            producer.close()

    def sender():
        try:
            while len(handles) < 10_000:
                handles.extend(send(producer))
                pause(0.0005)
        except ProducerClosedError:
            return

    producer.monitor.subscribe("message.acknowledged", listener)
    tasks = [spawn(sender) for _ in range(4)]
    until(lambda: producer.status == "closed", 5)
    for task in tasks:
        task.join(LONG)

    assert 50 <= len(acknowledged) == len(handles) < 10_000
    assert all(each.report for each in handles)


def test_close_in_a_listener_of_closing_returns(world, make_producer):
    """A listener of `producer.closing` that closes too doesn't wait for itself."""
    producer = make_producer(max_wait_timeout=1.0)
    producer.monitor.subscribe("producer.closing", lambda _: producer.close())
    producer.produce_sync(topic="t", payload=b"x")

    with Stopwatch() as watch:
        producer.close()

    assert watch.seconds < 1.0
    assert producer.status == "closed"


def test_close_in_a_listener_of_closed_returns_at_once(world, make_producer):
    """When `producer.closed` is emitted, a second close returns at once."""
    producer = make_producer(max_wait_timeout=1.0)
    seen = []

    def listener(_event):
        producer.close()
        seen.append(producer.status)

    producer.monitor.subscribe("producer.closed", listener)
    producer.produce_sync(topic="t", payload=b"x")

    with Stopwatch() as watch:
        producer.close()

    assert seen == ["closed"]
    assert watch.seconds < 1.0


def test_abandoned_messages_of_a_close_in_a_listener_are_logged(
    world, make_producer, until, caplog
):
    """No caller could catch the error, so it is logged."""
    producer = make_producer(NOWHERE, max_wait_timeout=0.1)
    handles = send(producer, 3)
    producer.monitor.subscribe("error.occurred", lambda _: producer.close())
    until(lambda: "3 messages were not delivered" in caplog.text)

    assert producer.status == "closed"
    assert all(isinstance(each.error, MessagePurgedError) for each in handles)


def test_close_in_the_hub_continues_in_a_greenlet(hub, mock_cluster, make_producer):
    """A callback of the loop returns at once, and closing goes on in a greenlet."""
    producer = make_producer()
    warm_up(producer)
    mock_cluster.round_trip(0.1)
    (handle,) = send(producer)
    states = []

    def call():
        with Stopwatch() as watch:
            producer.close()
        states.append((producer.status, watch.seconds))

    hub.loop.run_callback(call)
    deadline = time.monotonic() + LONG
    while producer.status != "closed":
        assert time.monotonic() < deadline
        gevent.sleep(0.005)

    assert states[0][0] != "closed"
    assert states[0][1] < 0.1
    assert handle.report


def test_unused_producer_is_closed_at_once_in_the_hub(hub, make_producer):
    """Closing has nothing to wait for, so it is done at once."""
    producer = make_producer()
    states = []

    def call():
        producer.close()
        states.append(producer.status)

    hub.loop.run_callback(call)
    while not states:
        gevent.sleep(0.001)

    assert states == ["closed"]


def test_close_in_the_hub_does_not_wait_for_another_close(
    hub, mock_cluster, make_producer
):
    """The hub neither waits for the greenlet that closes nor raises."""
    producer = make_producer()
    warm_up(producer)
    mock_cluster.round_trip(0.2)
    send(producer)
    closing = gevent.spawn(producer.close)
    gevent.sleep(0.01)
    assert producer.status == "closing"
    returned = []

    hub.loop.run_callback(lambda: returned.append(producer.close()))
    closing.join(LONG)

    assert returned == [None]
    assert producer.status == "closed"


@pytest.mark.slow
def test_close_in_a_signal_handler_without_a_hub_ends_closed(
    mock_cluster, make_producer
):
    """A handler that interrupts a waiting thread closes without a deadlock.

    The thread's own message is delivered.
    """
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"warm")
    mock_cluster.round_trip(0.5)

    before = signal.signal(signal.SIGUSR1, lambda *_: producer.close())
    try:
        main = threading.get_ident()
        timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGUSR1))
        timer.start()
        report = producer.produce_sync(topic="t", payload=b"x")
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    deadline = time.monotonic() + LONG
    while producer.status != "closed":
        assert time.monotonic() < deadline
        time.sleep(0.005)

    assert report.topic == "t"


@pytest.mark.slow
def test_close_in_a_signal_handler_of_gevent_ends_closed(
    hub, mock_cluster, make_producer
):
    """Gevent runs a handler in a greenlet of its own, which may wait."""
    producer = make_producer()
    mock_cluster.round_trip(0.3)
    states = []

    def handler():
        producer.close()
        states.append(producer.status)

    watcher = gevent.signal_handler(signal.SIGUSR1, handler)
    try:
        gevent.spawn_later(0.1, signal.raise_signal, signal.SIGUSR1)
        report = producer.produce_sync(topic="t", payload=b"x")
        deadline = time.monotonic() + LONG
        while not states and time.monotonic() < deadline:
            gevent.sleep(0.005)
    finally:
        watcher.cancel()

    assert report.topic == "t"
    assert states == ["closed"]


# -- interrupted close ----------------------------------------------------------------


def test_gevent_timeout_around_close_still_ends_closed(hub, make_producer):
    """The wait for deliveries ends; undelivered messages are dropped and reported."""
    producer = make_producer(NOWHERE)
    handles = send(producer, 3)

    with Stopwatch() as watch, pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
        producer.close()

    assert watch.seconds < QUICK
    assert producer.status == "closed"
    assert all(isinstance(each.error, MessagePurgedError) for each in handles)


def test_killed_closer_still_ends_closed(hub, make_producer):
    """A greenlet that is killed while it closes leaves a closed producer."""
    producer = make_producer(NOWHERE)
    handles = send(producer, 3)
    closer = gevent.spawn(producer.close)
    gevent.sleep(0.05)

    closer.kill(timeout=LONG)

    assert closer.dead
    assert producer.status == "closed"
    assert all(each.done for each in handles)


@pytest.mark.parametrize("event", ["producer.closing", "producer.closed"])
def test_timeout_in_a_listener_of_closing_still_ends_closed(hub, make_producer, event):
    """The same holds if the timeout comes while a listener runs."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    producer.monitor.subscribe(event, lambda _: gevent.sleep(1.0))

    with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
        producer.close()

    assert producer.status == "closed"
    with Stopwatch() as watch:
        producer.close()
    assert watch.seconds < QUICK


def test_interrupted_close_still_ends_closed(make_producer):
    """Ctrl-C during close drops undelivered messages, and is raised on."""
    producer = make_producer(NOWHERE)
    handles = send(producer, 3)
    main = threading.get_ident()
    timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()

    with Stopwatch() as watch, pytest.raises(KeyboardInterrupt):
        producer.close()
    timer.join()

    assert watch.seconds < QUICK
    assert producer.status == "closed"
    assert all(each.done for each in handles)


@pytest.mark.parametrize("step", ["_announce", "_flush", "_deliver", "_sum_up"])
def test_an_interrupted_close_waits_no_longer(world, make_producer, step):
    """Wherever Ctrl-C comes, `close` drops at once what is not delivered."""
    producer = make_producer(NOWHERE)
    handles = send(producer, 3)
    place = getattr(Shutdown, step)

    with (
        at_entry(place, interrupt) as calls,
        Stopwatch() as watch,
        pytest.raises(KeyboardInterrupt),
    ):
        producer.close(0.1 if step == "_sum_up" else LONG)

    assert calls
    assert watch.seconds < QUICK
    assert producer.status == "closed"
    assert all(each.done for each in handles)


@pytest.mark.slow
def test_closing_lets_other_greenlets_run(longest_gap, mock_cluster, make_producer):
    """Closing lets other greenlets run, the teardown included."""
    producer = make_producer()
    warm_up(producer)
    mock_cluster.round_trip(0.4)
    send(producer, 100)

    with longest_gap() as gap:
        producer.close()

    assert gap.seconds < 0.2


# -- producers that are not closed ----------------------------------------------------


@pytest.mark.parametrize("used", [False, True])
def test_no_reference_keeps_an_unused_producer(mock_cluster, used):
    """Neither the finalizer nor the registry for the exit refers to it."""
    producer = Producer({"bootstrap.servers": mock_cluster.bootstrap_servers})
    if used:
        producer.produce_sync(topic="t", payload=b"x")
        producer.close()
    watched = [weakref.ref(each) for each in (producer, producer._core)]

    del producer
    gc.collect()

    assert [each() for each in watched] == [None, None]


def test_unreferenced_producer_is_closed(world, make_producer, mock_cluster, until):
    """A producer without references closes, and warns."""
    producer = Producer({"bootstrap.servers": mock_cluster.bootstrap_servers})
    handles = send(producer, 3)
    core = producer._core

    with pytest.warns(ResourceWarning, match="never closed"):
        del producer
    until(lambda: core.status == "closed")

    assert all(each.report for each in handles)


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("mode", ["none", "unpatched", "patched", "late"])
def test_short_program_delivers_before_it_exits(run_script, mock_cluster, stored, mode):
    """A program that sends a hundred messages without waiting delivers them all.

    This holds with and without close, and for each way of using gevent.
    """
    run_script(
        """
        import greendrop
        for close in (True, False):
            producer = greendrop.Producer(kafka={"bootstrap.servers": servers})
            for _ in range(100):
                producer.produce_async(topic="t", payload=b"x")
            if close:
                producer.close()
        """,
        mode,
        servers=mock_cluster.bootstrap_servers,
    )

    assert stored("t") == 200


def test_close_that_was_interrupted_at_once_ends_closed(world, make_producer):
    """If Ctrl-C comes before close did anything, the producer is closed anyway."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    buffer = producer._core.shutdown._buffer
    stop = buffer.stop

    def interrupted():
        buffer.stop = stop
        raise KeyboardInterrupt

    buffer.stop = interrupted
    with pytest.raises(KeyboardInterrupt):
        producer.close()

    assert producer.status == "closed"
    assert producer._slot.client is None
    producer.close()
