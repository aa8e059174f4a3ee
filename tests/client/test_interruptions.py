"""Signal handlers that send, or raise, at critical moments."""

import contextlib
import gc
import signal
import time

import gevent
import pytest

from greendrop._client import client, pollers
from greendrop._client.batcher import HubBatcher
from greendrop._client.client import Client
from greendrop._client.poll_loop import PollLoop
from greendrop._client.reports import ReportDispatcher
from greendrop._concurrency import threads, waiters
from greendrop._connections.connections import Connections
from greendrop._librdkafka.handle import KafkaHandle
from greendrop._producer.disconnect import Disconnect
from greendrop.delivery import DeliveryHandle
from greendrop.errors import (
    IllegalWaitError,
    ProduceError,
    ProducerClosedError,
    ReportLostError,
)
from greendrop.message import Message
from tests.interrupting import (
    at_entry,
    at_return,
    handling,
    interrupt,
    is_hand_over,
    signal_after,
    signals_every,
)

#: Functions that a first message calls while its client is built.
CONNECTING = [Connections._find_or_build, Connections._build, threads.run_apart]


@pytest.fixture
def built():
    """Count the clients that exist and were not closed."""
    return lambda: sum(not each.kafka_handle.closed for each in client._clients)


@pytest.mark.parametrize("place", CONNECTING)
def test_a_handler_that_sends_during_the_first_connect_shares_the_client(
    world, make_producer, built, place
):
    """The producer builds one client, which delivers both messages."""
    producer = make_producer()
    before = built()
    sent = []

    def send():
        sent.append(producer.produce_async(topic="t", payload=b"handler"))
        sent[0].wait(10)

    with (
        handling(signal.SIGUSR1, send) as raise_signal,
        at_entry(place, raise_signal) as calls,
    ):
        producer.produce_sync(topic="t", payload=b"main")

    assert calls
    assert sent[0].report is not None
    assert built() == before + 1
    producer.close(10)
    assert built() == before


def test_a_handler_that_closes_during_the_first_connect_closes_for_good(
    make_producer, built
):
    """The interrupted call gets an error, and no client stays open."""
    producer = make_producer()
    before = built()

    with (
        handling(signal.SIGUSR1, lambda: producer.close(10)) as raise_signal,
        at_entry(threads.run_apart, raise_signal),
        pytest.raises(ProducerClosedError),
    ):
        producer.produce_sync(topic="t", payload=b"x")

    assert producer.status == "closed"
    assert built() == before


@pytest.mark.slow
def test_signals_during_first_connects_never_build_a_second_client(
    world, make_producer, built
):
    """Handlers that send every other millisecond share the main program's client."""
    for _ in range(20):
        producer = make_producer()
        before = built()
        handles = []

        def send(producer=producer, handles=handles):
            with contextlib.suppress(IllegalWaitError):
                handles.append(producer.produce_async(topic="t", payload=b"x"))

        with handling(signal.SIGUSR1, send), signals_every(0.002, signal.SIGUSR1):
            producer.produce_sync(topic="t", payload=b"x")
        assert built() == before + 1
        producer.close(10)
        assert all(handle.report is not None for handle in handles)
        assert built() == before


@pytest.mark.parametrize("place", CONNECTING)
def test_ctrl_c_at_the_first_message_raises_keyboard_interrupt_only(
    world, make_producer, built, place
):
    """An interrupt while the client is built leaves at most one, which is used next.

    Descriptors and threads are counted after the test, as after each one.
    """
    producer = make_producer()
    before = built()

    with (
        handling(signal.SIGINT, interrupt) as raise_signal,
        at_entry(place, raise_signal),
        pytest.raises(KeyboardInterrupt),
    ):
        producer.produce_async(topic="t", payload=b"x")
    producer.produce_sync(topic="t", payload=b"x")

    assert built() == before + 1


