import contextlib
import os
import signal
import threading
import time

import gevent
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from greendrop import (
    DeliveryError,
    DeliveryHandle,
    DeliveryReport,
    Message,
    MessageInvalidError,
    MessagesAbandonedError,
    MiddlewareError,
    ProduceManyError,
    Producer,
    ProducerClosedError,
    ProducerNotConfiguredError,
    ProducerUsedInParentProcessError,
    QueueFullError,
)
from greendrop._producer.buffer import Buffer, BufferedMessage, Flush
from greendrop.delivery import refused_handle
from greendrop.testing import MemoryCluster, trigger_fatal_error
from tests.interrupting import at_nth_entry
from tests.tasks import await_true, together

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 20.0
#: No broker listens there: a connection is refused at once.
NOWHERE = {"bootstrap.servers": "127.0.0.1:1"}
#: A queue with space for three messages, which are never delivered.
TIGHT = {**NOWHERE, "queue.buffering.max.messages": 3}

FLUSHES = {
    "flush_sync": lambda producer: producer.flush_sync(),
    "flush_async": lambda producer: producer.flush_async(),
}
both_flushes = pytest.mark.parametrize("flush", FLUSHES.values(), ids=FLUSHES)


@pytest.fixture(params=["threads", "greenlets"])
def world(request):
    """Run a test with a hub and without one."""
    if request.param == "greenlets":
        request.getfixturevalue("hub")
    return request.param


def numbered(count, first=0):
    """Make messages to one partition, distinguished by their payload."""
    return [
        Message("events", str(number).encode(), partition=0)
        for number in range(first, first + count)
    ]


def collect_events(producer, *names):
    """Collect events with these names from now on."""
    events = []
    for name in names:
        producer.monitor.subscribe(name, events.append)
    return events


def payloads(messages):
    """Return the payloads of messages."""
    return [message.payload for message in messages]


# -- buffering ------------------------------------------------------------------------


def test_buffering_opens_nothing(make_producer):
    """Messages are kept unchanged and in order, and nothing is connected."""
    producer = make_producer()

    producer.buffer(topic="events", payload="0", label="first")
    producer.buffer_many([{"topic": "events", "payload": b"1"}, *numbered(1, 2)])

    assert payloads(producer.buffered) == ["0", b"1", b"2"]
    assert producer.buffered[0] == Message("events", "0", label="first")
    assert (producer.status, producer.queue_size) == ("configured", 0)


def test_buffered_is_a_snapshot(make_producer):
    """The tuple of buffered messages does not change afterwards."""
    producer = make_producer()
    producer.buffer_many(numbered(1))
    seen = producer.buffered

    producer.buffer_many(numbered(1, 1))

    assert (len(seen), len(producer.buffered)) == (1, 2)
    assert Producer().buffered == ()


def test_buffered_message_shares_nothing_with_the_caller(make_producer):
    """A change that the caller makes after the call has no effect."""
    producer = make_producer()
    headers, payload = {"a": ["1"]}, bytearray(b"x")
    producer.buffer(topic="events", payload=payload, headers=headers)

    headers["a"].append("2")
    payload[0] = 0

    assert producer.buffered == (Message("events", b"x", headers={"a": ["1"]}),)


def test_unknown_fields_are_refused_at_once(make_producer):
    """A batch with an invalid mapping is refused as a whole."""
    producer = make_producer()

    with pytest.raises(MessageInvalidError) as raised:
        producer.buffer_many([*numbered(1), {"topic": "events", "paylod": b"x"}, 5])
    with pytest.raises(TypeError):
        producer.buffer(topic="events", paylod=b"x")

    assert list(raised.value.errors) == [
        "messages[1].paylod",
        "messages[1].payload",
        "messages[2].message",
    ]
    assert producer.buffered == ()


BAD = {
    "type": ({"payload": 5}, "payload"),
    "size": ({"payload": bytes(2_000_000)}, "payload"),
    "topic": ({"payload": b"", "topic": "no topic!"}, "topic"),
    "partition": ({"payload": b"", "partition": -2}, "partition"),
    "empty key": ({"payload": b"", "key": b""}, "key"),
}


@pytest.mark.parametrize(("fields", "wrong"), BAD.values(), ids=BAD)
def test_bad_message_is_refused_when_it_is_buffered(
    make_producer, stored, fields, wrong
):
    """The caller that made the mistake gets the error; other messages are sent."""
    producer = make_producer()
    message = {"topic": "events", **fields}
    producer.buffer_many(numbered(2))

    with pytest.raises(MessageInvalidError) as one:
        producer.buffer(**message)
    with pytest.raises(MessageInvalidError) as many:
        producer.buffer_many([*numbered(1), message])

    assert list(one.value.errors) == [wrong]
    assert list(many.value.errors) == [f"messages[1].{wrong}"]
    assert producer.status == "configured"
    assert len(producer.flush_sync()) == 2
    assert stored("events") == 2


def test_broken_middleware_is_raised_when_a_message_is_buffered(make_producer):
    """No message of the batch is kept; messages that were buffered before stay."""
    producer = make_producer()
    producer.buffer_many(numbered(1))
    step = producer.middleware.append(
        lambda message: None if message.payload == b"2" else message
    )

    with pytest.raises(MiddlewareError):
        producer.buffer_many(numbered(3, 1))
    with pytest.raises(MiddlewareError):
        producer.buffer(topic="events", payload=b"2")
    assert payloads(producer.buffered) == [b"0"]

    producer.middleware.remove(step)
    assert len(producer.flush_sync()) == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, gevent.GreenletExit, SystemExit])
