import logging
import sys
import threading
import time
from collections import Counter, deque
from types import SimpleNamespace

import gevent
import pytest

from greendrop import (
    DeliveryError,
    EventNotRegisteredError,
    MessageInvalidError,
    MessagePurgedError,
    Producer,
    StatisticsNotEnabledError,
)
from greendrop._client.reports import ReportDispatcher
from greendrop._logging.rate_limit import RateLimiter
from greendrop.config.settings import build_settings
from greendrop.delivery import DeliveryHandle, ReportQueue
from greendrop.events import EVENTS, Event, Monitor
from greendrop.testing import trigger_fatal_error
from tests.payloads import check_payload

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 10.0

#: Marks an event of the test's own choice; any event would do.
NAME = "message.acknowledged"
PAYLOAD = {"producer_id": "p", "topic": "t"}


@pytest.fixture
def monitor():
    """Make a monitor without listeners."""
    return Monitor()


# -- subscribing ----------------------------------------------------------------------


def test_function_gets_the_event_it_subscribed_to(monitor):
    """A function is called with an event that has a name and a payload."""
    events = []

    def listener(event):
        events.append(event)

    assert monitor.subscribe(NAME, listener) is listener
    monitor.emit(NAME, PAYLOAD)
    monitor.emit("producer.closing", PAYLOAD)

    (event,) = events
    assert event.name == NAME
    assert event.payload == PAYLOAD
    assert event["topic"] == "t"


def test_decorator_subscribes_and_returns_the_function(monitor):
    """The decorated function is unchanged."""
    events = []

    @monitor.subscribe(NAME)
    def listener(event):
        events.append(event.name)
        return "still a function"

    monitor.emit(NAME, PAYLOAD)

    assert events == [NAME]
    assert listener(Event(NAME, {})) == "still a function"


class Listener:
    """A listener with methods for two events, and other methods."""

    def __init__(self):
        self.events = []
        self.on_producer_closed = "not a method"

    def on_message_acknowledged(self, event):
        """Record one event."""
        self.events.append(event.name)

    def on_error_occurred(self, event):
        """Record the other event."""
        self.events.append(event.name)

    def on_something_else(self, event):
        """Record nothing: there is no such event."""


def test_object_gets_the_events_it_has_methods_for(monitor):
    """A listener object's methods are called by event name."""
    listener = Listener()

    assert monitor.subscribe(listener) is listener
    for name in EVENTS:
        monitor.emit(name, PAYLOAD)

    assert sorted(listener.events) == ["error.occurred", "message.acknowledged"]
    assert not monitor.listens("producer.closed")


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_can_be_subscribed_by_method(monitor, name):
    """Each event name in the table has a method name: dots become underscores."""
    events = []
    method = "on_" + name.replace(".", "_")
    listener = type("L", (), {method: staticmethod(events.append)})()

    monitor.subscribe(listener)
    monitor.emit(name, PAYLOAD)

    assert [each.name for each in events] == [name]


@pytest.mark.parametrize("name", EVENTS)
def test_new_monitor_has_no_listeners(monitor, name):
    """A new monitor has no listeners; a listener counts for its event only."""
    assert not monitor.listens(name)

    monitor.subscribe(name, print)

    assert [each for each in EVENTS if monitor.listens(each)] == [name]


def test_unknown_event_is_refused_with_a_suggestion(monitor):
    """A mistyped event name raises at once, instead of never being called."""
    with pytest.raises(EventNotRegisteredError) as raised:
        monitor.subscribe("message.acknowleged", print)

    assert "'message.acknowleged'" in str(raised.value)
    assert "did you mean 'message.acknowledged'?" in str(raised.value)


def test_unknown_event_unlike_any_other_is_refused(monitor):
    """An unknown name unlike any known name is refused without a suggestion."""
    with pytest.raises(EventNotRegisteredError) as raised:
        monitor.subscribe("zzz", print)

    assert "did you mean" not in str(raised.value)


def test_uncallable_listener_is_refused_at_once(monitor):
    """The error comes at subscription; at the event only the log would show it."""
    with pytest.raises(TypeError, match="callable, not int"):
        monitor.subscribe(NAME, 5)
    with pytest.raises(TypeError, match="callable, not str"):
        monitor.subscribe(NAME)("print")

    assert not monitor.listens(NAME)