@pytest.mark.slow
def test_ctrl_c_while_the_client_is_built_does_not_stop_the_build(make_producer, built):
    """The client that was being built when the interrupt came is used next."""
    producer = make_producer()
    core = producer._core
    before = built()
    interrupted = 0
    for number in range(100):
        with handling(signal.SIGUSR1, interrupt):
            try:
                with signal_after(number * 0.00002, signal.SIGUSR1):
                    core._connections.connect(core.main)
            except KeyboardInterrupt:
                interrupted += 1
        producer.produce_sync(topic="t", payload=b"x")
        assert built() == before + 1
        assert producer.disconnect()

    assert interrupted == 100


#: Functions that batched messages pass before librdkafka gets them.
HANDING_OVER = [
    HubBatcher.maybe_flush,
    HubBatcher.flush,
    Client.send_batch,
    KafkaHandle.enqueue_all,
    pollers.GreenletPoller.start_safety_timer,
]


@pytest.mark.parametrize("place", HANDING_OVER)
def test_a_handler_that_interrupts_a_batch_gets_its_message_delivered(
    hub, make_producer, place
):
    """The message goes out with the batch, not behind the interrupted call."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"first")
    sent = []

    def send():
        sent.append(producer.produce_async(topic="t", payload=b"handler"))
        producer.produce_sync(topic="t", payload=b"handler")

    with (
        handling(signal.SIGUSR1, send) as raise_signal,
        at_entry(place, raise_signal) as calls,
    ):
        handles = [producer.produce_async(topic="t", payload=b"x") for _ in range(3)]
        if not calls:
            producer.flush_async()
        for handle in handles:
            handle.wait(10)

    assert calls
    assert sent[0].wait(10)


# Not the safety timer: messages in flight keep it running.
@pytest.mark.parametrize("place", [*HANDING_OVER[:-1], HubBatcher._schedule])
def test_an_interrupted_batch_loses_and_repeats_nothing(
    hub, make_producer, stored, place, hub_errors
):
    """Each message that the interrupted program has a handle of is delivered once."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"first")
    handles = []

    def send():
        handles.append(producer.produce_async(topic="t", payload=b"x"))

    with handling(signal.SIGINT, interrupt) as raise_signal:
        for _ in range(3):
            send()
        with (
            at_entry(place, raise_signal) as calls,
            contextlib.suppress(KeyboardInterrupt),
        ):
            gevent.joinall([gevent.spawn(send) for _ in range(20)], raise_error=True)
            gevent.wait(handles, 10)

    assert calls
    for _ in range(3):
        producer.produce_sync(topic="t", payload=b"after")
    for handle in handles:
        handle.wait(10)
    # An interrupted message may be stored as well: its caller can't know.
    assert 4 + len(handles) <= stored("t") <= 4 + 23
    hub_errors.clear()