def test_interrupt_while_buffering_keeps_what_was_there(make_producer, kind):
    """An interruption that a step raises keeps its type."""
    producer = make_producer()
    producer.buffer_many(numbered(2))

    @producer.middleware.append
    def step(message):
        raise kind

    with pytest.raises(kind):
        producer.buffer_many(numbered(2, 2))

    assert payloads(producer.buffered) == [b"0", b"1"]


def test_unconfigured_producer_buffers_nothing():
    """The error says to configure the producer first."""
    producer = Producer()
    for verb in (
        lambda: producer.buffer(topic="t", payload=b"x"),
        lambda: producer.buffer_many([]),
        producer.flush_sync,
        producer.flush_async,
    ):
        with pytest.raises(ProducerNotConfiguredError):
            verb()


def test_buffering_emits_an_event(make_producer):
    """Each call emits one event, with all messages in the buffer."""
    producer = make_producer(id="p")
    events = collect_events(producer, "message.buffered", "messages.buffered")

    producer.buffer(topic="events", payload=b"0")
    producer.buffer_many(numbered(2, 1))

    one, many = events
    assert (one.name, one["producer_id"]) == ("message.buffered", "p")
    assert one["message"] == Message("events", b"0")
    assert one["buffer"] == (Message("events", b"0"),)
    assert many.name == "messages.buffered"
    assert payloads(many["messages"]) == [b"1", b"2"]
    assert payloads(many["buffer"]) == [b"0", b"1", b"2"]
    assert 0 <= one["time"] < LONG


# -- flushing -------------------------------------------------------------------------


def test_flush_sync_returns_reports_in_order(world, make_producer, stored):
    """Messages are stored in the order of buffering, and the buffer is empty."""
    producer = make_producer()
    producer.buffer_many(numbered(300))

    reports = producer.flush_sync()

    assert [report.offset for report in reports] == list(range(300))
    assert all(type(report) is DeliveryReport for report in reports)
    assert producer.buffered == ()
    assert stored("events") == 300


def test_flush_async_returns_handles(world, make_producer):
    """The handles are in the order of the messages."""
    producer = make_producer()
    producer.buffer_many(numbered(5))

    handles = producer.flush_async()

    assert all(type(handle) is DeliveryHandle for handle in handles)
    assert [handle.wait(LONG).offset for handle in handles] == [0, 1, 2, 3, 4]
    assert producer.buffered == ()


@both_flushes
def test_flushing_nothing_sends_nothing(make_producer, flush):
    """Flushing an empty buffer connects nothing, and emits the event all the same."""
    producer = make_producer()
    events = collect_events(
        producer,
        "buffer.flushed_sync",
        "buffer.flushed_async",
        "messages.produced_sync",
        "messages.produced_async",
    )

    assert flush(producer) == []

    assert producer.status == "configured"
    (event,) = events
    assert event.name.startswith("buffer.flushed")
    assert list(event["messages"]) == []


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_flush_event_follows_that_of_its_batch(make_producer, kind):
    """The batch's event comes first, then the event of the flush."""
    producer = make_producer()
    events = collect_events(
        producer, f"messages.produced_{kind}", f"buffer.flushed_{kind}"
    )
    producer.buffer_many(numbered(2))

    FLUSHES[f"flush_{kind}"](producer)

    assert [event.name for event in events] == [
        f"messages.produced_{kind}",
        f"buffer.flushed_{kind}",
    ]
    assert [payloads(event["messages"]) for event in events] == [[b"0", b"1"]] * 2


def test_label_survives_buffering(make_producer):
    """The handle, the report and the event of a flushed message have its label."""
    producer = make_producer()
    events = collect_events(producer, "message.acknowledged")
    producer.buffer(topic="events", payload=b"x", label="mine")

    (handle,) = producer.flush_async()

    assert (handle.label, handle.wait(LONG).label) == ("mine", "mine")
    assert [event["label"] for event in events] == ["mine"]


# -- flushes that fail ----------------------------------------------------------------


@both_flushes
def test_full_queue_keeps_the_rest_in_the_buffer(world, make_producer, flush):
    """Queued messages are gone; exactly the rest is back, before newer messages."""
    producer = make_producer(TIGHT, wait_on_queue_full=False, max_wait_timeout=0.1)
    producer.buffer_many(numbered(20))

    with pytest.raises(ProduceManyError) as raised:
        flush(producer)
    producer.buffer_many(numbered(1, 20))

    assert isinstance(raised.value.__cause__, QueueFullError)
    assert [type(each) for each in raised.value.dispatched] == [DeliveryHandle] * 3
    assert raised.value.failed_index == 3
    assert "17 messages are back in the buffer" in str(raised.value)
    assert payloads(producer.buffered) == payloads(numbered(18, 3))
    producer.close(force=True)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_failed_flush_emits_the_error_of_a_failed_batch(make_producer, kind):
    """`error.occurred` has messages and handles; its text names those put back."""
    producer = make_producer(TIGHT, wait_on_queue_full=False, max_wait_timeout=0.1)
    events = collect_events(producer, "error.occurred")
    producer.buffer_many(numbered(5))

    with pytest.raises(ProduceManyError) as raised:
        FLUSHES[f"flush_{kind}"](producer)

    observed = [each for each in events if each["type"].startswith("messages.")]
    (event,) = observed
    assert event["type"] == f"messages.produce_many_{kind}"
    assert event["error"] is raised.value
    assert len(event["messages"]) == 5
    assert len(event["dispatched"]) == 3
    producer.close(force=True)


