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
from greendrop.testing import fatal_error, trigger_fatal_error

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 20.0
#: librdkafka's number for "fenced".
FENCED = -144


def send(producer, count=1, **fields):
    """Send messages without waiting; give their handles."""
    return [
        producer.produce_async(topic="t", payload=b"x", label=number, **fields)
        for number in range(count)
    ]


def events_of(producer, *names):
    """Note from now on events by name."""
    heard = []
    for name in names:
        producer.monitor.subscribe(name, heard.append)
    return heard


@pytest.fixture
def reloading(make_producer):
    """Make connected idempotent producers that replace their client at once."""

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
    heard = events_of(producer, "producer.reload", "producer.reloaded")
    assert fatal_error(producer) is None
    trigger_fatal_error(producer, 47)
    assert fatal_error(producer)[0] == 47
    for _ in range(5):
        assert producer.produce_sync(topic="t", payload=b"x").topic == "t"

    assert [each.name for each in heard] == ["producer.reload", "producer.reloaded"]
    assert [each["attempt"] for each in heard] == [1, 1]
    assert (heard[0]["error"].code, heard[0]["error"].fatal) == (47, True)
    assert 0 <= heard[1]["time"] < LONG
    assert producer._slot.client is not old
    assert producer.status == "connected"


def test_order_of_events(world, reloading):
    """The error first, then the offer to change things, then the new client."""
    producer = reloading()
    heard = events_of(
        producer,
        *("error.occurred", "producer.reload", "producer.connected"),
        *("producer.reloaded", "message.produced_sync"),
    )
    trigger_fatal_error(producer, 47)
    producer.produce_sync(topic="t", payload=b"x")
    names = [
        each.name
        for each in heard
        if each.name != "error.occurred"
        or each["type"] == "librdkafka.idempotent_fatal_error"
    ]

    assert names[:3] == ["error.occurred", "producer.reload", "producer.connected"]
    assert sorted(names[3:]) == ["message.produced_sync", "producer.reloaded"]


def test_messages_keep_their_order(world, reloading, mock_cluster):
    """What is sent after the error arrives in the order in which it was sent."""
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

    Each client is replaced once, whoever meets its error.
    """
    producer = reloading()
    heard = events_of(producer, "producer.reloaded")
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
    assert len(heard) == 5


@pytest.mark.slow
def test_error_in_the_middle_of_traffic_hurts_only_what_was_in_flight(
    world, reloading, spawn, pause
):
    """Senders that never stop see at most a clean error, and go on."""
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
    """One who got hold of the old client before, and sends only now, loses nothing."""
    producer = reloading()
    late = producer._slot.client
    trigger_fatal_error(producer, 47)
    producer.produce_sync(topic="t", payload=b"x")
    assert producer._slot.client is not late

    if world == "greenlets":
        assert late.send(Message("t", b"x")).wait(LONG).topic == "t"
    else:
        # `Core.dispatch` sends it again, at once: kept here and handed on, it would be
        # overtaken by what the same thread sends next.
        until(lambda: producer._slot.active is not late)
        with pytest.raises(ProducerClosedError):
            late.send(Message("t", b"x"))


class Shutdown:
    """A client that another thread closes just when it is used."""

    mark = (1,)

    def __init__(self, slot):
        self._slot = slot
        self._real = slot.active
        slot.active = self

    def send(self, *_, **__):
        """Find it closed, and the real one in its place."""
        self._slot.active = self._real
        raise ProducerClosedError("closed meanwhile")

    def send_many(self, _):
        """Do so before the first message."""
        self._slot.active = self._real
        return []

    def flush_batcher(self):
        """Have nothing."""


def test_senders_that_meet_a_closed_client_send_again(world, make_producer):
    """Who finds a client closed under it sends by the one after it."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")

    Shutdown(producer._slot)
    assert producer.produce_sync(topic="t", payload=b"x")
    Shutdown(producer._slot)
    assert len(producer.produce_many_sync([Message("t", b"x")] * 3)) == 3


@pytest.mark.slow
def test_what_was_in_flight_fails(world, mock_cluster, reloading, pause):
    """The broker was sent it, so only its handle tells; the rest goes on."""
    producer = reloading()
    mock_cluster.round_trip(0.5)
    (lost,) = send(producer)
    pause(0.05)
    trigger_fatal_error(producer, 47)
    (kept,) = send(producer)

    assert kept.wait(LONG).topic == "t"
    assert isinstance(lost.error, DeliveryError)