def test_class_is_no_listener(monitor):
    """A class is refused, since its methods would be called without an instance."""

    class Listener:
        def on_message_acknowledged(self, event):
            pass

    with pytest.raises(TypeError, match="Listener is a class"):
        monitor.subscribe(Listener)


def test_decorator_refuses_an_unknown_event_at_once(monitor):
    """The event name is checked before the function is decorated."""
    with pytest.raises(EventNotRegisteredError):
        monitor.subscribe("zzz")


def test_object_without_a_method_for_an_event_is_refused(monitor):
    """An object without any matching method is refused as a mistake."""
    with pytest.raises(EventNotRegisteredError, match="on_message_acknowledged"):
        monitor.subscribe(object())


def test_listeners_are_called_in_order_of_subscription(monitor):
    """Functions and objects alike are called in the order of subscription."""
    events = []
    monitor.subscribe(NAME, lambda _: events.append(1))
    listener = Listener()
    listener.events = events
    monitor.subscribe(listener)
    monitor.subscribe(NAME)(lambda _: events.append(3))

    monitor.emit(NAME, PAYLOAD)

    assert events == [1, NAME, 3]


def test_same_function_may_listen_twice(monitor):
    """A function subscribed twice is called twice; unsubscribing removes both."""
    events = []
    monitor.subscribe(NAME, events.append)
    monitor.subscribe(NAME, events.append)
    monitor.emit(NAME, PAYLOAD)
    assert len(events) == 2

    monitor.unsubscribe(events.append)
    monitor.emit(NAME, PAYLOAD)

    assert len(events) == 2


def test_unsubscribed_function_gets_no_events(monitor):
    """The function is removed from every event; other listeners stay."""
    events, others = [], []

    def listener(event):
        events.append(event)

    monitor.subscribe(NAME, listener)
    monitor.subscribe("error.occurred", listener)
    monitor.subscribe(NAME, others.append)
    monitor.unsubscribe(listener)
    for name in (NAME, "error.occurred"):
        monitor.emit(name, PAYLOAD)

    assert events == []
    assert len(others) == 1
    assert not monitor.listens("error.occurred")


def test_unsubscribed_object_gets_no_events(monitor):
    """All methods of an unsubscribed object are removed."""
    listener = monitor.subscribe(Listener())
    monitor.unsubscribe(listener)
    for name in EVENTS:
        monitor.emit(name, PAYLOAD)

    assert listener.events == []
    assert not any(map(monitor.listens, EVENTS))


def test_unsubscribing_an_unknown_listener_does_nothing(monitor):
    """Unsubscribing a listener that is not subscribed does nothing."""
    monitor.subscribe(NAME, print)

    monitor.unsubscribe(repr)

    assert monitor.listens(NAME)


def test_subscriptions_during_an_event_count_from_the_next_one(monitor):
    """A listener may change subscriptions; the current event is not affected."""
    events = []

    def late(_event):
        events.append("late")

    def leaving(_event):
        events.append("leaving")
        monitor.unsubscribe(leaving)
        monitor.unsubscribe(last)
        monitor.subscribe(NAME, late)

    def last(_event):
        events.append("last")

    monitor.subscribe(NAME, leaving)
    monitor.subscribe(NAME, last)

    monitor.emit(NAME, PAYLOAD)
    assert events == ["leaving", "last"]
    monitor.emit(NAME, PAYLOAD)

    assert events == ["leaving", "last", "late"]