def test_undelivered_messages_are_not_put_back(mock_cluster, make_producer):
    """The failure of a queued message is reported by its handle only."""
    producer = make_producer()
    mock_cluster.fail_requests("Produce", "TOPIC_AUTHORIZATION_FAILED", times=100)
    producer.buffer_many(numbered(3))

    with pytest.raises(ProduceManyError) as raised:
        producer.flush_sync()

    assert len(raised.value.dispatched) == 3
    assert "buffer" not in str(raised.value)
    assert producer.buffered == ()


@both_flushes
def test_messages_pass_middleware_and_checks_once(make_producer, flush):
    """Messages pass when they are buffered, and not again at any flush."""
    producer = make_producer(TIGHT, wait_on_queue_full=False, max_wait_timeout=0.1)
    calls = []

    @producer.middleware.append
    def step(message):
        calls.append(message.payload)
        return message._replace(payload=message.payload + b"!")

    observed = collect_events(producer, "error.occurred")
    producer.buffer_many(numbered(4))
    producer.buffer(topic="events", payload=b"4", partition=0)
    assert calls == payloads(numbered(5))

    for _ in range(2):
        with pytest.raises(ProduceManyError):
            flush(producer)

    assert calls == payloads(numbered(5))
    assert payloads(producer.buffered) == [b"3", b"4"]
    first, second = (each for each in observed if each["type"].startswith("messages."))
    assert payloads(first["messages"]) == [b"0!", b"1!", b"2!", b"3!", b"4!"]
    assert payloads(second["messages"]) == [b"3!", b"4!"]
    producer.close(force=True)


# -- messages that librdkafka refuses -------------------------------------------------


def buffer_with_bad_partitions(producer, count, bad):
    """Buffer messages of which some are for a partition that does not exist."""
    producer.produce_sync(topic="events", payload=b"warm", partition=0)
    for message in numbered(count):
        number = int(message.payload)
        partition = 9 if number in bad else 0
        producer.buffer(**message._replace(partition=partition, label=number)._asdict())


@both_flushes
@pytest.mark.parametrize("bad", [[0], [2], [4], [0, 1, 3], [0, 1, 2, 3, 4]])
def test_refused_messages_do_not_hold_back_others(  # noqa: PLR0917 - fixtures
    world, mock_cluster, make_producer, stored, flush, bad
):
    """The others are sent; the refused messages are reported and leave the buffer."""
    mock_cluster.create_topic("events", partitions=1)
    producer = make_producer()
    observed = collect_events(producer, "error.occurred")
    buffer_with_bad_partitions(producer, 5, bad)

    with pytest.raises(ProduceManyError) as raised:
        flush(producer)

    good = [number for number in range(5) if number not in bad]
    assert producer.buffered == ()
    error = raised.value
    assert (error.failed_index, error.name) == (bad[0], "_UNKNOWN_PARTITION")
    assert f"{len(bad)} of 5 messages w" in str(error)
    assert [each.label for each in error.dispatched] == [0, 1, 2, 3, 4]
    for handle in error.dispatched:
        if handle.label in bad:
            with pytest.raises(DeliveryError, match="was not queued"):
                handle.wait(LONG)
        else:
            assert handle.wait(LONG).offset == 1 + good.index(handle.label)
    await_true(lambda: len(observed) == len(bad) + 1)
    kinds = [each["type"] for each in observed]
    assert kinds.count("librdkafka.dispatch_error") == len(bad)
    reported = [
        each for each in observed if each["type"] == "librdkafka.dispatch_error"
    ]
    assert sorted(each["label"] for each in reported) == bad
    assert {each["partition"] for each in reported} <= {None, 9}
    assert flush(producer) == []
    producer.close()
    assert stored("events") == 1 + len(good)


@both_flushes
def test_failed_client_keeps_messages_in_the_buffer(world, make_producer, flush):
    """After a fatal error another client may accept them, so they are not dropped."""
    producer = make_producer({"enable.idempotence": True})
    producer.produce_sync(topic="events", payload=b"warm")
    trigger_fatal_error(producer)
    producer.buffer_many(numbered(3))

    with pytest.raises(ProduceManyError, match="3 messages are back") as raised:
        flush(producer)

    assert raised.value.fatal
    assert raised.value.dispatched == ()
    assert payloads(producer.buffered) == [b"0", b"1", b"2"]
    producer.close(force=True)


@both_flushes
def test_refused_messages_are_collected_by_a_scope(
    world, mock_cluster, make_producer, flush
):
    """They are collected like any other message sent in the block."""
    mock_cluster.create_topic("events", partitions=1)
    producer = make_producer()
    buffer_with_bad_partitions(producer, 3, [1])

    def flush_in_scope():
        with producer.scope(), pytest.raises(ProduceManyError):
            flush(producer)

    with pytest.raises(ProduceManyError, match="1 message was not delivered") as raised:
        flush_in_scope()

    assert [each.label for each in raised.value.dispatched] == [0, 1, 2]


