"""Batching of threads without a hub: sends that wait behind a polling thread."""

import contextlib
import signal
import threading
import time

import gevent
import pytest

from greendrop._client import batcher
from greendrop._client.batcher import ThreadBatcher
from greendrop._client.client import Client
from greendrop._client.poll_loop import PollLoop
from greendrop._librdkafka.handle import KafkaHandle
from greendrop.errors import (
    DeliveryError,
    DeliveryTimeoutError,
    ProduceError,
    ProducerClosedError,
)
from tests.interrupting import at_call, at_entry, handling, signal_after
from tests.tasks import await_true

#: Seconds that nothing here takes.
LONG = 20.0


class Sink:
    """Accepts batches as librdkafka does, with space for all items or for none."""

    def __init__(self):
        self.batches = []
        self.is_full = False

    def send_batch(self, items):
        """Accept all items if there is space."""
        if not self.is_full:
            self.send_all(items)

    def send_all(self, items):
        """Accept all items, as after a wait for space."""
        self.batches.append([items.popleft() for _ in range(len(items))])


@pytest.fixture
def sink():
    """Make a sink for batches."""
    return Sink()


@pytest.fixture
def alone(sink):
    """Make a batcher without items in flight."""
    return ThreadBatcher([], sink)


def add(thread_batcher, item):
    """Add an item as the client does."""
    thread_batcher.items.append(item)
    thread_batcher._pending.append(item)
    if len(thread_batcher.items) >= thread_batcher.flush_at:
        thread_batcher.maybe_flush()


def poll(thread_batcher, seconds=0.1):
    """Begin a poll as the poll loop does, and return how long it may take."""
    if thread_batcher.collects_in_polls:
        return thread_batcher.collect(seconds)
    return seconds


# --- the rule -------------------------------------------------------------------------


def test_sends_go_out_at_once_while_no_thread_polls(alone, sink):
    """Without a thread that comes back soon, no send waits."""
    for item in (1, 2, 3):
        add(alone, item)

    assert sink.batches == [[1], [2], [3]]


def test_a_lone_thread_polls_for_long_and_collects_nothing(alone, sink):
    """One thread that sends and waits in turn is served as without a batcher."""
    for item in (1, 2, 3):
        add(alone, item)
        assert poll(alone) == 0.1
        alone._pending.clear()
        alone.on_reports(1, 0.0)

    assert sink.batches == [[1], [2], [3]]


def test_sends_wait_while_a_thread_polls_for_a_millisecond(alone, sink):
    """They go out together when the poll returns."""
    for item in (1, 2, 3):
        add(alone, item)
    alone.on_reports(1, 0.0)

    assert poll(alone) == batcher._MAX_PACE
    add(alone, 4)
    add(alone, 5)
    assert sink.batches == [[1], [2], [3]]
    alone.flush()

    assert sink.batches[3:] == [[4, 5]]
    add(alone, 6)
    assert sink.batches[4:] == [[6]], "the poll is over"


def test_sends_go_out_early_when_as_many_wait_as_were_in_flight(alone, sink):
    """Half of the threads never wait for the other half."""
    for item in (1, 2):
        add(alone, item)
    alone.on_reports(1, 0.0)
    poll(alone)
    add(alone, 3)
    add(alone, 4)

    assert sink.batches == [[1], [2], [3, 4]]
    add(alone, 5)
    assert sink.batches[3:] == [[5]]


def test_a_distant_broker_gets_each_send_at_once(alone, sink):
    """Where a report takes longer than a send may wait, waiting gains nothing."""
    for item in (1, 2, 3):
        add(alone, item)
    alone.on_reports(1, 2 * batcher._NEAR)

    assert poll(alone) == 0.1
    add(alone, 4)
    assert sink.batches == [[1], [2], [3], [4]]


