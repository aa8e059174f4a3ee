import gc
import time
import weakref

import gevent
import pytest

from greendrop import Message, Producer, ProducerClosedError, StatisticsNotEnabledError
from greendrop._producer.disconnect import IdleWatch
from greendrop.config import rules
from tests.client.test_leaks import in_use, is_more_in_use
from tests.tasks import await_true

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 20.0


def send(producer, count=1):
    """Send messages without waiting; return their handles."""
    return [producer.produce_async(topic="t", payload=b"x") for _ in range(count)]


def connection_events_of(producer):
    """Collect the connection events of a producer from now on, by name."""
    events = []
    for name in ("connected", "disconnecting", "disconnected", "closing", "closed"):
        producer.monitor.subscribe(
            f"producer.{name}", lambda event: events.append(event.name[9:])
        )
    return events


# -- disconnecting ------------------------------------------------------------------


@pytest.mark.slow
def test_disconnects_and_connects_again(world, make_producer):
    """A hundred rounds of sending and disconnecting keep consecutive offsets."""
    producer = make_producer()
    offsets = []
    for _ in range(100):
        report = producer.produce_sync(topic="t", payload=b"x", partition=0)
        offsets.append(report.offset)
        assert producer.disconnect() is True
        assert producer.status == "disconnected"

    assert offsets == list(range(100))


def test_steps_emit_events(world, make_producer):
    """Each step emits one event, in order; the last one has the duration."""
    producer = make_producer()
    events = connection_events_of(producer)
    times = []
    producer.monitor.subscribe(
        "producer.disconnected", lambda event: times.append(event["time"])
    )
    send(producer)
    producer.disconnect()
    assert (producer.queue_size, producer.polling) == (0, None)
    send(producer)[0].wait(LONG)
    producer.close()

    assert events == [
        *("connected", "disconnecting", "disconnected"),
        *("connected", "closing", "closed"),
    ]
    assert 0 <= times[0] < LONG


def test_disconnect_waits_for_deliveries(world, mock_cluster, make_producer):
    """Messages in flight are delivered before the connection ends."""
    producer = make_producer({"linger.ms": 100})
    handles = send(producer, 20)

    assert producer.disconnect() is True
    assert all(each.report for each in handles)


@pytest.mark.parametrize("state", ["initial", "configured", "disconnected", "closed"])
def test_disconnect_is_refused_without_a_connection(mock_cluster, make_producer, state):
    """A producer that is not connected has nothing to disconnect."""
    producer = Producer() if state == "initial" else make_producer()
    if state in ("disconnected", "closed"):
        producer.produce_sync(topic="t", payload=b"x")
        (producer.close if state == "closed" else producer.disconnect)()
    events = connection_events_of(producer)

    assert producer.disconnect() is False
    assert (producer.status, events) == (state, [])


def test_disconnect_gives_up_after_its_timeout(world, mock_cluster, make_producer):
    """Messages that are not delivered in time are kept, and so is the connection."""
    producer = make_producer(max_wait_timeout=0.2)
    send(producer)[0].wait(LONG)
    mock_cluster.round_trip(1.0)
    (handle,) = send(producer)

    assert producer.disconnect() is False
    assert producer.status == "connected"
    mock_cluster.round_trip(0)
    assert handle.wait(LONG).topic == "t"


def test_disconnect_is_refused_while_a_sender_waits_for_space(
    world, mock_cluster, make_producer, spawn, until
):
    """A sender that waits for space keeps the connection."""
    producer = make_producer({"queue.buffering.max.messages": 2})
    send(producer)[0].wait(LONG)
    mock_cluster.round_trip(0.5)
    send(producer, 2)
    sent = []
    sender = spawn(lambda: sent.extend(send(producer)))
    until(lambda: producer._core._connections.clients[0].has_waiters)

    assert producer.disconnect() is False
    mock_cluster.round_trip(0)
    sender.join()
    assert sent[0].wait(LONG).topic == "t"


def test_disconnect_is_refused_while_messages_are_buffered(world, make_producer):
    """Buffered messages are going to be sent."""
    producer = make_producer()
    send(producer)[0].wait(LONG)
    producer.buffer(topic="t", payload=b"x")

    assert producer.disconnect() is False
    assert producer.flush_sync()
    assert producer.disconnect() is True


def test_message_cancels_a_disconnect(world, mock_cluster, make_producer, spawn, until):
    """A message that is sent during the wait for others keeps the connection."""
    producer = make_producer()
    send(producer)[0].wait(LONG)
    events = connection_events_of(producer)
    mock_cluster.round_trip(0.5)
    handles = send(producer)
    observed = []
    task = spawn(lambda: observed.append(producer.disconnect()))
    until(lambda: producer.status == "disconnecting")

    handles += send(producer)
    task.join()

    assert observed == [False]
    assert producer.status == "connected"
    assert events == ["disconnecting"]
    mock_cluster.round_trip(0)
    assert all(each.wait(LONG) for each in handles)


