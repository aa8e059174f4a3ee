"""`greendrop.monitor`: events about all producers and pools of a process."""

from typing import get_args

import pytest

import greendrop
from greendrop import EventNotRegisteredError, Producer, ProducerPool, events
from greendrop.events import EVENTS, PROCESS_EVENTS
from tests.payloads import check_payload

NOWHERE = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
PASSWORD = {"sasl.password": "hunter2", "security.protocol": "plaintext"}


@pytest.fixture
def process_events():
    """Collect all events of the process during a test."""
    events = []
    for name in PROCESS_EVENTS:
        greendrop.monitor.subscribe(name, events.append)
    yield events
    greendrop.monitor.unsubscribe(events.append)


@pytest.fixture
def subscribe():
    """Subscribe to the process monitor for one test."""
    listeners = []

    def add(name, listener):
        greendrop.monitor.subscribe(name, listener)
        listeners.append(listener)

    yield add
    for listener in listeners:
        greendrop.monitor.unsubscribe(listener)


def names_and_payloads(process_events):
    """Return names and payloads."""
    return [(event.name, event.payload) for event in process_events]


# -- producers ------------------------------------------------------------------------


def test_making_and_configuring_a_producer_emit_one_event_each(process_events):
    """A producer configured with settings by name emits both events once."""
    producer = Producer({**NOWHERE, **PASSWORD}, id="p", max_wait_timeout=5)

    (_, created), (_, configured) = names_and_payloads(process_events)
    assert [event.name for event in process_events] == [
        "producer.created",
        "producer.configured",
    ]
    assert created == {"producer": producer, "producer_id": None}
    assert configured["producer"] is producer
    assert configured["producer_id"] == "p"
    assert configured["config"]["max_wait_timeout"] == 5.0
    assert configured["config"]["kafka"]["bootstrap.servers"] == "127.0.0.1:1"
    assert configured["config"]["kafka"]["sasl.password"] == "[hidden]"


def test_producer_may_be_configured_later(process_events):
    """Each event is emitted when its step happens; a variant emits none."""
    producer = Producer()
    assert [event.name for event in process_events] == ["producer.created"]

    producer.setup(NOWHERE)
    producer.variant(max_wait_timeout=1)

    assert [event.name for event in process_events][1:] == ["producer.configured"]


def test_refused_configuration_emits_no_event(process_events):
    """A producer whose settings were refused was not configured."""
    with pytest.raises(greendrop.ConfigurationInvalidError):
        Producer({"no.such": 1})

    assert [event.name for event in process_events] == ["producer.created"]


def test_hook_adds_middleware_and_listeners(subscribe, make_producer):
    """A listener of the process can prepare each producer before its first message."""
    messages = []

    def set_up(event):
        event["producer"].middleware.append(lambda m: m._replace(key="added"))
        event["producer"].monitor.subscribe(
            "message.produced_sync", lambda event: messages.append(event["message"])
        )

    subscribe("producer.configured", set_up)
    producer = make_producer()

    producer.produce_sync(topic="t", payload=b"x")

    assert [message.key for message in messages] == [b"added"]


def test_hook_may_turn_on_statistics(subscribe, make_producer, world, until):
    """Subscribing to statistics works: the client is built with a first message."""
    numbers = []
    subscribe(
        "producer.configured",
        lambda event: event["producer"].monitor.subscribe(
            "statistics.emitted", numbers.append
        ),
    )
    producer = make_producer({"statistics.interval.ms": 20})

    producer.produce_sync(topic="t", payload=b"x")

    until(lambda: numbers)


def test_hook_that_raises_does_not_affect_the_producer(subscribe, caplog):
    """The error is logged, and the producer works."""

    def failing(event):
        raise ValueError(event.name)

    for name in ("producer.created", "producer.configured"):
        subscribe(name, failing)
    producer = Producer(NOWHERE, id="p")

    assert producer.status == "configured"
    assert "listener.error producer_id=None listener_of=producer.created" in caplog.text
    assert "listener.error producer_id=p listener_of=producer.configured" in caplog.text