def test_a_silent_broker_is_not_polled_every_millisecond(alone):
    """After a short poll without reports the next one is long."""
    for item in (1, 2, 3):
        add(alone, item)
    alone.on_reports(1, 0.0)

    assert poll(alone) == batcher._MAX_PACE
    alone.flush()
    assert poll(alone) == 0.1


def test_failed_messages_say_nothing_about_the_distance(alone):
    """A latency below 0 means unknown."""
    for item in (1, 2, 3):
        add(alone, item)
    alone.on_reports(1, -1.0)

    assert poll(alone) == 0.1


def test_a_batcher_of_threads_is_for_threads_without_a_hub(alone, hub):
    """A thread with a hub gets another poller instead."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(alone.in_own_hub()))
    thread.start()
    thread.join()

    assert answers == [True]
    assert not alone.in_own_hub()


def test_a_batcher_whose_poller_ended_is_for_no_thread(alone):
    """Later sends look for the next poller, or get the error of a closed client."""
    alone.end()

    assert not alone.in_own_hub()


def test_items_without_space_wait_for_the_next_poll(alone, sink):
    """They keep their places, and are tried again when a poll returns."""
    sink.is_full = True
    add(alone, 1)
    add(alone, 2)
    sink.is_full = False
    alone.flush()

    assert sink.batches == [[1, 2]]


def test_items_without_space_are_sent_when_no_poll_follows(alone, sink):
    """When the poller has ended, another task waits for space."""
    add(alone, 1)
    alone.end()
    sink.is_full = True
    add(alone, 2)

    await_true(lambda: sink.batches == [[1], [2]], LONG)


# --- in a producer --------------------------------------------------------------------


def collect_always(monkeypatch, seconds):
    """Collect in each poll while several messages are in flight, and for so long."""
    always = property(lambda _: True, lambda _, __: None)
    monkeypatch.setattr(ThreadBatcher, "collects_in_polls", always, raising=False)
    monkeypatch.setattr(batcher, "_MAX_PACE", seconds)


@pytest.fixture
def collecting(monkeypatch):
    """Collect in each poll, which takes a tenth of a second."""
    collect_always(monkeypatch, 1.0)


class Leading:
    """A thread that polls and collects, until its message is reported.

    A context manager; the thread has ended when it is left.

    Args:
        producer: Used before.
        mock_cluster: Slow while the thread polls.
    """

    def __init__(self, producer, mock_cluster, round_trip=2.0):
        self.batcher = producer._slot.client.poll_loop.batcher
        assert isinstance(self.batcher, ThreadBatcher)
        self._producer = producer
        self._mock_cluster = mock_cluster
        self._round_trip = round_trip
        self._thread = threading.Thread(target=self._lead)
        self.reports = []

    def _lead(self):
        handles = [
            self._producer.produce_async(topic="t", payload=b"leader", partition=0)
            for _ in range(20)
        ]
        self.reports += [each.wait(LONG) for each in handles]

    def await_poll(self):
        """Wait until the thread collects, now or again."""
        deadline = time.monotonic() + LONG
        while self.batcher.flush_at == 1:
            assert time.monotonic() < deadline, "no thread collects"
            time.sleep(0.001)

    def __enter__(self):
        self._mock_cluster.round_trip(self._round_trip)
        self._thread.start()
        self.await_poll()
        return self

    def __exit__(self, *_):
        self._thread.join()
        self._mock_cluster.round_trip(0)


@pytest.fixture
def used(make_producer):
    """Make producers that have sent in this thread, which has no hub."""

    def make(*arguments, **settings):
        producer = make_producer(*arguments, **settings)
        producer.produce_sync(topic="t", payload=b"first")
        return producer

    return make


def send_in_threads(producer, threads, count, payload=b"x", **fields):
    """Send messages in several threads, each waiting for its report."""
    outcomes = []

    def send():
        for _ in range(count):
            try:
                outcomes.append(
                    producer.produce_sync(topic="t", payload=payload, **fields)
                )
            except ProduceError as error:
                outcomes.append(error)

    workers = [threading.Thread(target=send) for _ in range(threads)]
    for worker in workers:
        worker.start()
    return workers, outcomes


def test_threads_that_send_at_once_are_batched(collecting, used, stored):
    """Of eight busy threads some messages leave together, and all are stored once."""
    producer = used()
    thread_batcher = producer._slot.client.poll_loop.batcher
    longest = 0
    workers, reports = send_in_threads(producer, 8, 200)
    while any(each.is_alive() for each in workers):
        longest = max(longest, len(thread_batcher.items))
        time.sleep(0)
    for worker in workers:
        worker.join()

    assert longest > 1
    places = {(each.partition, each.offset) for each in reports}
    assert len(places) == 1_600
    assert stored("t") == 1_601


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(
            lambda producer: producer.produce_async(topic="t", payload=b"x"),
            id="plain",
        ),
        pytest.param(
            lambda producer: producer.produce_async(topic="t", payload=b"x", key="k"),
            id="checked",
        ),
        pytest.param(
            lambda producer: producer.produce_many_async(
                [{"topic": "t", "payload": b"x"}] * 3
            ),
            id="many",
        ),
    ],
)
def test_a_message_that_is_reported_before_it_is_counted_is_not_counted(used, send):
    """The polling thread may send it, and get its report, before its sender goes on."""
    producer = used()
    in_flight = producer._slot.client.in_flight

    def report():
        reported = in_flight.reported
        producer._slot.client.flush_batcher()  # as the polling thread does
        await_true(lambda: in_flight.reported > reported)
        await_true(lambda: not len(producer._slot.client.kafka_handle.producer))
        await_true(lambda: not producer._slot.client.poll_loop.reports)

    def counts(function):
        return getattr(function, "__self__", None) is in_flight.pending

    with at_call(counts, report) as calls:
        send(producer)

    assert calls
    await_true(lambda: producer.in_flight == 0)
    producer.flush_sync()
    producer.flush(LONG)


def test_a_slow_broker_holds_a_batch_for_a_poll_only(used, mock_cluster, monkeypatch):
    """The batch is handed over although no report comes for two seconds."""
    collect_always(monkeypatch, 0.05)
    producer = used()
    with Leading(producer, mock_cluster) as leading:
        handle = producer.produce_async(topic="t", payload=b"x")
        started = time.monotonic()
        while leading.batcher.items:
            assert time.monotonic() - started < 1.0
            time.sleep(0.001)
        assert not leading.reports
    assert handle.wait(LONG)


def test_a_refused_message_of_a_batch_fails_for_its_own_caller(
    collecting, used, mock_cluster
):
    """The other messages of the batch, and the polling thread, get their reports."""
    producer = used()
    with Leading(producer, mock_cluster) as leading:
        good = [producer.produce_async(topic="t", payload=b"x")]
        bad = producer.produce_async(topic="t", payload=b"x", partition=99)
        good.append(producer.produce_async(topic="t", payload=b"x"))
        assert len(leading.batcher.items) == 3

        with pytest.raises(DeliveryError) as raised:
            bad.wait(LONG)

    assert raised.value.name == "_UNKNOWN_PARTITION"
    assert all(each.wait(LONG) for each in good)
    assert len(leading.reports) == 20


@pytest.mark.parametrize(
    ("limit", "payload"),
    [({"queue.buffering.max.messages": 5}, b"x"), ({}, bytes(300_000))],
)
def test_a_full_queue_delays_threads_and_loses_nothing(
    collecting, used, stored, limit, payload
):
    """The queue is full of messages, or of bytes, while threads leave batches."""
    producer = used(kafka={"queue.buffering.max.kbytes": 1_024, **limit})
    workers, reports = send_in_threads(producer, 8, 20, payload)
    for worker in workers:
        worker.join()

    assert len({(each.partition, each.offset) for each in reports}) == 160
    assert stored("t") == 161


def test_a_batched_message_times_out_like_any_other(collecting, used, mock_cluster):
    """Its caller gets the error in time, and the message is delivered later."""
    producer = used()
    with Leading(producer, mock_cluster) as leading:
        handle = producer.produce_async(topic="t", payload=b"x")
        assert leading.batcher.items
        with pytest.raises(DeliveryTimeoutError):
            handle.wait(0.01)

    assert handle.wait(LONG)


def test_a_flush_hands_the_batch_over_at_once(collecting, used, mock_cluster):
    """A thread that flushes does not wait for the polling thread to hand over."""
    producer = used()
    with Leading(producer, mock_cluster) as leading:
        handle = producer.produce_async(topic="t", payload=b"x")
        assert leading.batcher.items
        producer._slot.client.flush_batcher()
        assert not leading.batcher.items

    assert handle.wait(LONG)


def test_purge_drops_batched_messages(collecting, used, mock_cluster):
    """A message that waits for its batch is dropped like one in librdkafka's queue."""
    producer = used()
    leading = Leading(producer, mock_cluster)
    with contextlib.suppress(ProduceError), leading:
        handle = producer.produce_async(topic="t", payload=b"x")
        assert leading.batcher.items
        producer._slot.client.drop_batched()
        with pytest.raises(ProduceError) as raised:
            handle.wait(LONG)

    assert raised.value.message_state == "not_delivered"