@pytest.mark.parametrize(
    "place",
    [
        HubBatcher._end_of_tick,
        HubBatcher._flush_if_due,
        HubBatcher.on_reports,
        ReportDispatcher.dispatch,
        ReportDispatcher._dispatch_reports,
        DeliveryHandle._resolve,
        DeliveryHandle.__call__,
    ],
)
def test_greenlets_go_on_after_an_interrupt_at(hub, make_producer, place, hub_errors):
    """Ctrl-C reaches the main greenlet; the others get their reports, or an error."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"first")
    failed = []

    def send():
        for _ in range(5):
            try:
                producer.produce_sync(topic="t", payload=b"x")
            except ProduceError as error:
                failed.append(error)

    greenlets = [gevent.spawn(send) for _ in range(5)]
    with (
        handling(signal.SIGINT, interrupt) as raise_signal,
        at_entry(place, raise_signal) as calls,
        contextlib.suppress(KeyboardInterrupt),
    ):
        gevent.joinall(greenlets, 20)
    gevent.joinall(greenlets, 20)

    assert calls
    assert all(each.ready() for each in greenlets)
    started = time.monotonic()
    for _ in range(3):
        producer.produce_sync(topic="t", payload=b"x")
    assert time.monotonic() - started < 5
    assert all(isinstance(each, ReportLostError) for each in failed)
    hub_errors.clear()


@pytest.mark.parametrize(
    "place",
    [
        pollers.GreenletPoller._run,
        pollers.GreenletPoller._poll_until_stopped,
        pollers.GreenletPoller._poll_and_sleep,
        pollers.GreenletPoller._sleep,
    ],
)
def test_reports_arrive_after_an_interrupt_of_the_poller_at(
    hub, make_producer, place, hub_errors
):
    """A program that does nothing but wait gets its report all the same."""
    producer = make_producer()
    handles = []

    with (
        handling(signal.SIGINT, interrupt) as raise_signal,
        at_entry(place, raise_signal) as calls,
        contextlib.suppress(KeyboardInterrupt),
    ):
        handles.append(producer.produce_async(topic="t", payload=b"x"))
        gevent.sleep(0.2)

    assert calls
    deadline = time.monotonic() + 10
    while not handles[0].done and time.monotonic() < deadline:
        gevent.sleep(0.01)
    assert handles[0].report is not None
    hub_errors.clear()


def test_a_message_counts_after_an_interrupt_of_its_hand_over(
    make_producer, mock_cluster, stored
):
    """Closing the producer waits for it, because librdkafka may have the message."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"first")
    mock_cluster.delay_requests("Produce", 1)

    with (
        handling(signal.SIGINT, interrupt) as raise_signal,
        at_return(is_hand_over, raise_signal) as calls,
        pytest.raises(KeyboardInterrupt),
    ):
        producer.produce_async(topic="t", payload=b"x")

    assert calls
    assert producer.queue_size == 1
    producer.close(10)
    assert stored("t") == 2


class SoftTimeLimitError(Exception):
    """An ordinary exception that a handler raises, as Celery's soft time limit is."""


def test_an_exception_of_a_handler_is_not_taken_for_a_refusal(
    hub, make_producer, stored
):
    """It reaches the program; the messages that librdkafka has are delivered."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"first")

    def run_out():
        raise SoftTimeLimitError

    with (
        handling(signal.SIGUSR1, run_out) as raise_signal,
        at_return(is_hand_over, raise_signal) as calls,
        pytest.raises(SoftTimeLimitError),
    ):
        producer.produce_async(topic="t", payload=b"x")

    assert calls
    producer.close(10)
    assert stored("t") == 2


@pytest.mark.parametrize("place", [HubBatcher.__init__, Client.may_batch.fget])
def test_a_handler_that_waits_while_the_poller_starts_leaves_a_poller(
    hub, make_producer, place
):
    """A program that does nothing but wait gets its report all the same."""
    producer = make_producer()
    other = make_producer()
    handles = []

    def send():
        other.produce_sync(topic="t", payload=b"handler")

    with (
        handling(signal.SIGUSR1, send) as raise_signal,
        at_entry(place, raise_signal) as calls,
    ):
        handles.append(producer.produce_async(topic="t", payload=b"x"))

    assert calls
    deadline = time.monotonic() + 10
    while not handles[0].done and time.monotonic() < deadline:
        gevent.sleep(0.01)
    assert handles[0].report is not None


def pollers_alive():
    """Count the pollers that poll some client."""
    kinds = (pollers.GreenletPoller, pollers.ThreadPoller)
    return sum(each.alive for each in gc.get_objects() if type(each) in kinds)


@pytest.mark.parametrize(
    "place",
    [
        PollLoop.ensure_poller,
        PollLoop._start_greenlet_poller,
        pollers.GreenletPoller.__init__,
        waiters.SharedTimer.__init__,
        HubBatcher.__init__,
    ],
)
@pytest.mark.parametrize("raises", [False, True])
def test_an_interrupted_start_leaves_one_poller(
    hub, make_producer, until, place, raises
):
    """A handler that sends starts a poller itself, which polls from then on.

    The poller that the handler has kept from being published ends by itself.
    """
    producer = make_producer()
    before = pollers_alive()
    handler = interrupt if raises else producer.produce_async
    arguments = {} if raises else {"topic": "t", "payload": b"handler"}

    with (
        handling(signal.SIGUSR1, lambda: handler(**arguments)) as raise_signal,
        at_entry(place, raise_signal) as calls,
        contextlib.suppress(KeyboardInterrupt),
    ):
        producer.produce_sync(topic="t", payload=b"x")
    producer.produce_sync(topic="t", payload=b"x")

    assert calls
    until(lambda: pollers_alive() == before + 1)


CLOSING = [Connections.close_clients, Client.close, PollLoop.stop]


@pytest.mark.parametrize("place", CLOSING)
def test_an_interrupted_disconnect_still_closes_the_client(
    world, make_producer, built, until, place
):
    """The client is closed in the background, at the latest by the next message."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    before = built()

    with (
        handling(signal.SIGINT, interrupt) as raise_signal,
        at_entry(place, raise_signal),
        pytest.raises(KeyboardInterrupt),
    ):
        producer.disconnect()
    producer.produce_sync(topic="t", payload=b"x")

    until(lambda: built() == before)