@pytest.mark.slow
def test_subscribing_from_many_threads_loses_no_listener(monitor):
    """Several threads may subscribe at the same time, and all listeners are called."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(
                target=lambda: [monitor.subscribe(NAME, lambda _: 0) for _ in range(99)]
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)

    assert len(monitor.listeners[NAME]) == 8 * 99


# -- emitting -------------------------------------------------------------------------


def test_event_without_listeners_has_no_effect(monitor):
    """An event without listeners has no effect."""
    monitor.emit(NAME, PAYLOAD)


def test_unknown_key_of_a_payload_raises(monitor):
    """A mistyped key raises instead of returning None."""
    with pytest.raises(KeyError):
        Event(NAME, PAYLOAD)["tpoic"]


def test_repr_of_an_event_shows_keys_only():
    """The repr shows the keys and not the values, which may be secret."""
    event = Event(NAME, {"topic": "TOPIC", "label": "LABEL"})

    assert repr(event) == "<Event message.acknowledged topic, label>"


def test_raising_listener_is_reported_as_an_error(monitor):
    """A listener's exception is an event that names the original event."""
    events, problem = [], ValueError("listener's mistake")

    def failing(_event):
        raise problem

    monitor.subscribe(NAME, failing)
    monitor.subscribe("error.occurred", events.append)
    monitor.emit(NAME, PAYLOAD)

    (event,) = events
    assert event.payload == {
        "producer_id": "p",
        "error": problem,
        "type": "listener.error",
        "event": NAME,
    }


def test_raising_listener_is_logged(monitor, caplog):
    """The log has the traceback, also without a listener for errors."""

    def failing(_event):
        raise ValueError("listener's mistake")

    monitor.subscribe(NAME, failing)
    with caplog.at_level(logging.ERROR, "greendrop"):
        monitor.emit(NAME, PAYLOAD)

    assert (
        "listener.error producer_id=p listener_of=message.acknowledged" in caplog.text
    )
    assert "ValueError: listener's mistake" in caplog.text


def test_raising_listener_does_not_stop_the_others(monitor):
    """The listeners after the failing one are still called."""
    events = []

    def failing(_event):
        raise ValueError

    monitor.subscribe(NAME, failing)
    monitor.subscribe(NAME, events.append)
    monitor.emit(NAME, PAYLOAD)

    assert len(events) == 1


def test_failing_error_listener_causes_no_endless_loop(monitor, caplog):
    """An error listener that raises gets its own error once, and it is logged."""
    calls = []

    def failing(event):
        calls.append(event.payload.get("type"))
        raise ValueError

    monitor.subscribe("error.occurred", failing)
    with caplog.at_level(logging.ERROR, "greendrop"):
        monitor.emit("error.occurred", {"producer_id": "p", "type": "librdkafka.error"})

    assert calls == ["librdkafka.error", "listener.error"]
    assert len(caplog.records) == 2


@pytest.mark.parametrize("kind", [gevent.Timeout, gevent.GreenletExit])
def test_timeouts_and_kills_in_a_listener_reach_the_caller(monitor, kind):
    """An interruption that arrives in a listener is raised in the caller."""
    errors = []

    def interrupted(_event):
        raise kind

    monitor.subscribe(NAME, interrupted)
    monitor.subscribe("error.occurred", errors.append)

    with pytest.raises(kind):
        monitor.emit(NAME, PAYLOAD)
    assert errors == []