def test_linger_of_the_user_batches_nothing(make_producer):
    """A user who sets `linger.ms` gets exactly that."""
    producer = make_producer(kafka={"linger.ms": 1})
    producer.produce_sync(topic="t", payload=b"x")

    assert producer._slot.client.poll_loop.batcher is None


# --- the end of a client --------------------------------------------------------------


def test_close_delivers_what_waits_for_a_batch(collecting, used, mock_cluster, stored):
    """A message that was accepted before `close` is delivered by it."""
    producer = used()
    with Leading(producer, mock_cluster) as leading:
        handle = producer.produce_async(topic="t", payload=b"x")
        assert leading.batcher.items
        producer.close(LONG)

    assert handle.report is not None
    assert stored("t") == 22


def test_threads_that_send_during_a_close_lose_nothing_silently(
    collecting, used, stored
):
    """Each message is stored, or its caller gets an error."""
    producer = used()
    outcomes = []

    def send():
        with contextlib.suppress(ProducerClosedError):
            while True:
                try:
                    outcomes.append(producer.produce_sync(topic="t", payload=b"x"))
                except ProducerClosedError:
                    raise
                except ProduceError as error:
                    outcomes.append(error)

    workers = [threading.Thread(target=send) for _ in range(8)]
    for worker in workers:
        worker.start()
    while len(outcomes) < 200:
        time.sleep(0.001)
    producer.close(LONG)
    for worker in workers:
        worker.join(LONG)
        assert not worker.is_alive()

    delivered = [each for each in outcomes if not isinstance(each, ProduceError)]
    unknown = [
        each
        for each in outcomes
        if isinstance(each, ProduceError) and each.message_state == "unknown"
    ]
    assert not unknown
    assert stored("t") == 1 + len(delivered)