@both_flushes
def test_refused_message_rolls_back_a_flush_of_its_own(
    world, mock_cluster, make_producer, stored, flush
):
    """The others are in the buffer again, and the next flush sends them."""
    mock_cluster.create_topic("events", partitions=1)
    producer = make_producer({"transactional.id": "t"})
    buffer_with_bad_partitions(producer, 4, [2])

    with pytest.raises(ProduceManyError, match="3 messages are back") as raised:
        flush(producer)

    assert raised.value.failed_index == 2
    assert payloads(producer.buffered) == [b"0", b"1", b"3"]
    assert len(flush(producer)) == 3
    assert producer.buffered == ()


def test_refused_message_of_a_flush_in_a_block_does_not_come_back(
    world, mock_cluster, make_producer
):
    """The others come back when the block is rolled back, and can be flushed."""
    mock_cluster.create_topic("events", partitions=1)
    producer = make_producer({"transactional.id": "t"})
    buffer_with_bad_partitions(producer, 4, [2])

    with pytest.raises(ProduceManyError), producer.transaction():
        producer.flush_sync()

    assert payloads(producer.buffered) == [b"0", b"1", b"3"]
    with producer.transaction():
        assert len(producer.flush_async()) == 3


@both_flushes
def test_timeout_while_the_queue_is_full_loses_nothing(hub, make_producer, flush):
    """An interrupted flush has queued the messages that fit; the rest is back."""
    producer = make_producer(TIGHT)
    producer.buffer_many(numbered(8))

    with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
        flush(producer)

    assert producer.queue_size == 3
    assert payloads(producer.buffered) == payloads(numbered(5, 3))
    producer.close(force=True)


def test_killed_flush_loses_nothing(hub, make_producer):
    """`greenlet.kill()` has the same effect."""
    producer = make_producer(TIGHT)
    producer.buffer_many(numbered(8))
    flushing = gevent.spawn(producer.flush_sync)
    gevent.sleep(0.1)
    assert producer.buffered == ()

    flushing.kill()

    assert payloads(producer.buffered) == payloads(numbered(5, 3))
    producer.close(force=True)


@pytest.mark.slow
def test_ctrl_c_while_the_queue_is_full_loses_nothing(make_producer):
    """Ctrl-C in a blocked thread has the same effect."""
    producer = make_producer(TIGHT)
    producer.buffer_many(numbered(8))
    main = threading.main_thread().ident
    timer = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()

    with pytest.raises(KeyboardInterrupt):
        producer.flush_async()
    timer.join()

    assert payloads(producer.buffered) == payloads(numbered(5, 3))
    producer.close(force=True)


# -- variants -------------------------------------------------------------------------


def test_messages_are_sent_by_the_variant_that_buffered_them(make_producer):
    """In steps `current_variant` is the copy that buffered, whichever copy flushes."""
    producer = make_producer()
    variant = producer.variant()
    seen = []

    @producer.middleware.append
    def look(message):
        seen.append(producer.current_variant)
        return message

    producer.buffer(topic="events", payload=b"0", partition=0)
    variant.buffer_many(numbered(2, 1))
    producer.buffer(topic="events", payload=b"3", partition=0)
    reports = producer.flush_sync()

    assert seen == [producer, variant, variant, producer]
    assert [report.offset for report in reports] == [0, 1, 2, 3]


class Queued:
    """A stand-in for the handle of a queued message."""

    refusal = None

    def __init__(self, message):
        self.message = message


class Recorder:
    """Records which messages a flush sends to which slot, and fails at one of them."""

    def __init__(self, stop_at=None):
        self.calls = []
        self._stop_at = stop_at

    def send_many(self, slot, messages, _verb, handles, end, **_):
        """Queue messages, as the method of the core."""
        run = messages[len(handles) : end]
        self.calls.append((slot, payloads(run)))
        for message in run:
            if message.payload == self._stop_at:
                raise gevent.GreenletExit
            handles.append(Queued(message))
        return handles


def test_consecutive_messages_of_one_sender_are_sent_together():
    """Consecutive messages of a variant are one run, and the order is kept."""
    buffer, recorder = Buffer(), Recorder()
    slots = ["one", "one", "other", "one"]
    for slot, message in zip(slots, numbered(4), strict=True):
        buffer.append([BufferedMessage(message, message._replace(label="wire"), slot)])

    with Flush(buffer) as flush:
        flush.take()
        handles = flush.send(recorder.send_many, "verb")

    assert recorder.calls == [
        ("one", [b"0", b"1"]),
        ("other", [b"2"]),
        ("one", [b"3"]),
    ]
    assert [each.message.label for each in handles] == ["wire"] * 4
    assert len(buffer) == 0


def test_runs_after_the_one_that_failed_are_put_back():
    """A failure in the second run leaves the first run sent, and the rest back."""
    buffer, recorder = Buffer(), Recorder(stop_at=b"2")
    slots = ["one", "other", "other", "other", "one"]
    for slot, message in zip(slots, numbered(5), strict=True):
        buffer.append([BufferedMessage(message, message._replace(label="wire"), slot)])

    def flush_all():
        with Flush(buffer) as flush:
            flush.take()
            flush.send(recorder.send_many, "verb")

    with pytest.raises(gevent.GreenletExit):
        flush_all()

    assert payloads(buffer.messages()) == [b"2", b"3", b"4"]