def test_closing_a_producer_emits_an_event(process_events, make_producer, world):
    """Both monitors emit the event once, with the same payload."""
    producer = make_producer(id="p")
    own = []
    producer.monitor.subscribe("producer.closed", own.append)
    producer.produce_sync(topic="t", payload=b"x")

    producer.close()
    producer.close()

    assert [event.name for event in process_events][2:] == ["producer.closed"]
    assert process_events[-1].payload == own[0].payload
    assert process_events[-1]["producer_id"] == "p"


def test_an_object_can_listen_to_the_process():
    """An object's methods are subscribed by event name, as with a producer."""

    class Registry:
        def __init__(self):
            self.producers = []

        def on_producer_configured(self, event):
            self.producers.append(event["producer_id"])

        def on_message_acknowledged(self, event):
            """Handle nothing: the process monitor has no such event."""

    registry = greendrop.monitor.subscribe(Registry())
    try:
        Producer(NOWHERE, id="p")
    finally:
        greendrop.monitor.unsubscribe(registry)
    Producer(NOWHERE, id="q")

    assert registry.producers == ["p"]


# -- pools ----------------------------------------------------------------------------


def test_events_of_a_pool_are_in_order(process_events):
    """Creation, set-up as the default, reload and shutdown emit one event each."""
    pool = ProducerPool(lambda: Producer(NOWHERE), size=2, timeout=1.5)
    before = greendrop.set_default_pool(pool)
    pool.reload()
    greendrop.set_default_pool(before)
    pool.close()
    pool.close(force=True)

    size = {"pool": pool, "size": 2, "timeout": 1.5}
    assert names_and_payloads(process_events) == [
        ("connection_pool.created", size),
        ("connection_pool.setup", size),
        ("connection_pool.reload", {"pool": pool}),
        ("connection_pool.reloaded", {"pool": pool}),
        ("connection_pool.shutdown", {"pool": pool}),
    ]


def test_reload_event_precedes_the_reload(process_events, subscribe):
    """The event comes while the pool has its old producers; not if it is closed."""
    pool = ProducerPool(lambda: Producer(NOWHERE), size=1)
    with pool.producer() as old:
        pass
    status = []
    subscribe("connection_pool.reload", lambda _: status.append(old.status))

    pool.reload()
    pool.close()
    process_events.clear()
    with pytest.raises(greendrop.PoolClosedError):
        pool.reload()

    assert (status, old.status, process_events) == (["configured"], "closed", [])


def test_removing_the_default_pool_emits_no_setup_event(process_events):
    """Setting the default pool to None emits no event."""
    greendrop.set_default_pool(greendrop.set_default_pool(None))

    assert process_events == []


# -- names ----------------------------------------------------------------------------


def test_payloads_match_the_table(process_events, make_producer):
    """Each payload has the keys and types of its row in the table."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    producer.close()
    pool = ProducerPool(lambda: producer)
    greendrop.set_default_pool(greendrop.set_default_pool(pool))
    pool.reload()
    pool.close()
    greendrop.set_default_pool(None)

    assert {event.name for event in process_events} == set(PROCESS_EVENTS)
    for event in process_events:
        check_payload(event)


def test_each_monitor_has_its_own_events():
    """A name of the other monitor is refused, with a hint where it belongs."""
    with pytest.raises(EventNotRegisteredError, match=r"at producer\.mon"):
        greendrop.monitor.subscribe("message.acknowledged", print)
    with pytest.raises(EventNotRegisteredError, match=r"at greendrop\.monitor"):
        Producer().monitor.subscribe("producer.configured", print)
    with pytest.raises(EventNotRegisteredError, match=r"mean 'producer\.created'"):
        greendrop.monitor.subscribe("producer.create", print)
    assert EVENTS.keys() & PROCESS_EVENTS.keys() == {"producer.closed"}


def test_type_checkers_know_the_names():
    """The literal type has the names of both tables, and no others."""
    names = get_args(events.EventName)

    assert set(names) == EVENTS.keys() | PROCESS_EVENTS.keys()
    assert len(names) == len(set(names))


def test_no_payload_has_the_producer_as_caller():
    """WaterDrop's `caller` is left out; `producer_id` identifies the producer."""
    for table in (EVENTS, PROCESS_EVENTS):
        for row in table.values():
            assert "caller" not in row.payload