def test_threads_send_on_while_others_disconnect(collecting, used, stored):
    """Each message is delivered once, by this connection or by the next one."""
    producer = used()
    workers, outcomes = send_in_threads(producer, 8, 100)
    disconnected = 0
    while any(each.is_alive() for each in workers):
        disconnected += producer.disconnect()
        time.sleep(0.001)
    for worker in workers:
        worker.join()

    assert [each for each in outcomes if isinstance(each, ProduceError)] == []
    assert stored("t") == 801


def test_a_hub_that_takes_over_sends_what_waits_for_a_batch(
    collecting, used, mock_cluster, stored
):
    """The polling thread gives its batch away before it stops."""
    producer = used()
    with Leading(producer, mock_cluster) as leading:
        handles = [producer.produce_async(topic="t", payload=b"x")]
        assert leading.batcher.items
        gevent.get_hub()
        handles.append(producer.produce_async(topic="t", payload=b"x"))
        assert all(each.wait(LONG) for each in handles)
        assert producer.polling == "fd"

    assert stored("t") == 23


FORKING = """
import threading, time
from greendrop import Producer
from greendrop._client import batcher
from greendrop.errors import ProducerUsedInParentProcessError
from greendrop.testing import MockCluster
from tests.forking import Fork

always = property(lambda _: True, lambda _, __: None)
batcher.ThreadBatcher.collects_in_polls = always
batcher._MAX_PACE = 1.0
with MockCluster.spawn() as cluster:
    producer = Producer(kafka={"bootstrap.servers": cluster.bootstrap_servers})
    producer.produce_sync(topic="t", payload=b"first")
    waiting = producer._slot.client.poll_loop.batcher
    cluster.round_trip(3.0)
    handles = [producer.produce_async(topic="t", payload=b"x") for _ in range(20)]
    def lead():
        handles[-1].wait(20)
    leader = threading.Thread(target=lead)
    leader.start()
    while waiting.flush_at == 1:
        time.sleep(0.001)
    handles.append(producer.produce_async(topic="t", payload=b"x"))
    assert waiting.items

    def child():
        try:
            producer.produce_async(topic="t", payload=b"x")
        except ProducerUsedInParentProcessError:
            left = len(waiting.items)
            producer.reset()
            cluster_reports = producer.produce_sync(topic="t", payload=b"child")
            producer.close()
            return [left, cluster_reports.topic]

    cluster.round_trip(0)
    assert Fork(child).result() == [0, "t"]
    offsets = {(each.wait(20).partition, each.wait(20).offset) for each in handles}
    assert len(offsets) == 21
    leader.join()
    producer.close()
print("done")
"""