@pytest.mark.slow
def test_disconnects_do_not_affect_concurrent_senders(
    world, make_producer, spawn, pause, stored
):
    """Each message is delivered in order, whenever another task disconnects."""
    producer = make_producer()
    ends = time.monotonic() + 1.0
    offsets = [[] for _ in range(4)]
    errors = []

    def go_on(number):
        try:
            while time.monotonic() < ends:
                report = producer.produce_sync(
                    topic="t", payload=b"x", partition=number
                )
                offsets[number].append(report.offset)
                pause(0.001 * number)
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)

    tasks = [spawn(lambda number=number: go_on(number)) for number in range(4)]
    disconnected = 0
    while time.monotonic() < ends:
        disconnected += producer.disconnect()
        pause(0.002)
    for task in tasks:
        task.join()

    assert errors == []
    assert disconnected > 0
    assert all(each == list(range(len(each))) for each in offsets)
    assert stored("t") == sum(map(len, offsets))


@pytest.mark.slow
def test_thread_disconnects_under_a_hub_that_sends(hub, make_producer, stored):
    """A thread that disconnects again and again costs the greenlets no message."""
    producer = make_producer()
    send(producer)[0].wait(LONG)
    ends = time.monotonic() + 1.0
    count = 1

    def disconnect():
        done = 0
        while time.monotonic() < ends:
            done += producer.disconnect()
        return done

    thread = hub.threadpool.spawn(disconnect)
    while time.monotonic() < ends:
        handles = send(producer, 3)
        count += 3
        assert all(each.wait(LONG) for each in handles)
    assert thread.get() > 0
    assert stored("t") == count


def test_late_message_goes_to_the_next_client(world, make_producer, until, stored):
    """A sender that got the client just before the disconnect loses nothing."""
    producer = make_producer()
    send(producer)[0].wait(LONG)
    late = producer._slot.client
    producer.disconnect()

    if world == "greenlets":
        handle = late.send(Message("t", b"x"))
    else:
        with pytest.raises(ProducerClosedError):  # and `Core._send` sends it again
            late.send(Message("t", b"x"))
        (handle,) = send(producer)

    assert handle.wait(LONG).topic == "t"
    assert stored("t") == 2


def test_disconnect_in_a_listener_continues_in_the_background(
    world, make_producer, until
):
    """The listener's call returns at once, and nothing deadlocks."""
    producer = make_producer()
    observed = []
    producer.monitor.subscribe(
        "message.acknowledged", lambda _: observed.append(producer.disconnect())
    )

    producer.produce_sync(topic="t", payload=b"x")
    until(lambda: producer.status == "disconnected")

    assert observed == [True]