def test_sending_never_waits_for_a_new_client(hub, reloading):
    """In a listener, or in the hub itself, messages are taken meanwhile."""
    producer = reloading(wait_backoff_on_idempotent_fatal_error=0.2)
    trigger_fatal_error(producer, 47)
    handles = send(producer)
    gevent.sleep(0.05)

    hub.loop.run_callback(lambda: handles.extend(send(producer)))
    gevent.sleep(0.02)

    assert len(handles) == 2
    assert all(each.wait(LONG) for each in handles)


def test_recovery_lets_other_greenlets_run(reloading, longest_gap):
    """Replacing a client does not hold the hub."""
    producer = reloading(wait_backoff_on_idempotent_fatal_error=0.1)
    trigger_fatal_error(producer, 47)

    with longest_gap() as gap:
        producer.produce_sync(topic="t", payload=b"x")

    assert gap.seconds < 0.05


# -- not replaced -------------------------------------------------------------------


def test_client_stays_when_not_told_otherwise(world, make_producer):
    """By default a fatal error is for the caller."""
    producer = make_producer({"enable.idempotence": True})
    heard = events_of(producer, "producer.reload")
    for _ in range(5):
        producer.produce_sync(topic="t", payload=b"x")
    trigger_fatal_error(producer, 47)

    for _ in range(2):
        with pytest.raises(DeliveryError) as raised:
            producer.produce_sync(topic="t", payload=b"x")
        assert (raised.value.code, raised.value.fatal) == (47, True)
    assert heard == []


@pytest.mark.parametrize("names", [("fenced",), ["_FENCED"], ("other", "Fenced")])
def test_excluded_errors_replace_nothing(world, reloading, names):
    """Who was fenced would fence the other in turn. By any spelling of the name."""
    producer = reloading(non_reloadable_errors=names)
    trigger_fatal_error(producer, FENCED)

    with pytest.raises(DeliveryError) as raised:
        producer.produce_sync(topic="t", payload=b"x")

    assert raised.value.name == "_FENCED"


@pytest.mark.parametrize("name", ["INVALID_TOPIC_EXCEPTION", "topic_exception"])
def test_excluded_errors_go_by_kafka_names_and_librdkafkas(world, reloading, name):
    """Settings that were written for librdkafka's names go on to hold."""
    producer = reloading(non_reloadable_errors=[name])
    trigger_fatal_error(producer, 17)

    with pytest.raises(DeliveryError) as raised:
        producer.produce_sync(topic="t", payload=b"x")

    assert raised.value.name == "INVALID_TOPIC_EXCEPTION"


def test_any_error_may_be_included(world, reloading):
    """An empty list excludes nothing."""
    producer = reloading(non_reloadable_errors=())
    trigger_fatal_error(producer, FENCED)

    assert producer.produce_sync(topic="t", payload=b"x")


def test_attempts_are_limited(world, reloading, mock_cluster):
    """A client that is replaced in vain is not replaced for ever."""
    producer = reloading(max_attempts_on_idempotent_fatal_error=2)
    heard = events_of(producer, "producer.reload")
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
    assert [each["attempt"] for each in heard] == [1, 2]
    assert len(connected) == 2


def test_delivery_allows_new_attempts(world, reloading):
    """The limit is for failures in a row."""
    producer = reloading(max_attempts_on_idempotent_fatal_error=1)
    for _ in range(3):
        trigger_fatal_error(producer, 47)
        assert producer.produce_sync(topic="t", payload=b"x")


def test_disconnecting_is_a_way_out(world, reloading):
    """A producer that has given up starts anew after a disconnect."""
    producer = reloading(non_reloadable_errors=("INVALID_PRODUCER_EPOCH",))
    trigger_fatal_error(producer, 47)
    with pytest.raises(DeliveryError):
        producer.produce_sync(topic="t", payload=b"x")

    assert producer.disconnect() is True
    assert producer.produce_sync(topic="t", payload=b"x")


# -- changing the configuration -----------------------------------------------------


def test_listener_may_change_the_configuration(world, reloading):
    """The new client is built from what the listener of `producer.reload` left."""
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