# -- concurrent tasks -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("flush", ["flush_sync", "flush_async"])
def test_nothing_is_lost_between_buffering_and_flushing(
    world, make_producer, stored, flush
):
    """10,000 messages buffered by some tasks and flushed by others arrive once."""
    producer = make_producer()
    acknowledged = []
    producer.monitor.subscribe(
        "message.acknowledged", lambda event: acknowledged.append(event["label"])
    )
    done = []

    def buffer(first):
        for number in range(first, first + 2500):
            producer.buffer(topic="events", payload=b"x", label=number)
            if not number % 50 and world == "greenlets":
                gevent.sleep(0)
        done.append(first)

    def keep_flushing():
        while len(done) < 4:
            getattr(producer, flush)()
            gevent.sleep(0) if world == "greenlets" else time.sleep(0)

    together(
        [
            *(lambda first=first: buffer(first) for first in range(0, 10_000, 2500)),
            keep_flushing,
            keep_flushing,
        ]
    )
    producer.flush_sync()
    producer.close()

    assert sorted(acknowledged) == list(range(10_000))
    assert stored("events") == 10_000


@pytest.mark.slow
def test_large_flush_lets_other_greenlets_run(make_producer, longest_gap):
    """Preparing and queueing many messages yields to other greenlets."""
    producer = make_producer()
    producer.buffer_many(numbered(30_000))

    with longest_gap() as gap:
        producer.flush_sync()

    assert gap.seconds < 0.1


def test_buffering_waits_for_the_lock(make_producer):
    """While a thread holds the lock of the buffer no other thread adds a message."""
    producer = make_producer()
    lock = producer._core.buffer._lock

    with lock:
        task = threading.Thread(target=producer.buffer_many, args=(numbered(1),))
        task.start()
        task.join(0.05)
        assert task.is_alive()
        assert producer.buffered == ()
    task.join(LONG)

    assert len(producer.buffered) == 1


# -- closing and exit -----------------------------------------------------------------


def test_close_sends_what_is_buffered(world, make_producer, stored):
    """It also does so as the first send of a producer, and emits a flush event."""
    producer = make_producer()
    events = collect_events(
        producer,
        "producer.closing",
        "messages.produced_async",
        "buffer.flushed_async",
        "producer.closed",
        "error.occurred",
    )
    producer.buffer_many(numbered(1000))

    producer.close()

    assert (producer.status, producer.buffered) == ("closed", ())
    assert [event.name for event in events] == [
        "producer.closing",
        "messages.produced_async",
        "buffer.flushed_async",
        "producer.closed",
    ]
    assert stored("events") == 1000


def test_closed_producer_refuses_to_buffer(make_producer):
    """Messages that were not sent stay readable."""
    producer = make_producer()
    producer.buffer_many(numbered(1))
    producer.close(force=True)

    with pytest.raises(ProducerClosedError):
        producer.buffer(topic="events", payload=b"x")
    with pytest.raises(ProducerClosedError):
        producer.buffer_many(numbered(1))
    assert len(producer.buffered) == 1


@both_flushes
def test_flush_of_a_closed_producer_loses_nothing(make_producer, flush):
    """Messages that `close` could not send stay readable, and are not sent later."""
    producer = make_producer()
    producer.buffer_many(numbered(2))
    producer.close(force=True)

    with pytest.raises(ProducerClosedError, match="is closed"):
        flush(producer)

    assert payloads(producer.buffered) == [b"0", b"1"]


def refuse_all(mock_cluster):
    """Make the broker refuse each message."""
    mock_cluster.fail_requests("Produce", "TOPIC_AUTHORIZATION_FAILED", times=100)


QUICK_TO_FAIL = {"message.timeout.ms": 500}
IMPATIENT = {**NOWHERE, **QUICK_TO_FAIL}
TRANSACTIONAL = {"transactional.id": "t", "transaction.timeout.ms": 1000}

#: Reasons for a message not to be delivered: settings, actions on the producer and on
#: the cluster, and the partition.
LOSSES = {
    "dead broker": (IMPATIENT, None, None, 0),
    "refusing broker": ({}, None, refuse_all, 0),
    "no such partition": (QUICK_TO_FAIL, None, None, 99),
    "partition known to be none": (
        QUICK_TO_FAIL,
        lambda producer: producer.produce_sync(topic="events", payload=b"warm"),
        None,
        99,
    ),
    "fatal error": (
        {"enable.idempotence": True},
        lambda producer: (
            producer.produce_sync(topic="events", payload=b"warm"),
            trigger_fatal_error(producer),
        ),
        None,
        0,
    ),
    "transaction, dead broker": ({**NOWHERE, **TRANSACTIONAL}, None, None, 0),
    "transaction, refusing broker": (TRANSACTIONAL, None, refuse_all, 0),
    "transaction, no such partition": (TRANSACTIONAL, None, None, 99),
}
each_loss = pytest.mark.parametrize(
    ("kafka", "prepare", "spoil", "partition"), LOSSES.values(), ids=LOSSES
)


@pytest.fixture
def undeliverable(  # noqa: PLR0917 - fixtures
    make_producer, mock_cluster, kafka, prepare, spoil, partition
):
    """Make a producer with three buffered messages that can't be delivered."""
    producer = make_producer(kafka, id="p", max_wait_timeout=5.0)
    if prepare is not None:
        prepare(producer)
    if spoil is not None:
        spoil(mock_cluster)
    producer.buffer_many(
        message._replace(partition=partition) for message in numbered(3)
    )
    return producer


