import copy
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
from greendrop._buffer import Buffer, Entry, Flush, Sender
from tests.tasks import await_true, together

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 20.0
#: Nobody listens there: a connection is refused at once.
NOWHERE = {"bootstrap.servers": "127.0.0.1:1"}
#: A queue with room for three, which nobody empties.
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
    """Make messages to one partition, told apart by their payload."""
    return [
        Message("events", str(number).encode(), partition=0)
        for number in range(first, first + count)
    ]


def heard_by(producer, *names):
    """Collect what these events tell from now on."""
    heard = []
    for name in names:
        producer.monitor.subscribe(name, heard.append)
    return heard


def payloads(messages):
    """Tell messages apart."""
    return [message.payload for message in messages]


# -- buffering ------------------------------------------------------------------------


def test_buffering_opens_nothing(make_producer):
    """Messages are kept in order, and nothing is checked or connected."""
    producer = make_producer()

    producer.buffer(topic="no topic!", payload=b"0", label="first")
    producer.buffer_many([{"topic": "events", "payload": b"1"}, *numbered(1, 2)])

    assert payloads(producer.buffered) == [b"0", b"1", b"2"]
    assert producer.buffered[0] == Message("no topic!", b"0", label="first")
    assert (producer.status, producer.queue_size) == ("configured", 0)


def test_buffered_is_a_snapshot(make_producer):
    """What was looked at does not change afterwards."""
    producer = make_producer()
    producer.buffer_many(numbered(1))
    seen = producer.buffered

    producer.buffer_many(numbered(1, 1))

    assert (len(seen), len(producer.buffered)) == (1, 2)
    assert Producer().buffered == ()


def test_buffered_message_shares_nothing_with_the_caller(make_producer):
    """What the caller changes after the call is not sent."""
    producer = make_producer()
    headers, payload = {"a": ["1"]}, bytearray(b"x")
    producer.buffer(topic="events", payload=payload, headers=headers)

    headers["a"].append("2")
    payload[0] = 0

    assert producer.buffered == (Message("events", b"x", headers={"a": ["1"]}),)


def test_unknown_fields_are_refused_at_once(make_producer):
    """A batch with a mapping that is no message is refused as a whole."""
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


def test_unconfigured_producer_buffers_nothing():
    """It says what to do first."""
    producer = Producer()
    for verb in (
        lambda: producer.buffer(topic="t", payload=b"x"),
        lambda: producer.buffer_many([]),
        producer.flush_sync,
        producer.flush_async,
    ):
        with pytest.raises(ProducerNotConfiguredError):
            verb()


def test_buffering_is_told(make_producer):
    """Each call is told once, with all that is in the buffer then."""
    producer = make_producer(id="p")
    heard = heard_by(producer, "message.buffered", "messages.buffered")

    producer.buffer(topic="events", payload=b"0")
    producer.buffer_many(numbered(2, 1))

    one, many = heard
    assert (one.name, one["producer_id"]) == ("message.buffered", "p")
    assert one["message"] == Message("events", b"0")
    assert one["buffer"] == (Message("events", b"0"),)
    assert many.name == "messages.buffered"
    assert payloads(many["messages"]) == [b"1", b"2"]
    assert payloads(many["buffer"]) == [b"0", b"1", b"2"]
    assert 0 <= one["time"] < LONG


# -- flushing -------------------------------------------------------------------------


def test_flush_sync_gives_reports_in_order(world, make_producer, stored):
    """All is stored in the order in which it was buffered, and the buffer is empty."""
    producer = make_producer()
    producer.buffer_many(numbered(300))

    reports = producer.flush_sync()

    assert [report.offset for report in reports] == list(range(300))
    assert all(type(report) is DeliveryReport for report in reports)
    assert producer.buffered == ()
    assert stored("events") == 300


def test_flush_async_gives_handles(world, make_producer):
    """The handles are those of the messages, in order."""
    producer = make_producer()
    producer.buffer_many(numbered(5))

    handles = producer.flush_async()

    assert all(type(handle) is DeliveryHandle for handle in handles)
    assert [handle.wait(LONG).offset for handle in handles] == [0, 1, 2, 3, 4]
    assert producer.buffered == ()


