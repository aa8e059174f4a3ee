import gc
import time
import weakref

import gevent
import pytest

from greendrop import Message, Producer, ProducerClosedError, StatisticsNotEnabledError
from greendrop._producer.idle import IdleWatch
from greendrop.config import rules
from tests.client.test_leaks import in_use, more_in_use
from tests.tasks import await_true

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 20.0


def send(producer, count=1):
    """Send messages without waiting; give their handles."""
    return [producer.produce_async(topic="t", payload=b"x") for _ in range(count)]


def life_of(producer):
    """Note the events of a producer's life from now on, by name."""
    heard = []
    for name in ("connected", "disconnecting", "disconnected", "closing", "closed"):
        producer.monitor.subscribe(
            f"producer.{name}", lambda event: heard.append(event.name[9:])
        )
    return heard


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


def test_tells_its_life(world, make_producer):
    """Each step is told once, in order; the last one with its time."""
    producer = make_producer()
    heard = life_of(producer)
    times = []
    producer.monitor.subscribe(
        "producer.disconnected", lambda event: times.append(event["time"])
    )
    send(producer)
    producer.disconnect()
    assert (producer.queue_size, producer.polling) == (0, None)
    send(producer)[0].wait(LONG)
    producer.close()

    assert heard == [
        *("connected", "disconnecting", "disconnected"),
        *("connected", "closing", "closed"),
    ]
    assert 0 <= times[0] < LONG


def test_disconnect_waits_for_deliveries(world, mock_cluster, make_producer):
    """What is on its way is delivered before the connection ends."""
    producer = make_producer({"linger.ms": 100})
    handles = send(producer, 20)

    assert producer.disconnect() is True
    assert all(each.report for each in handles)


@pytest.mark.parametrize("state", ["initial", "configured", "disconnected", "closed"])
def test_disconnect_is_refused_without_a_connection(mock_cluster, make_producer, state):
    """There is nothing to do for who is not connected."""
    producer = Producer() if state == "initial" else make_producer()
    if state in ("disconnected", "closed"):
        producer.produce_sync(topic="t", payload=b"x")
        (producer.close if state == "closed" else producer.disconnect)()
    heard = life_of(producer)

    assert producer.disconnect() is False
    assert (producer.status, heard) == (state, [])


def test_disconnect_gives_up_when_its_time_is_over(world, mock_cluster, make_producer):
    """Messages that are not delivered in time are kept, and so is the connection."""
    producer = make_producer(max_wait_timeout=0.2)
    send(producer)[0].wait(LONG)
    mock_cluster.round_trip(1.0)
    (handle,) = send(producer)

    assert producer.disconnect() is False
    assert producer.status == "connected"
    mock_cluster.round_trip(0)
    assert handle.wait(LONG).topic == "t"


def test_disconnect_is_refused_while_somebody_waits_for_room(
    world, mock_cluster, make_producer, spawn, until
):
    """Who waits to send is not disturbed."""
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
    """Who has buffered is going to send."""
    producer = make_producer()
    send(producer)[0].wait(LONG)
    producer.buffer(topic="t", payload=b"x")

    assert producer.disconnect() is False
    assert producer.flush_sync()
    assert producer.disconnect() is True


def test_message_calls_off_a_disconnect(
    world, mock_cluster, make_producer, spawn, until
):
    """A message that is sent while others are awaited keeps the connection."""
    producer = make_producer()
    send(producer)[0].wait(LONG)
    heard = life_of(producer)
    mock_cluster.round_trip(0.5)
    handles = send(producer)
    told = []
    task = spawn(lambda: told.append(producer.disconnect()))
    until(lambda: producer.status == "disconnecting")

    handles += send(producer)
    task.join()

    assert told == [False]
    assert producer.status == "connected"
    assert heard == ["disconnecting"]
    mock_cluster.round_trip(0)
    assert all(each.wait(LONG) for each in handles)


@pytest.mark.slow
def test_concurrent_senders_notice_nothing(world, make_producer, spawn, pause, stored):
    """Whatever disconnects meanwhile, each message is delivered, in order."""
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
        except Exception as error:  # noqa: BLE001 - told below
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
    """A native thread that disconnects all the time costs the greenlets no message."""
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
    """One who had got hold of the client just before loses nothing by it."""
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


def test_disconnect_in_a_listener_goes_on_by_itself(world, make_producer, until):
    """A listener gets its answer at once, and nothing dead-locks (section 10, 30)."""
    producer = make_producer()
    told = []
    producer.monitor.subscribe(
        "message.acknowledged", lambda _: told.append(producer.disconnect())
    )

    producer.produce_sync(topic="t", payload=b"x")
    until(lambda: producer.status == "disconnected")

    assert told == [True]