@pytest.mark.parametrize("kind", [gevent.Timeout, gevent.GreenletExit])
def test_timeouts_and_kills_do_not_stop_the_poller(monitor, kind, caplog):
    """The poller reports an interruption as a listener error, and goes on."""
    errors = []

    def interrupted(_event):
        raise kind

    monitor.subscribe(NAME, interrupted)
    monitor.subscribe("error.occurred", errors.append)

    monitor.emit(NAME, PAYLOAD, BaseException)

    assert [event["type"] for event in errors] == ["listener.error"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("swallow", [Exception, BaseException])
def test_keyboard_interrupt_passes_through_listeners(monitor, kind, swallow):
    """Ctrl-C during a listener ends the program as anywhere else."""

    def interrupted(_event):
        raise kind

    monitor.subscribe(NAME, interrupted)

    with pytest.raises(kind):
        monitor.emit(NAME, PAYLOAD, swallow)


@pytest.fixture
def clock(monitor):
    """Control the clock that a monitor uses to limit error events."""
    now = [0.0]
    monitor._failures = RateLimiter(60.0)
    monitor._failures._clock = lambda: now[0]
    return now


def test_raising_listener_is_reported_once_a_minute(monitor, clock, caplog):
    """Of a thousand equal failures one is reported, then the suppressed count."""
    events = []

    def failing(_event):
        raise ValueError

    monitor.subscribe(NAME, failing)
    monitor.subscribe("error.occurred", events.append)
    for _ in range(1000):
        monitor.emit(NAME, PAYLOAD)
    clock[0] = 61.0
    monitor.emit(NAME, PAYLOAD)

    assert [event.payload.get("left_out") for event in events] == [None, 999]
    assert len(caplog.records) == 2
    assert "left_out=999" in caplog.text


def test_each_kind_of_failure_is_reported(monitor, clock):
    """Failures with another event or another exception type are reported separately."""
    events = []
    kinds = [ValueError, KeyError, ValueError]

    def failing(_event):
        raise kinds.pop(0)

    monitor.subscribe("error.occurred", events.append)
    for name in (NAME, "producer.closing"):
        monitor.subscribe(name, failing)
    monitor.emit(NAME, PAYLOAD)
    monitor.emit(NAME, PAYLOAD)
    monitor.emit("producer.closing", PAYLOAD)

    reported = [(event["event"], type(event["error"])) for event in events]
    assert reported == [
        (NAME, ValueError),
        (NAME, KeyError),
        ("producer.closing", ValueError),
    ]


# -- events of a real producer --------------------------------------------------------


class Recorder:
    """Subscribes to all events of a producer and keeps them."""

    def __init__(self, producer):
        self.events = []
        for name in EVENTS:
            producer.monitor.subscribe(name, self.events.append)

    def names(self):
        """Return the names in the order of the events."""
        return [event.name for event in self.events]

    def named(self, name):
        """Return the events with a name."""
        return [event for event in self.events if event.name == name]


def test_events_of_a_producer_are_in_order(world, make_producer):
    """The events are connected, acknowledged before produced, closing, closed."""
    # No statistics, since their moments are unpredictable.
    producer = make_producer({"statistics.interval.ms": 0})
    recorder = Recorder(producer)

    producer.produce_sync(topic="t", payload=b"x", label="one")
    producer.produce_many_sync([{"topic": "t", "payload": b"y"}])
    producer.close()

    assert recorder.names() == [
        "producer.connected",
        "message.acknowledged",
        "message.produced_sync",
        "message.acknowledged",
        "messages.produced_sync",
        "producer.closing",
        "producer.closed",
    ]


@pytest.mark.slow
def test_payloads_match_the_table(world, make_producer):
    """Each event of a producer has the keys and types of its row in `EVENTS`."""
    producer = make_producer(
        {"statistics.interval.ms": 50, "enable.idempotence": True},
        id="teller",
        reload_on_idempotent_fatal_error=True,
        wait_backoff_on_idempotent_fatal_error=0.0,
    )
    recorder = Recorder(producer)
    batch = [{"topic": "t", "payload": b"x"}] * 2
    producer.produce_sync(topic="t", payload=b"x")
    producer.produce_async(topic="t", payload=b"x").wait(LONG)
    producer.produce_many_sync(batch)
    for handle in producer.produce_many_async(batch):
        handle.wait(LONG)
    for flush in (producer.flush_sync, producer.flush_async):
        producer.buffer(topic="t", payload=b"x")
        producer.buffer_many(batch)
        flush()
    with pytest.raises(DeliveryError):
        producer.produce_sync(topic="t", payload=b"x", partition=99)
    deadline = time.monotonic() + LONG
    while not recorder.named("statistics.emitted") and time.monotonic() < deadline:
        producer.produce_sync(topic="t", payload=b"x")
    producer.purge()
    trigger_fatal_error(producer)
    producer.produce_sync(topic="t", payload=b"x")
    while "producer.reloaded" not in recorder.names() and time.monotonic() < deadline:
        producer.produce_sync(topic="t", payload=b"x")
    producer.disconnect()
    producer.close()

    # These have tests of their own: a mock cluster has no authentication.
    elsewhere = {"message.purged", "hub.stalled", "oauthbearer.token_refresh"}
    elsewhere |= {each for each in EVENTS if each.startswith("transaction.")}
    assert set(recorder.names()) == set(EVENTS) - elsewhere
    for event in recorder.events:
        assert event["producer_id"] == "teller"
        check_payload(event)
    for event in recorder.named("message.produced_sync"):
        assert 0 <= event["time"] < LONG
        assert event["message"].topic == "t"
    assert len(recorder.named("messages.produced_async")[0]["messages"]) == 2


def test_acknowledgement_has_the_fields_of_the_report(world, make_producer):
    """The event has the fields of the delivery report, and the label."""
    producer = make_producer()
    events = []
    producer.monitor.subscribe("message.acknowledged", events.append)

    report = producer.produce_sync(topic="t", payload=b"x", label={"order": 1})

    (event,) = events
    assert event["delivery_report"] == report
    for key in ("topic", "partition", "offset", "label"):
        assert event[key] == getattr(report, key)


def test_failure_of_a_sync_verb_emits_two_errors(world, make_producer):
    """The poller emits the message's error, and the caller the verb's error.

    Both errors have their cause.
    """
    producer = make_producer()
    events = []
    producer.monitor.subscribe("error.occurred", events.append)

    with pytest.raises(DeliveryError):
        producer.produce_sync(topic="t", payload=b"x", partition=99, label=5)

    reported = {event["type"]: event for event in events}
    assert reported.keys() == {"librdkafka.dispatch_error", "message.produce_sync"}
    assert reported["message.produce_sync"]["message"].partition == 99
    for event in events:
        assert event["error"].__cause__.name == "_UNKNOWN_PARTITION"
    assert reported["librdkafka.dispatch_error"]["label"] == 5
    dispatch_error = reported["librdkafka.dispatch_error"].payload
    assert dispatch_error["topic"] == "t"
    assert dispatch_error["partition"] == 99
    assert dispatch_error["offset"] is None
    assert dispatch_error["delivery_report"] is None


def test_refused_message_is_no_error_event(make_producer):
    """An invalid message is the caller's mistake, raised in the caller only."""
    producer = make_producer()
    events = []
    producer.monitor.subscribe("error.occurred", events.append)

    with pytest.raises(MessageInvalidError):
        producer.produce_sync(topic="not/legal", payload=b"x")

    assert events == []


class CountingMonitor(Monitor):
    """Records every event it is asked to emit, with or without listeners."""

    def __init__(self):
        super().__init__()
        self.emitted = []

    def emit(self, name, *args, **kwargs):
        """Record the name."""
        self.emitted.append(name)
        super().emit(name, *args, **kwargs)


def test_no_payload_is_built_without_listeners(world, mock_cluster):
    """Without listeners no payload is built for any message."""
    producer = Producer()
    producer.monitor = CountingMonitor()
    producer.setup({"bootstrap.servers": mock_cluster.bootstrap_servers})
    with producer:
        producer.produce_sync(topic="t", payload=b"x")
        producer.produce_async(topic="t", payload=b"x").wait(LONG)
        producer.produce_many_sync([{"topic": "t", "payload": b"x"}])
        producer.produce_many_async([{"topic": "t", "payload": b"x"}])[0].wait(LONG)

    assert not [name for name in producer.monitor.emitted if "message" in name]


def test_late_subscriber_gets_the_next_acknowledgement(world, make_producer):
    """A listener may subscribe to messages at any time."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    events = []
    producer.monitor.subscribe("message.acknowledged", events.append)

    producer.produce_sync(topic="t", payload=b"x", label="second")

    assert [event["label"] for event in events] == ["second"]


def test_listeners_have_run_when_produce_sync_returns(world, make_producer):
    """A program may rely on its listeners' work after a sync verb."""
    producer = make_producer()
    events = []
    producer.monitor.subscribe("message.acknowledged", events.append)

    for count in range(1, 20):
        producer.produce_sync(topic="t", payload=b"x")
        assert len(events) == count


def test_raising_listeners_do_not_fail_a_produce(world, make_producer, caplog):
    """A delivered message counts as delivered, whatever its listeners do."""
    producer = make_producer()
    errors = []

    def failing(event):
        raise ValueError(event.name)

    for name in ("producer.connected", NAME, "message.produced_sync"):
        producer.monitor.subscribe(name, failing)
    producer.monitor.subscribe("error.occurred", errors.append)

    for count in range(3):
        report = producer.produce_sync(topic="t", payload=b"x", partition=0)
        assert report.offset == count

    assert {event["type"] for event in errors} == {"listener.error"}
    assert {event["event"] for event in errors} == {
        "producer.connected",
        "message.acknowledged",
        "message.produced_sync",
    }


def test_raising_listener_of_closing_does_not_stop_it(world, make_producer, caplog):
    """A producer always ends closed, whatever its listeners do."""
    producer = make_producer()

    def failing(event):
        raise ValueError(event.name)

    for name in ("producer.closing", "producer.closed"):
        producer.monitor.subscribe(name, failing)
    producer.produce_sync(topic="t", payload=b"x")

    producer.close()

    assert producer.status == "closed"


def test_listener_may_produce(world, make_producer):
    """A listener may send without waiting, also when the poller runs it."""
    producer = make_producer()
    handles = []

    def follow_up(event):
        if event["label"] == "first":
            handles.append(
                producer.produce_async(topic="t", payload=b"y", label="second")
            )

    producer.monitor.subscribe(NAME, follow_up)
    producer.produce_sync(topic="t", payload=b"x", label="first")

    assert handles[0].wait(LONG).label == "second"


class FakeOwner:
    """The poll loop of a client, as far as the dispatcher needs it."""

    def __init__(self, reports, pending):
        self.reports = reports
        self.pending = pending
        self.kafka_handle = SimpleNamespace(
            client_events=deque(), error_translator=None
        )

    def resend_failed(self, _handle):
        """Resend nothing."""
        return False

    def on_reports(self, _count, _latency):
        """Ignore reports."""


def dispatch_purged(monitor, **kafka):
    """Dispatch the report of a purged message; return its handle."""
    reports = ReportQueue(None)
    handle = DeliveryHandle("t", "label", reports)
    settings = build_settings({"bootstrap.servers": "host", **kafka}, {"id": "p"})
    owner = FakeOwner(reports, {handle})
    handle._fail(MessagePurgedError("dropped"))
    ReportDispatcher(settings, monitor, owner).dispatch()
    return handle


def test_purge_is_no_error_of_a_transactional_producer(monitor):
    """A transactional producer has an event of its own for purged messages."""
    events, errors = [], []
    monitor.subscribe("message.purged", events.append)
    monitor.subscribe("error.occurred", errors.append)

    handle = dispatch_purged(monitor, **{"transactional.id": "tx"})

    (event,) = events
    assert errors == []
    assert event.payload == {
        "producer_id": "p",
        "topic": "t",
        "partition": None,
        "offset": None,
        "label": "label",
        "delivery_report": None,
        "error": handle.error,
        "type": "librdkafka.dispatch_error",
    }
    check_payload(event)


def test_purge_is_an_error_of_any_other_producer(monitor):
    """With any other producer a purge loses messages, so it is reported as an error."""
    events, errors = [], []
    monitor.subscribe("message.purged", events.append)
    monitor.subscribe("error.occurred", errors.append)

    dispatch_purged(monitor)

    assert events == []
    assert [event["type"] for event in errors] == ["librdkafka.dispatch_error"]


@pytest.mark.slow
def test_listeners_of_polled_events_may_raise(world, make_producer, until):
    """Failing listeners of reports, errors and statistics are reported once each.

    Polling goes on and handles are resolved. Listeners of token refreshes are
    called in the same way.
    """
    producer = make_producer({"statistics.interval.ms": 20})
    errors, statistics = [], []

    def failing(event):
        raise ValueError(event.name)

    def failing_on_statistics(event):
        statistics.append(event)
        raise KeyError

    producer.monitor.subscribe("message.acknowledged", failing)
    producer.monitor.subscribe("statistics.emitted", failing_on_statistics)
    producer.monitor.subscribe("error.occurred", errors.append)
    producer.monitor.subscribe("error.occurred", failing)
    for _ in range(5):
        producer.produce_sync(topic="t", payload=b"x")
    with pytest.raises(DeliveryError):
        producer.produce_sync(topic="t", payload=b"x", partition=99)
    until(lambda: len(statistics) > 3)

    producer.produce_sync(topic="t", payload=b"x")

    reported = Counter(
        (event["event"], type(event["error"]))
        for event in errors
        if event["type"] == "listener.error"
    )
    # Once for each type of error: of the verb, and of the message if it was queued.
    assert reported.pop(("error.occurred", ValueError)) in (1, 2)
    assert reported == {
        ("message.acknowledged", ValueError): 1,
        ("statistics.emitted", KeyError): 1,
    }


# -- statistics -----------------------------------------------------------------------


def test_statistics_without_listeners_are_off(world, make_producer):
    """A client that is built without a statistics listener never emits statistics."""
    producer = make_producer({"statistics.interval.ms": 100})
    producer.produce_sync(topic="t", payload=b"x")

    with pytest.raises(StatisticsNotEnabledError, match="before the first message"):
        producer.monitor.subscribe("statistics.emitted", print)


def test_statistics_too_late_add_nothing_of_an_object(make_producer):
    """An object that also wants statistics is refused as a whole."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    events = []

    class Both:
        def on_statistics_emitted(self, event):
            events.append(event)

        def on_message_acknowledged(self, event):
            events.append(event)

    with pytest.raises(StatisticsNotEnabledError):
        producer.monitor.subscribe(Both())
    producer.produce_sync(topic="t", payload=b"x")

    assert events == []


def test_statistics_switched_off_are_refused_too(make_producer):
    """With an interval of 0 a statistics listener would never be called."""
    producer = make_producer({"statistics.interval.ms": 0})
    producer.monitor.subscribe("statistics.emitted", print)
    producer.produce_sync(topic="t", payload=b"x")

    with pytest.raises(StatisticsNotEnabledError):
        producer.monitor.subscribe("statistics.emitted", repr)


def test_second_statistics_listener_may_subscribe_late(make_producer):
    """Where statistics are on, further listeners may subscribe at any time."""
    producer = make_producer({"statistics.interval.ms": 1_000})
    producer.monitor.subscribe("statistics.emitted", lambda _: 0)
    producer.produce_sync(topic="t", payload=b"x")

    producer.monitor.subscribe("statistics.emitted", lambda _: 0)


@pytest.mark.slow
def test_statistics_come_while_the_producer_is_idle(world, make_producer):
    """With an interval of 100 ms ten events come in little more than a second.

    Meanwhile no greenlet or thread sends or waits.
    """
    producer = make_producer({"statistics.interval.ms": 100})
    times = []
    enough = threading.Event()

    def listener(event):
        assert event["statistics"]["type"] == "producer"
        times.append(time.monotonic())
        if len(times) == 10:
            enough.set()

    producer.monitor.subscribe("statistics.emitted", listener)
    producer.produce_sync(topic="t", payload=b"x")
    if world == "greenlets":
        deadline = time.monotonic() + LONG
        while not enough.is_set() and time.monotonic() < deadline:
            gevent.sleep(0.01)
    assert enough.wait(LONG if world == "threads" else 0)

    assert times[9] - times[0] < 3.0


@pytest.mark.slow
def test_producers_events_stay_with_their_monitor(world, make_producer):
    """The events of one producer never reach another producer's listeners."""
    producers = [
        make_producer({"statistics.interval.ms": 20}, id=f"producer-{number}")
        for number in range(3)
    ]
    recorders = [Recorder(producer) for producer in producers]
    deadline = time.monotonic() + LONG
    while not all(each.named("statistics.emitted") for each in recorders):
        assert time.monotonic() < deadline
        for producer in producers:
            producer.produce_sync(topic="t", payload=b"x", label=producer.id)
    for producer in producers:
        with pytest.raises(DeliveryError):
            producer.produce_sync(topic="t", payload=b"x", partition=99)
        producer.close()

    names = {
        event["statistics"]["name"]: producer.id
        for producer, recorder in zip(producers, recorders, strict=True)
        for event in recorder.named("statistics.emitted")
    }
    assert len(names) == 3
    for producer, recorder in zip(producers, recorders, strict=True):
        assert {event["producer_id"] for event in recorder.events} == {producer.id}
        for event in recorder.named(NAME):
            assert event["label"] == producer.id