@both_flushes
def test_flushing_nothing_sends_nothing(make_producer, flush):
    """An empty buffer connects nothing; that it was flushed is told all the same.

    Acceptance check 80.
    """
    producer = make_producer()
    heard = heard_by(
        producer,
        "buffer.flushed_sync",
        "buffer.flushed_async",
        "messages.produced_sync",
        "messages.produced_async",
    )

    assert flush(producer) == []

    assert producer.status == "configured"
    (event,) = heard
    assert event.name.startswith("buffer.flushed")
    assert list(event["messages"]) == []


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_flush_is_told_after_its_batch(make_producer, kind):
    """The batch is told as any other, then that the buffer was flushed."""
    producer = make_producer()
    heard = heard_by(producer, f"messages.produced_{kind}", f"buffer.flushed_{kind}")
    producer.buffer_many(numbered(2))

    FLUSHES[f"flush_{kind}"](producer)

    assert [event.name for event in heard] == [
        f"messages.produced_{kind}",
        f"buffer.flushed_{kind}",
    ]
    assert [payloads(event["messages"]) for event in heard] == [[b"0", b"1"]] * 2


def test_label_is_found_again(make_producer):
    """On handle, report and event of a flushed message. Acceptance check 94."""
    producer = make_producer()
    heard = heard_by(producer, "message.acknowledged")
    producer.buffer(topic="events", payload=b"x", label="mine")

    (handle,) = producer.flush_async()

    assert (handle.label, handle.wait(LONG).label) == ("mine", "mine")
    assert [event["label"] for event in heard] == ["mine"]


# -- flushes that fail ----------------------------------------------------------------


@both_flushes
def test_bad_message_keeps_all_in_the_buffer(make_producer, flush):
    """Of two valid messages and an invalid one nothing is sent and nothing is lost.

    Acceptance checks 2 and 47.
    """
    producer = make_producer()
    producer.buffer_many(numbered(2))
    producer.buffer(topic="no topic!", payload=b"2")

    with pytest.raises(MessageInvalidError) as raised:
        flush(producer)

    assert list(raised.value.errors) == ["messages[2].topic"]
    assert str(raised.value).endswith("3 messages are back in the buffer")
    assert payloads(producer.buffered) == [b"0", b"1", b"2"]
    assert producer.status == "configured"


@both_flushes
def test_full_queue_keeps_the_rest_in_the_buffer(world, make_producer, flush):
    """What was queued is gone; the exact rest is back, in order, before what is new.

    Acceptance checks 3, 47 and 65.
    """
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
def test_failed_flush_is_told_as_a_failed_batch(make_producer, kind):
    """`error.occurred` has messages and handles, and the text of what was put back."""
    producer = make_producer(TIGHT, wait_on_queue_full=False, max_wait_timeout=0.1)
    heard = heard_by(producer, "error.occurred")
    producer.buffer_many(numbered(5))

    with pytest.raises(ProduceManyError) as raised:
        FLUSHES[f"flush_{kind}"](producer)

    told = [each for each in heard if each["type"].startswith("messages.")]
    (event,) = told
    assert event["type"] == f"messages.produce_many_{kind}"
    assert event["error"] is raised.value
    assert len(event["messages"]) == 5
    assert len(event["dispatched"]) == 3
    producer.close(force=True)


def test_undelivered_messages_are_not_put_back(mock_cluster, make_producer):
    """What was queued and then not delivered is told by its handle only."""
    producer = make_producer()
    mock_cluster.fail_requests("Produce", "TOPIC_AUTHORIZATION_FAILED", times=100)
    producer.buffer_many(numbered(3))

    with pytest.raises(ProduceManyError) as raised:
        producer.flush_sync()

    assert len(raised.value.dispatched) == 3
    assert "buffer" not in str(raised.value)
    assert producer.buffered == ()


@both_flushes
def test_broken_middleware_loses_nothing(make_producer, flush):
    """A step that raises keeps all in the buffer."""
    producer = make_producer()
    producer.buffer_many(numbered(3))
    step = producer.middleware.append(
        lambda message: None if message.payload == b"1" else message
    )

    with pytest.raises(MiddlewareError, match="3 messages are back"):
        flush(producer)
    assert payloads(producer.buffered) == [b"0", b"1", b"2"]

    producer.middleware.remove(step)
    assert len(flush(producer)) == 3