@each_loss
def test_close_reports_buffered_messages_that_were_not_delivered(world, undeliverable):
    """`close` raises, ends closed and keeps them readable; an event has them too."""
    events = collect_events(undeliverable, "error.occurred")

    with pytest.raises(MessagesAbandonedError) as raised:
        undeliverable.close()

    assert undeliverable.status == "closed"
    assert payloads(undeliverable.buffered) == [b"0", b"1", b"2"]
    assert raised.value.count == 3
    text = "producer 'p' is closed; 3 buffered messages were not delivered"
    assert str(raised.value).startswith(text)
    assert raised.value.__cause__ is not None
    (event,) = (each for each in events if each["type"] == "buffer.flush")
    assert payloads(event["messages"]) == [b"0", b"1", b"2"]


@each_loss
def test_leaving_the_block_reports_undelivered_buffered_messages(world, undeliverable):
    """Leaving the block raises for messages that were not delivered."""
    with (
        pytest.raises(MessagesAbandonedError, match="3 buffered messages"),
        undeliverable,
    ):
        pass

    assert payloads(undeliverable.buffered) == [b"0", b"1", b"2"]


def test_close_leaves_only_what_was_not_delivered(world, mock_cluster, make_producer):
    """Stored messages are not in `buffered`; the others are, in order."""
    mock_cluster.create_topic("events", partitions=1)
    producer = make_producer(id="p")
    buffer_with_bad_partitions(producer, 5, [1, 3])

    with pytest.raises(MessagesAbandonedError, match="2 buffered messages") as raised:
        producer.close()

    assert "_UNKNOWN_PARTITION" in str(raised.value)
    assert payloads(producer.buffered) == [b"1", b"3"]


def test_close_resends_messages_that_a_refused_one_rolled_back(
    world, mock_cluster, make_producer, stored
):
    """In a transaction a refused message fails all others, which are sent again."""
    mock_cluster.create_topic("events", partitions=1)
    producer = make_producer({"transactional.id": "t"})
    acknowledged = collect_events(producer, "message.acknowledged")
    buffer_with_bad_partitions(producer, 4, [0, 2])

    with pytest.raises(MessagesAbandonedError) as raised:
        producer.close()

    assert raised.value.count == 2
    assert payloads(producer.buffered) == [b"0", b"2"]
    assert [each["label"] for each in acknowledged][-2:] == [1, 3]


def test_close_counts_each_undelivered_message_once(world, make_producer):
    """It may be flushed before, sent without a buffer, or flushed by `close`."""
    producer = make_producer(IMPATIENT, id="p")
    producer.buffer_many(numbered(2))
    handles = producer.flush_async()
    handles += producer.produce_many_async(numbered(3))
    producer.buffer_many(numbered(4))

    with pytest.raises(MessagesAbandonedError) as raised:
        producer.close()

    text = str(raised.value)
    assert "5 messages were not delivered; 4 buffered messages were" in text
    assert raised.value.count == 9
    assert len(producer.buffered) == 4
    assert all(isinstance(each.error, DeliveryError) for each in handles)


def test_failures_that_were_reported_before_are_not_repeated_by_close(
    world, mock_cluster, make_producer
):
    """Handles that failed before `close` began have reported their failure."""
    producer = make_producer()
    events = collect_events(producer, "error.occurred")
    refuse_all(mock_cluster)
    producer.buffer_many(numbered(3))
    (*_, last) = producer.flush_async()
    with pytest.raises(DeliveryError):
        last.wait(LONG)

    producer.close()

    kinds = [each["type"] for each in events]
    assert kinds.count("librdkafka.dispatch_error") == 3
    assert producer.buffered == ()


def test_close_keeps_messages_without_space_readable(world, make_producer):
    """The last flush ends with the timeout of close; queued messages are dropped."""
    producer = make_producer(TIGHT)
    events = collect_events(producer, "error.occurred")
    producer.buffer_many(numbered(8))
    started = time.monotonic()

    with pytest.raises(MessagesAbandonedError, match="8 buffered messages were not"):
        producer.close(timeout=0.2)

    assert time.monotonic() - started < 5.0
    assert payloads(producer.buffered) == payloads(numbered(8))
    assert [each["type"] for each in events].count("buffer.flush") == 1


def test_interrupted_close_keeps_messages_readable(hub, make_producer, caplog):
    """A Timeout in the last flush ends the flush, and not the teardown.

    The caller gets the Timeout, so the messages are logged.
    """
    producer = make_producer(TIGHT)
    producer.buffer_many(numbered(8))

    with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
        producer.close()

    assert producer.status == "closed"
    assert payloads(producer.buffered) == payloads(numbered(8))
    assert "8 buffered messages were not delivered" in caplog.text


@pytest.mark.parametrize("timeout", [None, 0.2])
def test_forced_close_keeps_messages_readable(world, make_producer, timeout):
    """Without a timeout it raises and queues nothing. An event has the loss."""
    producer = make_producer(NOWHERE)
    events = collect_events(producer, "error.occurred")
    producer.buffer_many(numbered(3))

    producer.close(timeout, force=True)

    assert producer.status == "closed"
    assert payloads(producer.buffered) == [b"0", b"1", b"2"]
    (event,) = (each for each in events if each["type"] == "buffer.flush")
    assert payloads(event["messages"]) == [b"0", b"1", b"2"]


