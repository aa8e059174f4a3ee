import contextlib
import signal
import time

import gevent
import pytest

from greendrop import (
    ConfigurationInvalidError,
    DeliveryError,
    IllegalWaitError,
    Message,
    MessagePurgedError,
    MessagesAbandonedError,
    ProduceError,
    ProducerClosedError,
)
from greendrop._client.client import Client
from greendrop._connections.recovery import Recovery
from greendrop.testing import fatal_error, trigger_fatal_error
from tests.interrupting import at_entry, handling, interrupt
from tests.tasks import await_true

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 20.0
#: librdkafka's error code for "fenced".
FENCED = -144


def send(producer, count=1, **fields):
    """Send messages without waiting; return their handles."""
    return [
        producer.produce_async(topic="t", payload=b"x", label=number, **fields)
        for number in range(count)
    ]


def events_of(producer, *names):
    """Collect events by name from now on."""
    events = []
    for name in names:
        producer.monitor.subscribe(name, events.append)
    return events


@pytest.fixture
def reloading(make_producer):
    """Make connected idempotent producers that replace their client without delay."""

    def make(kafka=None, **settings):
        options = {
            "reload_on_idempotent_fatal_error": True,
            "wait_backoff_on_idempotent_fatal_error": 0.0,
        }
        producer = make_producer(
            {"enable.idempotence": True} | (kafka or {}), **options | settings
        )
        producer.produce_sync(topic="t", payload=b"warm", partition=0)
        return producer

    return make


# -- replaced -----------------------------------------------------------------------


def test_message_after_a_fatal_error_goes_to_a_new_client(world, reloading):
    """Each of several messages succeeds, and the client is replaced once."""
    producer = reloading()
    old = producer._slot.client
    events = events_of(producer, "producer.reload", "producer.reloaded")
    assert fatal_error(producer) is None
    trigger_fatal_error(producer, 47)
    assert fatal_error(producer)[0] == 47
    for _ in range(5):
        assert producer.produce_sync(topic="t", payload=b"x").topic == "t"

    await_true(lambda: len(events) >= 2)
    assert [each.name for each in events] == ["producer.reload", "producer.reloaded"]
    assert [each["attempt"] for each in events] == [1, 1]
    assert (events[0]["error"].code, events[0]["error"].fatal) == (47, True)
    assert 0 <= events[1]["time"] < LONG
    assert producer._slot.client is not old
    assert producer.status == "connected"


@pytest.mark.parametrize("place", [Recovery.run, Client.purge_queue])
def test_a_client_is_replaced_although_the_task_was_interrupted(
    hub, reloading, hub_errors, place
):
    """A signal handler may raise in the task, also before it has done anything."""
    producer = reloading()
    trigger_fatal_error(producer, 47)

    with (
        handling(signal.SIGINT, interrupt) as raise_signal,
        at_entry(place, raise_signal) as calls,
        contextlib.suppress(KeyboardInterrupt),
    ):
        send(producer)
        gevent.sleep(1)
    hub_errors.clear()

    assert calls
    assert send(producer)[0].wait(LONG)
    assert producer.status == "connected"


def test_events_of_a_recovery_are_in_order(world, reloading):
    """The events are the error, `producer.reload`, and the new client's connection."""
    producer = reloading()
    events = events_of(
        producer,
        *("error.occurred", "producer.reload", "producer.connected"),
        *("producer.reloaded", "message.produced_sync"),
    )
    trigger_fatal_error(producer, 47)
    producer.produce_sync(topic="t", payload=b"x")
    await_true(lambda: "producer.reloaded" in [each.name for each in events])
    names = [
        each.name
        for each in events
        if each.name != "error.occurred"
        or each["type"] == "librdkafka.idempotent_fatal_error"
    ]

    assert names[:3] == ["error.occurred", "producer.reload", "producer.connected"]
    assert sorted(names[3:]) == ["message.produced_sync", "producer.reloaded"]


def test_messages_keep_their_order(world, reloading, mock_cluster):
    """Messages sent after the error arrive in the order in which they were sent."""
    producer = reloading(wait_backoff_on_idempotent_fatal_error=0.2)
    trigger_fatal_error(producer, 47)

    handles = send(producer, 300, partition=1)
    offsets = [each.wait(LONG).offset for each in handles]
    handles = send(producer, 5, partition=1)
    offsets += [each.wait(LONG).offset for each in handles]

    assert offsets == list(range(305))


def test_batch_goes_to_the_new_client(world, reloading):
    """A batch that meets the error succeeds as a whole."""
    producer = reloading()
    trigger_fatal_error(producer, 47)
    batch = [Message("t", b"x", partition=2, label=number) for number in range(200)]

    reports = producer.produce_many_sync(batch)

    assert [each.label for each in reports] == list(range(200))
    assert [each.offset for each in reports] == list(range(200))