def test_bad_change_is_refused(world, reloading):
    """What a listener breaks is told, and the next message tries again (28)."""
    producer = reloading()
    heard = events_of(producer, "error.occurred")

    @producer.monitor.subscribe("producer.reload")
    def spoil(event):
        event["kafka"]["acks"] = 0

    trigger_fatal_error(producer, 47)
    with pytest.raises(DeliveryError) as raised:
        producer.produce_sync(topic="t", payload=b"x")
    assert isinstance(raised.value.__cause__, ConfigurationInvalidError)
    told = [e["error"] for e in heard if "idempotent" in e["type"]]
    assert isinstance(told[-1], ConfigurationInvalidError)

    producer.monitor.unsubscribe(spoil)
    assert producer.produce_sync(topic="t", payload=b"x")


# -- with the rest of a producer's life ---------------------------------------------


def test_closing_during_a_recovery_ends_it(world, reloading, pause):
    """Closing does not wait for a new client; what waited for it is dropped."""
    producer = reloading(wait_backoff_on_idempotent_fatal_error=60.0)
    trigger_fatal_error(producer, 47)
    handles = send(producer, 3)
    pause(0.1)
    began = time.monotonic()

    producer.close(force=True)

    assert time.monotonic() - began < 5.0
    assert producer.status == "closed"
    pause(0.05)
    assert {type(each.error) for each in handles} == {MessagePurgedError}


def test_buffered_messages_survive_a_recovery(world, reloading):
    """Only what librdkafka had is dropped (section 10, 4)."""
    producer = reloading()
    producer.buffer(topic="t", payload=b"x", label="kept")
    trigger_fatal_error(producer, 47)
    producer.produce_sync(topic="t", payload=b"x")

    assert [each.label for each in producer.buffered] == ["kept"]
    assert producer.flush_sync()[0].label == "kept"


@pytest.mark.parametrize("backoff", [0.0, 60.0])
def test_closing_with_a_buffer_meets_a_fatal_error(world, reloading, backoff):
    """The last flush fails, and close ends all the same."""
    producer = reloading(wait_backoff_on_idempotent_fatal_error=backoff)
    heard = events_of(producer, "producer.reload")
    producer.buffer(topic="t", payload=b"x")
    trigger_fatal_error(producer, 47)
    began = time.monotonic()

    with pytest.raises(MessagesAbandonedError, match="INVALID_PRODUCER_EPOCH"):
        producer.close(timeout=5.0)

    assert time.monotonic() - began < 10.0
    assert (producer.status, heard) == ("closed", [])
    assert [each.payload for each in producer.buffered] == [b"x"]
    with pytest.raises(ProducerClosedError):
        send(producer)


def test_purge_during_a_recovery_drops_what_waits(world, reloading, pause):
    """Messages that wait for the new client are dropped as well."""
    producer = reloading(wait_backoff_on_idempotent_fatal_error=0.2)
    trigger_fatal_error(producer, 47)
    handles = send(producer, 3)
    pause(0.05)

    producer.purge()

    assert {type(each.error) for each in handles} == {MessagePurgedError}
    assert producer.produce_sync(topic="t", payload=b"x")


def test_disconnect_is_refused_during_a_recovery(world, reloading, pause):
    """Somebody waits to send then."""
    producer = reloading(wait_backoff_on_idempotent_fatal_error=0.2)
    trigger_fatal_error(producer, 47)
    (handle,) = send(producer)
    pause(0.05)

    assert producer.disconnect() is False
    assert handle.wait(LONG).topic == "t"


def test_only_the_connection_that_failed_is_replaced(world, reloading):
    """A variant's own client has its own fatal errors."""
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
    """What it sends waits for the new client, which waits for it; it goes then."""
    producer = reloading()
    told = []

    @producer.monitor.subscribe(name)
    def send_word(event):
        if event.payload.get("type") in (None, "librdkafka.idempotent_fatal_error"):
            try:
                producer.produce_sync(topic="audit", payload=b"x")
            except IllegalWaitError as error:
                told.append(str(error))

    trigger_fatal_error(producer, 47)
    assert producer.produce_sync(topic="t", payload=b"x").topic == "t"

    assert len(told) == 1
    assert "on its way all the same" in told[0]


def test_producer_can_not_become_transactional(world, reloading):
    """A reload that would make it so is refused, and the messages fail."""
    producer = reloading()
    heard = events_of(producer, "error.occurred")

    @producer.monitor.subscribe("producer.reload")
    def spoil(event):
        event["kafka"]["transactional.id"] = "x"

    trigger_fatal_error(producer, 47)
    with pytest.raises(DeliveryError, match=r"transactional\.id"):
        producer.produce_sync(topic="t", payload=b"x")

    assert ConfigurationInvalidError in [type(each["error"]) for each in heard]