def test_close_reports_messages_that_another_flush_could_not_send(hub, make_producer):
    """A flush that waits for space is ended; its messages are readable too."""
    producer = make_producer(TIGHT)
    producer.buffer_many(numbered(8))
    failures = []

    def flush():
        try:
            producer.flush_async()
        except ProduceManyError as error:
            failures.append(str(error))

    flushing = gevent.spawn(flush)
    await_true(lambda: producer.queue_size == 3)

    with pytest.raises(MessagesAbandonedError, match="5 buffered messages") as raised:
        producer.close(timeout=0.2)

    assert raised.value.count == 8
    flushing.join(LONG)
    assert failures[0].endswith("5 messages are back in the buffer")
    assert payloads(producer.buffered) == payloads(numbered(5, 3))


def test_background_close_logs_buffered_messages(hub, make_producer, caplog):
    """No caller could catch the error, as in a callback of the hub."""
    producer = make_producer(IMPATIENT)
    producer.buffer_many(numbered(3))

    hub.loop.run_callback(producer.close)
    await_true(lambda: producer.status == "closed")

    await_true(lambda: "3 buffered messages were not delivered" in caplog.text)
    assert payloads(producer.buffered) == [b"0", b"1", b"2"]


def test_close_in_the_hub_flushes_in_the_background(hub, make_producer, stored):
    """The hub can't wait, so a greenlet closes, also if nothing was sent yet."""
    producer = make_producer()
    producer.buffer_many(numbered(5))

    hub.loop.run_callback(producer.close)
    await_true(lambda: producer.status == "closed")

    assert stored("events") == 5


def test_other_senders_are_refused_during_the_last_flush(
    hub, mock_cluster, make_producer
):
    """Only the task that closes sends; a second close waits for it."""
    producer = make_producer()
    mock_cluster.round_trip(0.3)
    producer.buffer_many(numbered(1))
    closing = gevent.spawn(producer.close)
    await_true(lambda: producer.status == "closing")
    with pytest.raises(ProducerClosedError):
        producer.produce_async(topic="events", payload=b"x")
    with pytest.raises(ProducerClosedError):
        producer.buffer(topic="events", payload=b"x")

    producer.close()

    closing.get(timeout=LONG)
    assert (producer.status, producer.buffered) == ("closed", ())


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("mode", ["none", "unpatched", "patched"])
def test_end_of_a_program_sends_what_is_buffered(
    mode, mock_cluster, run_script, stored
):
    """The program ends without flush or close, or drops its last reference."""
    program = """
    from greendrop import Producer
    producer = Producer({"bootstrap.servers": servers})
    producer.buffer_many({"topic": "events", "payload": b"x"} for _ in range(100))
    del producer
    """

    run_script(program, mode, servers=mock_cluster.bootstrap_servers)

    assert stored("events") == 100


SPOILED = {
    "dead broker": 'producer = Producer({**kafka, "bootstrap.servers": "127.0.0.1:1"})',
    "no such partition": "producer = Producer(kafka)",
    "fatal error": "del kafka['message.timeout.ms'];"
    "producer = Producer({**kafka, 'enable.idempotence': True});"
    "producer.produce_sync(topic='events', payload=b'');"
    "trigger_fatal_error(producer)",
    "transaction": "producer = Producer({**kafka, 'transactional.id': 't',"
    " 'bootstrap.servers': '127.0.0.1:1'}, exit_timeout=1)",
}


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("mode", ["none", "unpatched", "patched"])
@pytest.mark.parametrize("begin", SPOILED.values(), ids=SPOILED)
def test_end_of_a_program_reports_what_was_not_delivered(
    mode, mock_cluster, run_script, begin
):
    """The report is one line on standard error, with the reason."""
    program = f"""
    from greendrop import Producer
    from greendrop.testing import MemoryCluster, trigger_fatal_error
    kafka = {{
        "bootstrap.servers": servers,
        "message.timeout.ms": 500,
        "transaction.timeout.ms": 1000,
        "log_level": 0,
    }}
    {begin}
    for _ in range(3):
        producer.buffer(topic="events", payload=b"x", partition=99)
    del producer
    """

    servers = mock_cluster.bootstrap_servers
    ended = run_script(program, mode, fails=True, servers=servers)

    assert ended.returncode == 0
    lines = [line for line in ended.stderr.splitlines() if "greendrop: " in line]
    (line,) = lines
    assert "is closed; 3 buffered messages were not delivered" in line


# -- interrupts -----------------------------------------------------------------------