@pytest.mark.parametrize("place", [Connections.close_clients, Connections.closing])
def test_a_client_is_closed_after_its_background_task_was_interrupted(
    hub, make_producer, built, hub_errors, place
):
    """The next message starts another task for a client that the first one left open.

    The first task begins after a disconnect that was interrupted itself.
    """
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    before = built()

    with handling(signal.SIGINT, interrupt) as raise_signal:
        with at_entry(Client.close, raise_signal), pytest.raises(KeyboardInterrupt):
            producer.disconnect()
        with at_entry(place, raise_signal), pytest.raises(KeyboardInterrupt):
            gevent.sleep(1)
    hub_errors.clear()
    producer.produce_sync(topic="t", payload=b"x")

    with gevent.Timeout(10):
        while built() > before:
            gevent.sleep(0.002)


@pytest.mark.parametrize("place", [Connections.closing, *CLOSING[1:]])
def test_an_interrupted_close_still_closes_the_client(
    world, make_producer, built, place
):
    """Nothing of the client is left when the interrupt reaches the program."""
    producer = make_producer()
    before = built()
    producer.produce_sync(topic="t", payload=b"x")

    with (
        handling(signal.SIGINT, interrupt) as raise_signal,
        at_entry(place, raise_signal),
        pytest.raises(KeyboardInterrupt),
    ):
        producer.close(10)

    assert producer.status == "closed"
    assert built() == before


@pytest.mark.parametrize(
    "place",
    [Disconnect._detach, Connections.detach_all, Client.stop_sending, Client.close],
)
def test_a_handler_can_send_while_the_producer_disconnects(world, make_producer, place):
    """The handler's message is delivered, and so are those sent afterwards."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    sent = []

    def send():
        sent.append(producer.produce_async(topic="t", payload=b"handler"))

    with (
        handling(signal.SIGUSR1, send) as raise_signal,
        at_entry(place, raise_signal) as calls,
    ):
        producer.disconnect()

    assert calls
    assert sent[0].wait(10)
    producer.produce_sync(topic="t", payload=b"after")
    assert producer.status == "connected"


@pytest.mark.parametrize("place", [Connections._hand_on, Client.resend])
def test_a_late_message_is_sent_although_its_task_was_interrupted(
    hub, make_producer, hub_errors, place
):
    """A sender may have read the client just before a disconnect detaches it.

    A task hands the message on to the next client. A signal handler may raise before
    that task has done anything.
    """
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    connections = producer._core._connections
    with connections.state.lock:
        (client,) = connections.detach_all()
    sent = []

    with (
        handling(signal.SIGINT, interrupt) as raise_signal,
        at_entry(place, raise_signal) as calls,
        contextlib.suppress(KeyboardInterrupt),
    ):
        sent.append(client.send(Message("t", b"late")))
        gevent.sleep(1)
    hub_errors.clear()

    assert calls
    assert sent[0].wait(10)
    connections.close_clients([client])