def test_disconnect_in_the_hub_continues_in_the_background(hub, make_producer):
    """A callback of the event loop may disconnect."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    observed = []

    hub.loop.run_callback(lambda: observed.append(producer.disconnect()))
    await_true(lambda: producer.status == "disconnected")

    assert observed == [True]


def test_killed_disconnect_stays_connected(hub, mock_cluster, make_producer):
    """A timeout that ends the wait leaves a working producer."""
    producer = make_producer()
    send(producer)[0].wait(LONG)
    mock_cluster.round_trip(0.5)
    handles = send(producer)

    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        producer.disconnect()

    assert producer.status == "connected"
    mock_cluster.round_trip(0)
    assert all(each.wait(LONG) for each in handles + send(producer))


def test_closing_ends_a_disconnect(world, mock_cluster, make_producer, spawn, until):
    """A close during a disconnect closes the producer."""
    producer = make_producer()
    send(producer)[0].wait(LONG)
    mock_cluster.round_trip(0.3)
    (handle,) = send(producer)
    observed = []
    task = spawn(lambda: observed.append(producer.disconnect()))
    until(lambda: producer.status == "disconnecting")

    producer.close()
    task.join()

    assert (producer.status, observed) == ("closed", [False])
    assert handle.report


@pytest.mark.slow
def test_rounds_leak_nothing(world, make_producer):
    """Connecting again and again leaves no thread, descriptor or client."""
    producer = make_producer()
    send(producer)[0].wait(LONG)
    clients = [weakref.ref(producer._slot.client)]
    producer.disconnect()
    before = in_use()
    for _ in range(20):
        send(producer)[0].wait(LONG)
        clients.append(weakref.ref(producer._slot.client))
        producer.disconnect()

    await_true(lambda: not is_more_in_use(before))
    gc.collect()
    assert sum(each() is not None for each in clients) <= 1


@pytest.mark.slow
def test_statistics_stop_while_disconnected(world, make_producer, pause, until):
    """No statistics come while disconnected, and each comes once afterwards."""
    producer = make_producer({"statistics.interval.ms": 50})
    events = []
    producer.monitor.subscribe("statistics.emitted", events.append)
    send(producer)[0].wait(LONG)
    until(lambda: len(events) > 2)
    producer.disconnect()
    events.clear()
    pause(0.2)
    assert events == []

    send(producer)[0].wait(LONG)
    until(lambda: len(events) > 4)
    ages = [each["statistics"]["age"] for each in events]
    assert len(set(ages)) == len(ages)


def test_statistics_may_be_subscribed_to_after_a_disconnect(
    world, make_producer, until
):
    """A subscription that is too late for one connection is in time for the next."""
    producer = make_producer({"statistics.interval.ms": 50})
    send(producer)[0].wait(LONG)
    events = []
    with pytest.raises(StatisticsNotEnabledError):
        producer.monitor.subscribe("statistics.emitted", events.append)
    producer.disconnect()

    producer.monitor.subscribe("statistics.emitted", events.append)
    send(producer)[0].wait(LONG)

    until(lambda: events)


# -- idle producers -----------------------------------------------------------------


@pytest.fixture
def short_idle(monkeypatch):
    """Let a producer be idle after less than half a minute."""
    monkeypatch.setattr(rules, "SHORTEST_IDLE_TIMEOUT", 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("interval", [0, 50])
def test_idle_producer_disconnects(world, short_idle, make_producer, until, interval):
    """It is disconnected with and without statistics, and usable afterwards."""
    producer = make_producer(
        {"statistics.interval.ms": interval}, idle_disconnect_timeout=0.2
    )
    for _ in range(2):
        send(producer)[0].wait(LONG)
        started = time.monotonic()
        until(lambda: producer.status == "disconnected")
        assert time.monotonic() - started > 0.1


@pytest.mark.slow
def test_used_producer_stays_connected(world, short_idle, make_producer, pause):
    """A producer that sends now and then, or never did, is not disconnected."""
    used = make_producer(idle_disconnect_timeout=0.4)
    unused = make_producer(idle_disconnect_timeout=0.4)
    events = connection_events_of(used)
    ends = time.monotonic() + 1.5
    while time.monotonic() < ends:
        send(used)
        pause(0.05)

    assert events == ["connected"]
    assert (used.status, unused.status) == ("connected", "configured")


@pytest.mark.slow
def test_waiting_message_keeps_an_idle_producer_connected(
    world, short_idle, mock_cluster, make_producer, pause
):
    """A producer with a message in flight is not idle."""
    producer = make_producer(idle_disconnect_timeout=0.2)
    send(producer)[0].wait(LONG)
    mock_cluster.round_trip(1.0)
    events = connection_events_of(producer)
    (handle,) = send(producer)
    pause(0.6)

    assert events == []
    mock_cluster.round_trip(0)
    handle.wait(LONG)


@pytest.mark.slow
def test_failure_of_an_idle_disconnect_is_reported(
    world, short_idle, make_producer, until, hub_errors
):
    """The error has no caller that could catch it, so it is an event."""
    producer = make_producer(idle_disconnect_timeout=0.2)
    events = []
    producer.monitor.subscribe(
        "error.occurred",
        lambda event: events.append((event["type"], str(event["error"]))),
    )

    send(producer)[0].wait(LONG)
    client = producer._slot.client
    close = client.close

    def fail():
        close()
        raise TimeoutError("too long")

    client.close = fail
    until(lambda: events)

    assert events == [("producer.disconnect.error", "too long")]
    assert producer.status == "disconnected"


def test_idle_watch_measures_from_the_last_activity():
    """A producer is idle after a time without reports and messages in flight."""
    now = [0.0]
    watch = IdleWatch(10.0)
    watch._clock = lambda: now[0]
    observed = []
    for now[0], reported, busy in [
        (0.0, 1, False),
        (9.0, 1, False),
        (9.5, 2, False),
        (19.0, 2, False),
        (19.4, 2, True),
        (29.0, 2, False),
        (29.4, 2, False),
        (30.0, 2, False),
        (39.3, 2, False),
        (39.4, 2, False),
    ]:
        observed.append(watch.is_idle(reported, busy=busy))

    assert observed == [False] * 6 + [True, False, False, True]


def test_no_timer_without_the_setting(hub, make_producer):
    """Without the setting there is no timer."""
    producer = make_producer()
    send(producer)[0].wait(LONG)

    assert producer._slot.client.poll_loop.poller._periodic_timer is None