def interrupt_verb(verb, number):
    """Interrupt a verb at its nth function call; return None if it makes fewer.

    Returns the outcome of three buffered messages: those that are stored or readable,
    and those that an event has reported as lost.
    """

    def raise_interrupt():
        raise KeyboardInterrupt

    topic = f"{verb}-{number}"
    with MemoryCluster() as cluster:
        servers = cluster.bootstrap_servers
        producer = Producer({"bootstrap.servers": servers}, max_wait_timeout=LONG)
        lost = collect_events(producer, "error.occurred")
        producer.produce_sync(topic=topic, payload=b"warm")
        producer.buffer_many({"topic": topic, "payload": each} for each in "012")
        interrupting = at_nth_entry(number, raise_interrupt, "_producer")
        with contextlib.suppress(KeyboardInterrupt), interrupting as interrupted:
            getattr(producer, verb)()
        if verb == "close":  # it has begun and ended, or not begun
            assert producer.status in {"connected", "closed"}, interrupted
        else:
            producer.produce_sync(topic=topic, payload=b"after")
            producer.flush_sync()
        with contextlib.suppress(MessagesAbandonedError):
            producer.close()
        assert producer.status == "closed", interrupted
        stored = [each.payload.decode() for each in cluster.records(topic)]
        found = {*stored, *payloads(producer.buffered)} & set("012")
        lost = [each for each in lost if each["type"] == "librdkafka.dispatch_error"]
        return (interrupted, found, lost) if interrupted else None


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["flush_sync", "flush_async", "close"])
def test_interrupt_at_the_entry_of_a_function_loses_nothing(world, verb):
    """Each message is stored, buffered or reported; the producer stays usable."""
    number = 1
    while (outcome := interrupt_verb(verb, number)) is not None:
        interrupted, found, lost = outcome
        assert len(found) + len(lost) >= 3, (interrupted, found, lost)
        number += 1
    assert number > 10


# -- forks ----------------------------------------------------------------------------


def in_child(function):
    """Run a function in a forked child; return its result, a small number."""
    child = os.fork()
    if not child:
        try:
            os._exit(function())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_child_does_not_get_the_parents_messages(make_producer):
    """A child has an empty buffer of its own; the parent's buffer does not change."""
    producer = make_producer()
    producer.buffer_many(numbered(3))

    def child():
        before = len(producer.buffered)
        producer.buffer_many(numbered(2))
        return before * 10 + len(producer.buffered)

    assert in_child(child) == 2
    assert len(producer.buffered) == 3
    assert len(producer.flush_sync()) == 3


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_used_producer_buffers_nothing_in_a_child(make_producer):
    """It refuses like every other use until it is reset."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"x")

    def child():
        try:
            producer.buffer(topic="events", payload=b"x")
        except ProducerUsedInParentProcessError:
            producer.reset()
            producer.buffer(topic="events", payload=b"x")
            return len(producer.buffered)
        return 50

    assert in_child(child) == 1
    assert producer.buffered == ()


# -- comparison with a model ----------------------------------------------------------


class RefusedError(Exception):
    """A sender that refuses to send."""


class BufferMachine(RuleBasedStateMachine):
    """Buffers, flushes and fails in any order, compared with two lists."""

    def __init__(self):
        super().__init__()
        self.buffer = Buffer()
        self.waiting = []
        self.sent = []
        self.model_sent = []
        self.refused = []
        self.model_refused = []
        self.number = 0
        self.space = 0
        self.bad = None

    def send_many(self, slot, messages, _verb, handles, end, **_):
        """Queue messages, as the method of the core."""
        for message in messages[len(handles) : end]:
            if message.payload == self.bad:
                self.refused.append(message.payload)
                error = DeliveryError("bad")
                handles.append(refused_handle(message.topic, None, error))
                continue
            if not self.space:
                raise RefusedError
            self.space -= 1
            self.sent.append((slot, message.payload))
            handles.append(Queued(message))
        return handles

    @rule(names=st.lists(st.integers(0, 1), max_size=5))
    def append(self, names):
        """Buffer some messages through two senders."""
        for name in names:
            message = Message("t", self.number)
            entry = BufferedMessage(message, message, name)
            assert self.buffer.append([entry])
            self.waiting.append((name, self.number))
            self.number += 1

    @rule(space=st.integers(0, 12), bad=st.none() | st.integers(0, 40))
    def flush(self, space, bad):
        """Flush with some space; maybe librdkafka refuses one message."""
        self.space, self.bad = space, bad
        expected = []
        stuck = False
        while self.waiting and not stuck:
            if self.waiting[0][1] == bad:
                expected.append(self.waiting.pop(0)[1])
            elif space:
                space -= 1
                self.model_sent.append(self.waiting.pop(0))
            else:
                stuck = True
        self.model_refused += expected
        try:
            with Flush(self.buffer) as flush:
                flush.take()
                flush.send(self.send_many, "verb")
        except RefusedError:
            assert stuck
        except ProduceManyError:
            assert expected
            assert not stuck
        else:
            assert not stuck
            assert not expected

    @rule()
    def clear(self):
        """Drop all messages."""
        self.buffer.clear()
        self.waiting = []

    @invariant()
    def matches_the_model(self):
        """All messages that are neither sent nor refused are buffered, in order."""
        assert payloads(self.buffer.messages()) == [each for _, each in self.waiting]
        assert len(self.buffer) == len(self.waiting)
        assert self.sent == self.model_sent
        assert self.refused == self.model_refused


TestBufferAgainstAModel = BufferMachine.TestCase
TestBufferAgainstAModel.settings = settings(deadline=None, max_examples=60)


def test_messages_return_to_their_places_in_any_order(make_producer):
    """Two flushes that return messages late leave the buffer in its original order."""
    producer = make_producer()
    producer.buffer_many(numbered(4))
    buffer = producer._core.buffer
    flushes = [Flush(buffer), Flush(buffer)]
    flushes[0].take()
    last = flushes[0].entries[2:]
    buffer.put_back(flushes[0], last, flushes[0].entries[:2], [])
    flushes[1].take()

    for flush in flushes:
        buffer.put_back(flush, flush.entries, [], [])

    assert payloads(producer.buffered) == [b"0", b"1", b"2", b"3"]
    producer.purge()