@both_flushes
def test_messages_pass_middleware_and_checks_once(make_producer, flush):
    """What was prepared before a flush failed is sent as it is by the next one.

    Acceptance checks 70 and 71.
    """
    producer = make_producer()
    sent = heard_by(producer, "messages.produced_sync", "messages.produced_async")
    calls = []
    repair = []

    @producer.middleware.append
    def step(message):
        calls.append(message.payload)
        if message.payload == b"2" and not repair:
            raise ValueError("not now")
        return message._replace(payload=message.payload + b"!")

    producer.buffer_many(numbered(4))
    with pytest.raises(MiddlewareError):
        flush(producer)
    assert payloads(producer.buffered) == [b"0", b"1", b"2", b"3"]
    repair.append(True)
    flush(producer)

    assert calls == [b"0", b"1", b"2", b"2", b"3"]
    assert payloads(sent[0]["messages"]) == [b"0!", b"1!", b"2!", b"3!"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, gevent.GreenletExit, SystemExit])
@both_flushes
def test_interrupted_middleware_loses_nothing(make_producer, flush, kind):
    """Whatever ends a flush, all that was not queued is back."""
    producer = make_producer()
    producer.buffer_many(numbered(3))

    @producer.middleware.append
    def step(message):
        raise kind

    with pytest.raises(kind):
        flush(producer)

    assert payloads(producer.buffered) == [b"0", b"1", b"2"]


@both_flushes
def test_timeout_while_there_is_no_room_loses_nothing(hub, make_producer, flush):
    """A flush that is cut short has queued what fits; the rest is back."""
    producer = make_producer(TIGHT)
    producer.buffer_many(numbered(8))

    with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
        flush(producer)

    assert producer.queue_size == 3
    assert payloads(producer.buffered) == payloads(numbered(5, 3))
    producer.close(force=True)


def test_killed_flush_loses_nothing(hub, make_producer):
    """The same for `greenlet.kill()`."""
    producer = make_producer(TIGHT)
    producer.buffer_many(numbered(8))
    flushing = gevent.spawn(producer.flush_sync)
    gevent.sleep(0.1)
    assert producer.buffered == ()

    flushing.kill()

    assert payloads(producer.buffered) == payloads(numbered(5, 3))
    producer.close(force=True)


@pytest.mark.slow
def test_ctrl_c_while_there_is_no_room_loses_nothing(make_producer):
    """The same for Ctrl-C in a thread that blocks."""
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


def test_messages_are_sent_by_who_buffered_them(make_producer):
    """In steps `current_variant` is the copy that buffered, whoever flushes."""
    producer = make_producer()
    variant = copy.copy(producer)
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


class Recorder:
    """Senders that note which messages they queue, and stop at one of them."""

    def __init__(self, stop_at=None):
        self.calls = []
        self._stop_at = stop_at

    def sender(self, name):
        """Make one; each has functions of its own."""

        def prepare(message):
            return message._replace(label=name)

        def dispatch(messages, verb, handles, end):
            run = messages[len(handles) : end]
            self.calls.append((name, payloads(run)))
            for message in run:
                if message.payload == self._stop_at:
                    raise gevent.GreenletExit
                handles.append(message)
            return handles

        return Sender(prepare, dispatch)


def test_neighbours_of_one_sender_are_sent_together():
    """Consecutive messages of a variant make one run, and the order is kept."""
    buffer, recorder = Buffer(), Recorder()
    one, other = recorder.sender("one"), recorder.sender("other")
    for sender, message in zip([one, one, other, one], numbered(4), strict=True):
        buffer.append([Entry(message, sender)])

    with Flush(buffer) as flush:
        flush.prepare()
        handles = flush.dispatch("verb")

    assert recorder.calls == [
        ("one", [b"0", b"1"]),
        ("other", [b"2"]),
        ("one", [b"3"]),
    ]
    assert [each.label for each in handles] == ["one", "one", "other", "one"]
    assert len(buffer) == 0


def test_runs_after_the_one_that_failed_are_put_back():
    """A failure in the second run leaves the first one sent, and all after it back."""
    buffer, recorder = Buffer(), Recorder(stop_at=b"2")
    one, other = recorder.sender("one"), recorder.sender("other")
    for sender, message in zip(
        [one, other, other, other, one], numbered(5), strict=True
    ):
        buffer.append([Entry(message, sender)])

    def flush_all():
        with Flush(buffer) as flush:
            flush.prepare()
            flush.dispatch("verb")

    with pytest.raises(gevent.GreenletExit):
        flush_all()

    assert payloads(buffer.messages()) == [b"2", b"3", b"4"]