@pytest.mark.slow
def test_concurrent_senders_all_succeed(world, reloading, spawn):
    """Eight senders over five fatal errors: each sync verb succeeds.

    Each client is replaced once, whichever sender meets its error.
    """
    producer = reloading()
    events = events_of(producer, "producer.reloaded")
    errors = []
    reports = []

    def go_on():
        try:
            reports.append(producer.produce_sync(topic="t", payload=b"x"))
        except ProduceError as error:
            errors.append(error)

    for _ in range(5):
        trigger_fatal_error(producer, 47)
        for task in [spawn(go_on) for _ in range(8)]:
            task.join()

    assert errors == []
    assert len(reports) == 40
    await_true(lambda: len(events) >= 5)
    assert len(events) == 5


@pytest.mark.slow
def test_error_during_traffic_affects_only_messages_in_flight(
    world, reloading, spawn, pause
):
    """Senders that never pause see at most a clean error, and go on."""
    producer = reloading()
    ends = time.monotonic() + 1.5
    delivered, failed = [], []

    def go_on():
        while time.monotonic() < ends:
            try:
                delivered.append(producer.produce_sync(topic="t", payload=b"x"))
            except DeliveryError as error:
                failed.append(error)

    tasks = [spawn(go_on) for _ in range(8)]
    for _ in range(3):
        pause(0.3)
        trigger_fatal_error(producer, 47)
    for task in tasks:
        task.join()

    assert delivered
    assert len(failed) <= 3 * 8
    assert producer.produce_sync(topic="t", payload=b"x")


def test_sender_that_was_held_up_goes_to_the_new_client(world, reloading, until):
    """A sender that got the old client before, and sends only now, loses nothing."""
    producer = reloading()
    late = producer._slot.client
    trigger_fatal_error(producer, 47)
    producer.produce_sync(topic="t", payload=b"x")
    assert producer._slot.client is not late

    if world == "greenlets":
        assert late.send(Message("t", b"x")).wait(LONG).topic == "t"
    else:
        # `Core._send` sends it again at once: if the client kept it, to pass it on
        # later, the next message of the same thread would overtake it.
        until(lambda: producer._slot.active is not late)
        with pytest.raises(ProducerClosedError):
            late.send(Message("t", b"x"))


class ClosedClient:
    """A client that another thread closes just when it is used."""

    mark = (1,)

    def __init__(self, slot):
        self._slot = slot
        self._real = slot.active
        slot.active = self

    def send_plain(self, *_):
        """Leave each message to `send`."""

    def send(self, *_, **__):
        """Behave as a closed client, with the real client in its place."""
        self._slot.active = self._real
        raise ProducerClosedError("closed meanwhile")

    def send_many(self, _):
        """Do the same before the first message."""
        self._slot.active = self._real
        return []

    def flush_batcher(self):
        """Flush nothing."""


def test_senders_that_meet_a_closed_client_send_again(world, make_producer):
    """A sender that finds its client closed sends by the next client."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")

    ClosedClient(producer._slot)
    assert producer.produce_sync(topic="t", payload=b"x")
    ClosedClient(producer._slot)
    assert len(producer.produce_many_sync([Message("t", b"x")] * 3)) == 3


@pytest.mark.slow
def test_messages_in_flight_fail(world, mock_cluster, reloading, pause):
    """Their outcome is unknown, so only their handles fail; sending goes on."""
    producer = reloading()
    mock_cluster.round_trip(0.5)
    (lost,) = send(producer)
    pause(0.05)
    trigger_fatal_error(producer, 47)
    (kept,) = send(producer)

    assert kept.wait(LONG).topic == "t"
    assert isinstance(lost.error, DeliveryError)


def test_sending_never_waits_for_a_new_client(hub, reloading):
    """In a listener or in the hub, messages are accepted during the recovery."""
    producer = reloading(wait_backoff_on_idempotent_fatal_error=0.2)
    trigger_fatal_error(producer, 47)
    handles = send(producer)
    gevent.sleep(0.05)

    hub.loop.run_callback(lambda: handles.extend(send(producer)))
    gevent.sleep(0.02)

    assert len(handles) == 2
    assert all(each.wait(LONG) for each in handles)


def test_recovery_lets_other_greenlets_run(reloading, longest_gap):
    """Replacing a client lets other greenlets run."""
    producer = reloading(wait_backoff_on_idempotent_fatal_error=0.5)
    trigger_fatal_error(producer, 47)

    with longest_gap() as gap:
        producer.produce_sync(topic="t", payload=b"x")

    assert gap.seconds < 0.2


# -- not replaced -------------------------------------------------------------------


def test_client_is_not_replaced_by_default(world, make_producer):
    """By default a fatal error is raised in the caller."""
    producer = make_producer({"enable.idempotence": True})
    events = events_of(producer, "producer.reload")
    for _ in range(5):
        producer.produce_sync(topic="t", payload=b"x")
    trigger_fatal_error(producer, 47)

    for _ in range(2):
        with pytest.raises(DeliveryError) as raised:
            producer.produce_sync(topic="t", payload=b"x")
        assert (raised.value.code, raised.value.fatal) == (47, True)
    assert events == []


@pytest.mark.parametrize("names", [("fenced",), ["_FENCED"], ("other", "Fenced")])
def test_excluded_errors_replace_nothing(world, reloading, names):
    """A fenced producer would fence the other one in turn. Any spelling is accepted."""
    producer = reloading(non_reloadable_errors=names)
    trigger_fatal_error(producer, FENCED)

    with pytest.raises(DeliveryError) as raised:
        producer.produce_sync(topic="t", payload=b"x")

    assert raised.value.name == "_FENCED"


@pytest.mark.parametrize("name", ["INVALID_TOPIC_EXCEPTION", "topic_exception"])
def test_excluded_errors_have_names_of_kafka_or_librdkafka(world, reloading, name):
    """Settings written with librdkafka's names have an effect too."""
    producer = reloading(non_reloadable_errors=[name])
    trigger_fatal_error(producer, 17)

    with pytest.raises(DeliveryError) as raised:
        producer.produce_sync(topic="t", payload=b"x")

    assert raised.value.name == "INVALID_TOPIC_EXCEPTION"


