"""Signal handlers that send, or raise, at the worst moments."""

import contextlib
import signal

import pytest

from greendrop import _concurrency
from greendrop._client import client
from greendrop._connections.connections import Connections
from greendrop.errors import IllegalWaitError, ProducerClosedError
from tests.interrupting import at_entry, handling, signal_after, signals_every


def interrupt():
    """Do what Python's own handler of Ctrl-C does."""
    raise KeyboardInterrupt


#: What a first message passes while its client is built.
CONNECTING = [Connections._connected, Connections._build, _concurrency.run_apart]


@pytest.fixture
def built():
    """Count the clients that exist and were not closed."""
    return lambda: sum(not client.kafka_handle.closed for client in client._clients)


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
        at_entry(_concurrency.run_apart, raise_signal),
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
def test_ctrl_c_while_the_client_is_built_does_not_stop_that(make_producer, built):
    """The client that was being built when the interrupt came is the one used next."""
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