# -- many at once ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("flush", ["flush_sync", "flush_async"])
def test_nothing_is_lost_between_buffering_and_flushing(
    world, make_producer, stored, flush
):
    """10,000 messages buffered by some while others flush arrive exactly once.

    Acceptance check 49.
    """
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
    """Preparing and queueing many messages gives way to others in between."""
    producer = make_producer()
    producer.buffer_many(numbered(30_000))

    with longest_gap() as gap:
        producer.flush_sync()

    assert gap.seconds < 0.1


def test_buffering_waits_for_the_lock(make_producer):
    """While one holds the lock of the buffer no other thread adds anything.

    Acceptance check 49.
    """
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


# -- the end --------------------------------------------------------------------------


def test_close_sends_what_is_buffered(world, make_producer, stored):
    """Also when nothing was sent before; it is told as a flush."""
    producer = make_producer()
    heard = heard_by(
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
    assert [event.name for event in heard] == [
        "producer.closing",
        "messages.produced_async",
        "buffer.flushed_async",
        "producer.closed",
    ]
    assert stored("events") == 1000


def test_closed_producer_refuses_to_buffer(make_producer):
    """What it could not send stays readable."""
    producer = make_producer()
    producer.buffer(topic="no topic!", payload=b"x")
    producer.close()

    with pytest.raises(ProducerClosedError):
        producer.buffer(topic="events", payload=b"x")
    with pytest.raises(ProducerClosedError):
        producer.buffer_many(numbered(1))
    assert len(producer.buffered) == 1


@both_flushes
def test_flush_of_a_closed_producer_loses_nothing(make_producer, flush):
    """What could not be sent when it closed stays readable, and is not sent later."""
    producer = make_producer()
    producer.buffer_many(numbered(2))
    producer.close(force=True)

    with pytest.raises(ProducerClosedError, match="2 messages are back in the buffer"):
        flush(producer)

    assert payloads(producer.buffered) == [b"0", b"1"]


def break_middleware(producer):
    """Have each message fail."""
    producer.middleware.append(lambda _: None)


PROBLEMS = {
    "bad message": (lambda p: p.buffer(topic="no topic!", payload=b""), 4),
    "middleware": (break_middleware, 3),
}


@pytest.mark.parametrize(("spoil", "left"), PROBLEMS.values(), ids=PROBLEMS)
def test_close_ends_closed_whatever_is_buffered(
    world, make_producer, caplog, spoil, left
):
    """A last flush that fails is told, and doesn't stop the teardown.

    What was not sent stays readable.
    """
    producer = make_producer(id="p")
    heard = heard_by(producer, "error.occurred")
    producer.produce_sync(topic="events", payload=b"x")
    producer.buffer_many(numbered(3))
    spoil(producer)

    producer.close()

    assert producer.status == "closed"
    assert len(producer.buffered) == left
    (event,) = heard
    assert event["type"] == "buffer.flush"
    assert f"{left} messages are back in the buffer" in str(event["error"])
    assert "producer.closes_without_flush producer_id=p" in caplog.text


def test_close_keeps_what_has_no_room_readable(world, make_producer):
    """The last flush waits no longer than close does."""
    producer = make_producer(TIGHT)
    heard = heard_by(producer, "error.occurred")
    producer.buffer_many(numbered(8))
    began = time.monotonic()

    with pytest.raises(MessagesAbandonedError, match="3 messages were not delivered"):
        producer.close(timeout=0.2)

    assert time.monotonic() - began < 5.0
    assert payloads(producer.buffered) == payloads(numbered(5, 3))
    assert [each["type"] for each in heard if each["type"] == "buffer.flush"]


def test_close_that_is_cut_short_keeps_messages_readable(hub, make_producer):
    """A Timeout in the last flush ends the flush, and not the teardown."""
    producer = make_producer(TIGHT)
    producer.buffer_many(numbered(8))

    with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
        producer.close()

    assert producer.status == "closed"
    assert payloads(producer.buffered) == payloads(numbered(5, 3))


def test_forced_close_keeps_messages_readable(make_producer, stored, mock_cluster):
    """It has no time to deliver anything, so it queues nothing."""
    producer = make_producer()
    producer.buffer_many(numbered(3))

    producer.close(force=True)

    assert (producer.status, len(producer.buffered)) == ("closed", 3)


def test_close_in_the_hub_flushes_by_itself(hub, make_producer, stored):
    """Where nobody may wait it goes on in a greenlet, also if nothing was sent yet."""
    producer = make_producer()
    producer.buffer_many(numbered(5))

    hub.loop.run_callback(producer.close)
    await_true(lambda: producer.status == "closed")

    assert stored("events") == 5


def test_others_are_refused_during_the_last_flush(hub, make_producer):
    """Only the one who closes sends; a second close waits for it."""
    producer = make_producer()

    @producer.middleware.append
    def slow(message):
        gevent.sleep(0.1)
        return message

    producer.buffer_many(numbered(1))
    closing = gevent.spawn(producer.close)
    await_true(lambda: producer.status == "closing")
    producer.middleware.remove(slow)
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
    """A program that ends without flush or close, or lets go of its producer."""
    program = """
    from greendrop import Producer
    producer = Producer({"bootstrap.servers": servers})
    producer.buffer_many({"topic": "events", "payload": b"x"} for _ in range(100))
    del producer
    """

    run_script(program, mode, servers=mock_cluster.bootstrap_servers)

    assert stored("events") == 100


@pytest.mark.slow
@pytest.mark.patched
def test_end_of_a_program_tells_what_was_not_sent(run_script):
    """On standard error, where it is seen."""
    program = """
    from greendrop import Producer
    producer = Producer({"bootstrap.servers": "127.0.0.1:1"}, id="p")
    producer.buffer(topic="no topic!", payload=b"x")
    """

    ended = run_script(program, "none", fails=True)

    assert ended.returncode == 0
    assert "1 buffered messages of producer 'p' were not sent" in ended.stderr


# -- forks ----------------------------------------------------------------------------


def in_child(function):
    """Run a function in a forked child; give what it gave, a small number."""
    child = os.fork()
    if not child:
        try:
            os._exit(function())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_parents_messages_are_the_parents(make_producer):
    """A child finds an empty buffer of its own; the parent's stays as it was."""
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
    """Until it is reset, as for every other use."""
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


# -- against a model ------------------------------------------------------------------


class RefusedError(Exception):
    """A sender that sends no more."""


class BufferMachine(RuleBasedStateMachine):
    """Buffering, flushing and failing in any order, beside two lists."""

    def __init__(self):
        super().__init__()
        self.buffer = Buffer()
        self.waiting = []
        self.sent = []
        self.model_sent = []
        self.prepared = []
        self.number = 0
        self.room = 0
        self.bad = None
        self.senders = [Sender(self._prepare, self._dispatch(n)) for n in range(2)]

    def _prepare(self, message):
        if message.payload == self.bad:
            raise MessageInvalidError({"payload": "bad"})
        self.prepared.append(message.payload)
        return message

    def _dispatch(self, name):
        def dispatch(messages, verb, handles, end):
            for message in messages[len(handles) : end]:
                if not self.room:
                    raise RefusedError
                self.room -= 1
                self.sent.append((name, message.payload))
                handles.append(message)
            return handles

        return dispatch

    @rule(names=st.lists(st.integers(0, 1), max_size=5))
    def append(self, names):
        """Buffer some messages through two senders."""
        for name in names:
            entry = Entry(Message("t", self.number), self.senders[name])
            assert self.buffer.append([entry])
            self.waiting.append((name, self.number))
            self.number += 1

    @rule(room=st.integers(0, 12), bad=st.none() | st.integers(0, 40))
    def flush(self, room, bad):
        """Flush with so much room; maybe one message is bad."""
        self.room = room
        fresh = [each for _, each in self.waiting if each not in self.prepared]
        self.bad = bad if bad in fresh else None
        try:
            with Flush(self.buffer) as flush:
                flush.prepare()
                flush.dispatch("verb")
        except MessageInvalidError:
            assert self.bad is not None
        except RefusedError:
            self.model_sent += self.waiting[:room]
            del self.waiting[:room]
        else:
            assert self.bad is None
            self.model_sent += self.waiting
            self.waiting = []

    @rule()
    def clear(self):
        """Drop all."""
        self.buffer.clear()
        self.waiting = []

    @invariant()
    def is_as_the_model_says(self):
        """All that is not sent is there, in order, and was prepared once at most."""
        assert payloads(self.buffer.messages()) == [each for _, each in self.waiting]
        assert len(self.buffer) == len(self.waiting)
        assert self.sent == self.model_sent
        assert len(set(self.prepared)) == len(self.prepared)


TestBufferAgainstAModel = BufferMachine.TestCase
TestBufferAgainstAModel.settings = settings(deadline=None, max_examples=60)