def test_any_error_may_be_included(world, reloading):
    """An empty list excludes no error."""
    producer = reloading(non_reloadable_errors=())
    trigger_fatal_error(producer, FENCED)

    assert producer.produce_sync(topic="t", payload=b"x")


def test_attempts_are_limited(world, reloading, mock_cluster):
    """A client that fails again and again is not replaced for ever."""
    producer = reloading(max_attempts_on_idempotent_fatal_error=2)
    events = events_of(producer, "producer.reload")
    connected = []

    @producer.monitor.subscribe("producer.connected")
    def fail_again(event):
        connected.append(event)
        trigger_fatal_error(producer, 47)

    trigger_fatal_error(producer, 47)

    for _ in range(2):
        with pytest.raises(DeliveryError) as raised:
            producer.produce_sync(topic="t", payload=b"x")
        assert raised.value.code == 47
    assert [each["attempt"] for each in events] == [1, 2]
    assert len(connected) == 2


def test_delivery_allows_new_attempts(world, reloading):
    """The limit applies to consecutive failures."""
    producer = reloading(max_attempts_on_idempotent_fatal_error=1)
    for _ in range(3):
        trigger_fatal_error(producer, 47)
        assert producer.produce_sync(topic="t", payload=b"x")


def test_disconnecting_resets_the_attempts(world, reloading):
    """After the last attempt, a disconnect makes the producer start again."""
    producer = reloading(non_reloadable_errors=("INVALID_PRODUCER_EPOCH",))
    trigger_fatal_error(producer, 47)
    with pytest.raises(DeliveryError):
        producer.produce_sync(topic="t", payload=b"x")

    assert producer.disconnect() is True
    assert producer.produce_sync(topic="t", payload=b"x")


# -- changing the configuration -----------------------------------------------------


def test_listener_may_change_the_configuration(world, reloading):
    """The new client has the configuration that the `producer.reload` listener left."""
    producer = reloading()

    @producer.monitor.subscribe("producer.reload")
    def change(event):
        event["kafka"]["client.id"] = "another"
        event["kafka"]["linger.ms"] = 3

    trigger_fatal_error(producer, 47)
    producer.produce_sync(topic="t", payload=b"x")

    settings = producer._slot.settings
    assert settings.kafka["client.id"] == "another"
    assert settings.user_sets_linger is True
    assert settings.id == producer.id


def test_invalid_change_is_refused(world, reloading):
    """An invalid change is reported, and the next message tries again."""
    producer = reloading()
    events = events_of(producer, "error.occurred")

    @producer.monitor.subscribe("producer.reload")
    def spoil(event):
        event["kafka"]["acks"] = 0

    trigger_fatal_error(producer, 47)
    with pytest.raises(DeliveryError) as raised:
        producer.produce_sync(topic="t", payload=b"x")
    assert isinstance(raised.value.__cause__, ConfigurationInvalidError)
    observed = [e["error"] for e in events if "idempotent" in e["type"]]
    assert isinstance(observed[-1], ConfigurationInvalidError)

    producer.monitor.unsubscribe(spoil)
    assert producer.produce_sync(topic="t", payload=b"x")


