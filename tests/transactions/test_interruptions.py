"""Signal handlers that send, or raise, while a transaction begins or ends."""

import contextlib
import gc
import signal
import time

import pytest

from greendrop import GreendropError
from greendrop._concurrency.fair_lock import FairPool
from greendrop._librdkafka.handle import KafkaHandle
from greendrop._transactions.clients import TransactionalClients
from greendrop._transactions.coordinator import OpenTransaction, Transactions
from greendrop.transaction import Transaction
from tests.interrupting import at_entry, at_return, handling, is_hand_over


def interrupt():
    """Do what Python's own handler of Ctrl-C does."""
    raise KeyboardInterrupt


def run(producer, *, abort):
    """Run a transaction of one message."""
    with producer.transaction() as transaction:
        producer.produce_async(topic="t", payload=b"x")
        if abort:
            transaction.abort()


@pytest.mark.parametrize("abort", [False, True])
@pytest.mark.parametrize(
    "place",
    [
        FairPool.acquire,
        FairPool._hand_over,
        FairPool.release,
        OpenTransaction.__init__,
        Transaction.__exit__,
        Transactions.begin,
        Transactions._begin,
        Transactions.end,
        Transactions._finish,
        KafkaHandle._begin,
        TransactionalClients.acquire,
    ],
)
def test_an_interrupted_transaction_lets_the_next_one_begin(
    world, connected, place, abort
):
    """The interrupt reaches the program, and the producer is as good as before."""
    producer = connected()

    with (
        handling(signal.SIGINT, interrupt) as raise_signal,
        at_entry(place, raise_signal) as calls,
        pytest.raises(KeyboardInterrupt),
    ):
        run(producer, abort=abort)

    gc.collect()  # of what the block was left with, pytest has kept the traceback
    assert calls
    assert not producer.in_transaction
    run(producer, abort=False)
    producer.produce_sync(topic="t", payload=b"x")


def test_an_interrupted_hand_over_does_not_fail_the_next_transaction(connected):
    """Its message belongs to the transaction that is rolled back, not to the next."""
    producer = connected()

    with handling(signal.SIGINT, interrupt) as raise_signal:
        for _ in range(20):
            with (
                at_return(is_hand_over, raise_signal),
                pytest.raises(KeyboardInterrupt),
            ):
                producer.produce_sync(topic="t", payload=b"interrupted")

            producer.produce_sync(topic="t", payload=b"x")


@pytest.mark.parametrize(
    "place",
    [FairPool._hand_over, FairPool.acquire, FairPool.release, Transactions.end],
)
def test_a_handler_that_sends_gets_an_answer_at_once(world, connected, place):
    """The handler can't wait for the transaction that it interrupts, and doesn't."""
    producer = connected()
    answers = []

    def send():
        started_at = time.monotonic()
        try:
            answers.append(producer.produce_sync(topic="t", payload=b"handler"))
        except GreendropError as error:
            answers.append(error)
        assert time.monotonic() - started_at < 10

    with (
        handling(signal.SIGUSR1, send) as raise_signal,
        at_entry(place, raise_signal),
    ):
        run(producer, abort=False)

    assert answers
    run(producer, abort=False)


def test_a_client_can_be_closed_after_an_interrupt_of_a_begin(world, connected):
    """A signal handler may raise just after the begin has released a lock.

    A call that stayed counted as running would keep librdkafka open for good. Threads
    and descriptors are counted after the test, as after each one.
    """
    producer = connected()
    block = contextlib.ExitStack()

    with (
        handling(signal.SIGINT, interrupt) as raise_signal,
        at_entry(
            KafkaHandle.begin_transaction,
            lambda: block.enter_context(
                at_return(lambda each: each.__name__ == "__exit__", raise_signal)
            ),
        ),
        block,
        pytest.raises(KeyboardInterrupt),
        producer.transaction(),
    ):
        pass
    producer.produce_sync(topic="t", payload=b"x")

    producer.close(force=True)