def test_a_fork_leaves_the_batch_to_the_parent(run_script):
    """The child sends nothing of it, and works after `reset()`."""
    ended = run_script(FORKING, "none")

    assert ended.stdout.split() == ["done"]


# --- signals --------------------------------------------------------------------------


def interrupt():
    """Raise KeyboardInterrupt like Python's own handler of Ctrl-C."""
    raise KeyboardInterrupt


PLACES = [
    ThreadBatcher.collect,
    ThreadBatcher.flush,
    ThreadBatcher.on_reports,
    PollLoop._collect_and_poll,
    KafkaHandle.poll,
    KafkaHandle.enqueue_all,
    Client.send_batch,
]


@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_in_the_polling_thread_loses_no_message_of_others(
    collecting, used, stored, place
):
    """Other threads' messages are delivered, whoever hands them over."""
    producer = used()
    workers, reports = send_in_threads(producer, 4, 50)
    interrupted = 0
    own = []
    with handling(signal.SIGINT, interrupt) as raise_signal:
        while any(each.is_alive() for each in workers):
            with at_entry(place, raise_signal):
                try:
                    own.append(producer.produce_async(topic="t", payload=b"main"))
                    own[-1].wait(LONG)
                except KeyboardInterrupt:
                    interrupted += 1
    for worker in workers:
        worker.join()

    assert [each for each in reports if isinstance(each, ProduceError)] == []
    assert len({(each.partition, each.offset) for each in reports}) == 200
    assert producer.produce_sync(topic="t", payload=b"last")
    assert all(each.wait(LONG) for each in own)


def test_a_handler_may_send_while_its_thread_polls(collecting, used, mock_cluster):
    """The message of the signal handler leaves when the poll returns."""
    producer = used()
    mock_cluster.round_trip(0.3)
    sent = []
    handles = [producer.produce_async(topic="t", payload=b"x") for _ in range(5)]

    def send():
        sent.append(producer.produce_async(topic="t", payload=b"handler"))

    with handling(signal.SIGUSR1, send), signal_after(0.05, signal.SIGUSR1):
        reports = [each.wait(LONG) for each in handles]

    assert len(reports) == 5
    assert sent[0].wait(LONG)