# -- together with the other operations of a producer -------------------------------


def test_closing_during_a_recovery_ends_it(world, reloading, pause):
    """Closing does not wait for a new client; messages that wait are dropped."""
    producer = reloading(wait_backoff_on_idempotent_fatal_error=60.0)
    trigger_fatal_error(producer, 47)
    handles = send(producer, 3)
    pause(0.1)
    started = time.monotonic()

    producer.close(force=True)

    assert time.monotonic() - started < 5.0
    assert producer.status == "closed"
    pause(0.05)
    assert {type(each.error) for each in handles} == {MessagePurgedError}


def test_buffered_messages_survive_a_recovery(world, reloading):
    """Only the messages in librdkafka's queue are dropped."""
    producer = reloading()
    producer.buffer(topic="t", payload=b"x", label="kept")
    trigger_fatal_error(producer, 47)
    producer.produce_sync(topic="t", payload=b"x")

    assert [each.label for each in producer.buffered] == ["kept"]
    assert producer.flush_sync()[0].label == "kept"


@pytest.mark.parametrize("backoff", [0.0, 60.0])
def test_closing_with_a_buffer_survives_a_fatal_error(world, reloading, backoff):
    """The last flush fails, and the producer is closed all the same."""
    producer = reloading(wait_backoff_on_idempotent_fatal_error=backoff)
    events = events_of(producer, "producer.reload")
    producer.buffer(topic="t", payload=b"x")
    trigger_fatal_error(producer, 47)
    started = time.monotonic()

    with pytest.raises(MessagesAbandonedError, match="INVALID_PRODUCER_EPOCH"):
        producer.close(timeout=5.0)

    assert time.monotonic() - started < 10.0
    assert (producer.status, events) == ("closed", [])
    assert [each.payload for each in producer.buffered] == [b"x"]
    with pytest.raises(ProducerClosedError):
        send(producer)


def test_purge_during_a_recovery_drops_waiting_messages(world, reloading, pause):
    """Messages that wait for the new client are dropped as well."""
    producer = reloading(wait_backoff_on_idempotent_fatal_error=0.2)
    trigger_fatal_error(producer, 47)
    handles = send(producer, 3)
    pause(0.05)

    producer.purge()

    assert {type(each.error) for each in handles} == {MessagePurgedError}
    assert producer.produce_sync(topic="t", payload=b"x")


def test_disconnect_is_refused_during_a_recovery(world, reloading, pause):
    """Senders wait for the new client then."""
    producer = reloading(wait_backoff_on_idempotent_fatal_error=0.2)
    trigger_fatal_error(producer, 47)
    (handle,) = send(producer)
    pause(0.05)

    assert producer.disconnect() is False
    assert handle.wait(LONG).topic == "t"


def test_only_the_connection_that_failed_is_replaced(world, reloading):
    """A variant's client has its own fatal errors."""
    producer = reloading()
    variant = producer.variant(topic_config={"message.timeout.ms": 9_000})
    variant.produce_sync(topic="t", payload=b"x")
    other = producer._slot.client
    trigger_fatal_error(variant, 47)

    assert variant.produce_sync(topic="t", payload=b"x")
    assert variant._slot.settings.kafka["message.timeout.ms"] == "9000"
    assert producer._slot.client is other


@pytest.mark.parametrize("name", ["error.occurred", "producer.reload"])
def test_listener_of_a_recovery_can_not_wait(world, reloading, name):
    """Its messages are sent after it, since the new client waits for the listener."""
    producer = reloading()
    observed = []

    @producer.monitor.subscribe(name)
    def send_from_listener(event):
        if event.payload.get("type") in (None, "librdkafka.idempotent_fatal_error"):
            try:
                producer.produce_sync(topic="audit", payload=b"x")
            except IllegalWaitError as error:
                observed.append(str(error))

    trigger_fatal_error(producer, 47)
    assert producer.produce_sync(topic="t", payload=b"x").topic == "t"

    await_true(lambda: observed)
    assert len(observed) == 1
    assert "in flight all the same" in observed[0]


def test_producer_can_not_become_transactional(world, reloading):
    """A reload that would make it transactional is refused; the messages fail."""
    producer = reloading()
    events = events_of(producer, "error.occurred")

    @producer.monitor.subscribe("producer.reload")
    def spoil(event):
        event["kafka"]["transactional.id"] = "x"

    trigger_fatal_error(producer, 47)
    with pytest.raises(DeliveryError, match=r"transactional\.id"):
        producer.produce_sync(topic="t", payload=b"x")

    assert ConfigurationInvalidError in [type(each["error"]) for each in events]
