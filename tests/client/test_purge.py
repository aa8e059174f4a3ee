import gevent
import pytest

from greendrop import DeliveryError, Message, MessagePurgedError, Producer
from tests.tasks import await_true

#: No broker listens there: a connection is refused at once.
NOWHERE = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
#: Seconds. Nothing here takes nearly as long when it works.
LONG = 20.0


@pytest.fixture
def stuck():
    """Make a producer whose messages stay queued, since no broker is there."""
    producer = Producer(NOWHERE)
    yield producer
    producer.close(force=True)


def send(producer, count=1):
    """Send messages without waiting; return their handles."""
    return [
        producer.produce_async(topic="t", payload=b"x", label=number)
        for number in range(count)
    ]


def names_of_events(producer):
    """Collect the events of a producer from now on, except broker errors."""
    events = []
    producer.monitor.subscribe("buffer.purged", events.append)
    producer.monitor.subscribe(
        "error.occurred",
        lambda event: event["type"] != "librdkafka.error" and events.append(event),
    )
    return events


@pytest.mark.parametrize("count", [1, 3_000])
def test_handles_of_purged_messages_have_an_error(world, stuck, count):
    """Each message in flight has its outcome when purge returns."""
    events = names_of_events(stuck)
    handles = send(stuck, count)

    stuck.purge()

    assert {type(each.error) for each in handles} == {MessagePurgedError}
    assert stuck.queue_size == 0
    assert [each["type"] for each in events[:-1]] == ["librdkafka.dispatch_error"] * (
        count
    )
    assert sorted(each["label"] for each in events[:-1]) == list(range(count))
    assert events[-1].name == "buffer.purged"
    assert events[-1]["producer_id"] == stuck.id
    assert 0 <= events[-1]["time"] < LONG


@pytest.mark.parametrize("connected", [False, True])
def test_buffered_messages_are_purged_too(world, make_producer, connected):
    """The buffer is empty afterwards; the event has its messages."""
    producer = make_producer()
    events = []
    producer.monitor.subscribe("buffer.purged", events.append)
    if connected:
        producer.produce_sync(topic="t", payload=b"x")
    producer.buffer(topic="t", payload=b"x")

    producer.purge()

    assert producer.buffered == ()
    assert [event["messages"] for event in events] == [(Message("t", b"x"),)]
    assert producer.flush_sync() == []


def test_messages_in_flight_are_purged_too(world, mock_cluster, make_producer, until):
    """A message that a broker got but did not acknowledge is dropped as well."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"warm")
    mock_cluster.round_trip(1.0)
    mock_cluster.watch_requests()
    (handle,) = send(producer)
    until(lambda: "Produce" in mock_cluster.requests())

    producer.purge()

    assert isinstance(handle.error, MessagePurgedError)
    assert handle.error.name == "_PURGE_INFLIGHT"
    mock_cluster.round_trip(0)


def test_producer_works_after_a_purge(world, mock_cluster, make_producer, stored):
    """A message sent after a purge is delivered by the same client."""
    producer = make_producer()
    connected = []
    producer.monitor.subscribe("producer.connected", connected.append)
    producer.produce_sync(topic="t", payload=b"x")

    for _ in range(3):
        send(producer, 10)
        producer.purge()
        producer.produce_sync(topic="t", payload=b"x")

    assert producer.status == "connected"
    assert len(connected) == 1
    assert stored("t") >= 4


def test_batched_messages_of_another_thread_are_purged(hub, stuck):
    """A thread that purges also drops the messages that the hub has batched."""
    handles = send(stuck, 20)

    gevent.get_hub().threadpool.apply(stuck.purge)

    assert {type(each.error) for each in handles} == {MessagePurgedError}


@pytest.mark.parametrize("state", ["initial", "configured", "closed"])
def test_purge_without_a_connection_does_nothing(mock_cluster, state):
    """Purging without a client opens nothing, and emits an event."""
    producer = Producer()
    if state != "initial":
        producer.setup({"bootstrap.servers": mock_cluster.bootstrap_servers})
    if state == "closed":
        producer.close()
    events = names_of_events(producer)
    mock_cluster.watch_requests()

    producer.purge()

    assert producer.status == state
    assert mock_cluster.requests() == []
    assert len(events) == (state != "initial")


def test_purge_in_a_listener_returns_at_once(world, stuck, until):
    """A listener may purge: the poller that it holds up brings the reports later."""
    done = []
    # Sent before: a message that is sent after the purge would stay.
    handles = send(stuck, 5)

    @stuck.monitor.subscribe("error.occurred")
    def purge_once(event):
        if not done:
            done.append(event)
            stuck.purge()

    until(lambda: all(each.done for each in handles))

    assert {type(each.error) for each in handles} == {MessagePurgedError}


def test_purge_in_the_hub_returns_at_once(hub, stuck):
    """A callback of the event loop may purge."""
    handles = send(stuck, 5)
    raised = []

    def purge():
        try:
            stuck.purge()
        except BaseException as error:  # noqa: BLE001 - raised below
            raised.append(error)

    hub.loop.run_callback(purge)
    await_true(lambda: all(each.done for each in handles))

    assert raised == []
    assert {type(each.error) for each in handles} == {MessagePurgedError}


def test_purge_lets_other_greenlets_run(stuck, longest_gap):
    """While 20,000 messages are dropped, other greenlets run."""
    handles = send(stuck, 20_000)

    with longest_gap() as gap:
        stuck.purge()

    assert all(isinstance(each.error, DeliveryError) for each in handles)
    assert gap.seconds < 0.1


def test_purge_frees_space_for_waiting_senders(world, spawn, until):
    """A sender that waits for space gets it after a purge."""
    producer = Producer(NOWHERE | {"queue.buffering.max.messages": 5})
    send(producer, 5)
    handles = []
    sender = spawn(lambda: handles.extend(send(producer)))
    until(lambda: producer._core._connections.clients[0].has_waiters)

    producer.purge()
    sender.join()

    assert len(handles) == 1
    producer.close(force=True)