def test_disconnect_in_the_hub_itself_goes_on_by_itself(hub, make_producer):
    """A callback of the event loop may disconnect."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    told = []

    hub.loop.run_callback(lambda: told.append(producer.disconnect()))
    await_true(lambda: producer.status == "disconnected")

    assert told == [True]


def test_killed_disconnect_stays_connected(hub, mock_cluster, make_producer):
    """A timeout that cuts the wait short leaves a producer that works."""
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
    """Who closes while another disconnects closes."""
    producer = make_producer()
    send(producer)[0].wait(LONG)
    mock_cluster.round_trip(0.3)
    (handle,) = send(producer)
    told = []
    task = spawn(lambda: told.append(producer.disconnect()))
    until(lambda: producer.status == "disconnecting")

    producer.close()
    task.join()

    assert (producer.status, told) == ("closed", [False])
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

    await_true(lambda: not more_in_use(before))
    gc.collect()
    assert sum(each() is not None for each in clients) <= 1


@pytest.mark.slow
def test_statistics_stop_and_go_on(world, make_producer, pause, until):
    """None come while disconnected, and each once afterwards."""
    producer = make_producer({"statistics.interval.ms": 50})
    heard = []
    producer.monitor.subscribe("statistics.emitted", heard.append)
    send(producer)[0].wait(LONG)
    until(lambda: len(heard) > 2)
    producer.disconnect()
    heard.clear()
    pause(0.2)
    assert heard == []

    send(producer)[0].wait(LONG)
    until(lambda: len(heard) > 4)
    ages = [each["statistics"]["age"] for each in heard]
    assert len(set(ages)) == len(ages)


def test_statistics_may_be_listened_to_after_a_disconnect(world, make_producer, until):
    """Too late holds for one connection only (section 10, 24)."""
    producer = make_producer({"statistics.interval.ms": 50})
    send(producer)[0].wait(LONG)
    heard = []
    with pytest.raises(StatisticsNotEnabledError):
        producer.monitor.subscribe("statistics.emitted", heard.append)
    producer.disconnect()

    producer.monitor.subscribe("statistics.emitted", heard.append)
    send(producer)[0].wait(LONG)

    until(lambda: heard)


# -- when idle ----------------------------------------------------------------------


@pytest.fixture
def short_idle(monkeypatch):
    """Let a producer be idle after less than half a minute."""
    monkeypatch.setattr(rules, "SHORTEST_IDLE_TIMEOUT", 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("interval", [0, 50])
def test_idle_producer_disconnects(world, short_idle, make_producer, until, interval):
    """One that was used once is disconnected, statistics or not, and usable after.

    Acceptance check 99; section 10, 23.
    """
    producer = make_producer(
        {"statistics.interval.ms": interval}, idle_disconnect_timeout=0.2
    )
    for _ in range(2):
        send(producer)[0].wait(LONG)
        began = time.monotonic()
        until(lambda: producer.status == "disconnected")
        assert time.monotonic() - began > 0.1


@pytest.mark.slow
def test_used_producer_stays_connected(world, short_idle, make_producer, pause):
    """One that sends now and then, or never did, is left alone."""
    used = make_producer(idle_disconnect_timeout=0.4)
    unused = make_producer(idle_disconnect_timeout=0.4)
    heard = life_of(used)
    ends = time.monotonic() + 1.5
    while time.monotonic() < ends:
        send(used)
        pause(0.05)

    assert heard == ["connected"]
    assert (used.status, unused.status) == ("connected", "configured")


@pytest.mark.slow
def test_waiting_message_keeps_an_idle_producer_connected(
    world, short_idle, mock_cluster, make_producer, pause
):
    """A message on its way is no idleness, however long it takes."""
    producer = make_producer(idle_disconnect_timeout=0.2)
    send(producer)[0].wait(LONG)
    mock_cluster.round_trip(1.0)
    heard = life_of(producer)
    (handle,) = send(producer)
    pause(0.6)

    assert heard == []
    mock_cluster.round_trip(0)
    handle.wait(LONG)


@pytest.mark.slow
def test_failure_of_an_idle_disconnect_is_told(
    world, short_idle, make_producer, until, hub_errors
):
    """An error that nobody is there to catch is an event."""
    producer = make_producer(idle_disconnect_timeout=0.2)
    heard = []
    producer.monitor.subscribe(
        "error.occurred",
        lambda event: heard.append((event["type"], str(event["error"]))),
    )

    send(producer)[0].wait(LONG)
    client = producer._slot.client
    close = client.close

    def fail():
        close()
        raise TimeoutError("too long")

    client.close = fail
    until(lambda: heard)

    assert heard == [("producer.disconnect.error", "too long")]
    assert producer.status == "disconnected"


def test_idle_watch_measures_from_the_last_activity():
    """Idle is who had no verdict and nothing on its way; then not at once again."""
    now = [0.0]
    watch = IdleWatch(10.0, lambda: now[0])
    told = []
    for now[0], settled, busy in [
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
        told.append(watch.is_idle(settled, busy=busy))

    assert told == [False] * 6 + [True, False, False, True]


def test_no_timer_when_off(hub, make_producer):
    """Without the setting nothing ticks."""
    producer = make_producer()
    send(producer)[0].wait(LONG)

    assert producer._slot.client.poll_loop.poller._periodic_timer is None
