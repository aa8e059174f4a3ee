import signal
import threading
import time

import gevent
import gevent.pool
import pytest

from greendrop import (
    ProducerClosedError,
    ProducerTransactionalCloseAttemptError,
    TransactionAbortedError,
)
from tests.transacting import (
    LONG,
    outcomes,
    send,
    transaction_events,
)

#: Kafka's number of an error that means "fenced".
INVALID_PRODUCER_EPOCH = 47


# -- interrupted --------------------------------------------------------------------


def test_timeout_while_the_commit_waits_for_reports(hub, connected, mock_cluster):
    """It is rolled back then, and the timeout goes on."""
    producer = connected()
    mock_cluster.delay_requests("Produce", 1.0)

    with (
        pytest.raises(gevent.Timeout),
        gevent.Timeout(0.2),
        producer.transaction() as tx,
    ):
        (handle,) = send(producer)

    assert (tx.outcome, handle.done) == ("aborted", True)
    assert send(producer)[0].report


def test_timeout_within_the_commit(hub, connected, mock_cluster):
    """It may happen all the same, so nobody knows; the next one works."""
    producer = connected()
    heard = transaction_events(producer)
    mock_cluster.delay_requests("EndTxn", 1.0)
    began = time.monotonic()

    with (
        pytest.raises(gevent.Timeout),
        gevent.Timeout(0.2),
        producer.transaction() as tx,
    ):
        producer.produce_sync(topic="t", payload=b"x")

    assert time.monotonic() - began < 0.5
    assert tx.outcome == "unknown"
    assert outcomes(heard) == ["unknown"]
    assert send(producer)[0].report


def test_killed_greenlet_rolls_back(hub, connected):
    """Whoever ends it waits for that, and the next one has its turn."""
    producer = connected()
    heard = transaction_events(producer)

    def run():
        with producer.transaction():
            send(producer)
            gevent.sleep(60)

    task = gevent.spawn(run)
    gevent.sleep(0.05)
    task.kill()

    assert outcomes(heard) == ["aborted"]
    assert send(producer)[0].report


def test_interrupt_is_not_held_up_for_long(hub, connected, mock_cluster):
    """Rolling back that takes long is left to the brokers."""
    producer = connected()
    producer.produce_sync(topic="t", payload=b"x", partition=0)
    mock_cluster.delay_requests("EndTxn", 5.0)
    began = time.monotonic()

    with pytest.raises(gevent.Timeout), producer.transaction() as tx:
        producer.produce_sync(topic="t", payload=b"x", partition=0)
        began = time.monotonic()
        raise gevent.Timeout

    assert time.monotonic() - began < 3.0
    assert tx.outcome == "aborted"


@pytest.mark.parametrize("where", ["body", "commit"])
def test_ctrl_c(make_producer, connected, mock_cluster, where):
    """It ends a block of the main thread at once, and leaves a producer that works."""
    producer = connected()
    if where == "commit":
        mock_cluster.delay_requests("EndTxn", 1.5)
    main = threading.main_thread().ident
    alarm = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
    began = time.monotonic()
    alarm.start()

    with pytest.raises(KeyboardInterrupt), producer.transaction() as tx:
        producer.produce_sync(topic="t", payload=b"x")
        if where == "body":
            time.sleep(5)

    alarm.join()
    assert time.monotonic() - began < 1.2
    assert tx.outcome == ("aborted" if where == "body" else "unknown")
    assert send(producer)[0].report


# -- with the rest of a producer's life ---------------------------------------------


def test_closing_inside_is_refused(world, transactional):
    """Own transactions end first. Acceptance check 63."""
    producer = transactional(id="open")

    with producer.transaction() as tx:
        send(producer)
        with pytest.raises(ProducerTransactionalCloseAttemptError, match="open"):
            producer.close()
        assert producer.status == "connected"

    assert tx.outcome == "committed"
    producer.close()
    assert producer.status == "closed"


def test_closing_waits_for_the_transaction_of_another(
    world, transactional, spawn, pause, until
):
    """That of another task ends as it would have. Acceptance check 63."""
    producer = transactional()
    ended = []

    def run():
        with producer.transaction() as tx:
            send(producer)
            pause(0.2)
        ended.append(tx.outcome)

    task = spawn(run)
    until(lambda: producer.status == "connected" and producer._core.transactions.busy)
    producer.close()
    task.join()

    assert ended == ["committed"]
    assert producer.status == "closed"


@pytest.mark.parametrize("force", [False, True])
def test_closing_does_not_wait_for_ever(transactional, spawn, until, force):
    """A transaction that goes on for too long ends with its producer."""
    producer = transactional()
    stop, caught = [], []

    def run():
        try:
            with producer.transaction() as tx:
                send(producer)[0].wait(LONG)
                caught.append(tx)
                until(lambda: stop)
        except TransactionAbortedError as error:
            caught.append(error)

    task = spawn(run)
    until(lambda: caught)
    began = time.monotonic()
    producer.close(timeout=0.2, force=force)

    assert time.monotonic() - began < 3.0
    assert producer.status == "closed"
    stop.append(1)
    task.join()
    assert caught[0].outcome == "aborted"
    assert "closed" in str(caught[1])


def test_closed_producer_begins_nothing(world, transactional):
    """It says so. Acceptance check 64."""
    producer = transactional()
    producer.produce_sync(topic="t", payload=b"x")
    producer.close()

    with pytest.raises(ProducerClosedError), producer.transaction():
        pass
    with pytest.raises(ProducerClosedError):
        send(producer)


@pytest.mark.parametrize("used", [False, True])
def test_sending_races_closing(transactional, spawn, pause, until, used):
    """One that is on its way when close begins: both end. Acceptance checks 41, 44."""
    producer = transactional()
    if used:
        producer.produce_sync(topic="t", payload=b"x")
    held, go, ended = [], [], []

    @producer.middleware.append
    def hold(message):
        held.append(message)
        until(lambda: go)
        return message

    def run():
        try:
            ended.append(producer.produce_async(topic="t", payload=b"x").report)
        except ProducerClosedError as error:
            ended.append(error)

    sender = spawn(run)
    until(lambda: held)
    closer = spawn(producer.close)
    pause(0.02)
    go.append(1)
    sender.join(15)
    closer.join(15)

    assert producer.status == "closed"
    assert len(ended) == 1


def test_disconnect_is_refused_during_a_transaction(world, transactional, spawn):
    """Also in another task; afterwards it is allowed. Acceptance check 97."""
    producer = transactional()
    told = []

    with producer.transaction():
        send(producer)
        assert producer.disconnect() is False
        spawn(lambda: told.append(producer.disconnect())).join()
        send(producer)
    assert told == [False]
    assert producer.disconnect() is True
    assert send(producer)[0].report


def test_scopes_collect_in_transactions(world, transactional):
    """What is sent in both is both's."""
    producer = transactional()

    with producer.transaction(), producer.scope() as scope:
        send(producer, 3)
        assert "3 messages" in repr(scope)


def test_repr_tells_of_a_transaction(transactional):
    """Whoever has it."""
    producer = transactional()

    with producer.transaction():
        assert "in_transaction" in repr(producer)
    assert "in_transaction" not in repr(producer)
