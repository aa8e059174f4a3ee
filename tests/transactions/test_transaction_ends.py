"""How transactions end: interruptions, closing, disconnecting, scopes."""

import signal
import threading
import time

import gevent
import gevent.pool
import pytest

from greendrop import (
    MessagesAbandonedError,
    ProduceManyError,
    ProducerClosedError,
    ProducerTransactionalCloseAttemptError,
    TransactionAbortedError,
    TransactionRequiredError,
)
from tests.transactions.transacting import (
    LONG,
    outcomes,
    send,
    transaction_events,
)

# -- interruptions ------------------------------------------------------------------


def test_timeout_while_the_commit_waits_for_reports_rolls_back(
    hub, connected, mock_cluster
):
    """The transaction is rolled back, and the timeout propagates."""
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


def test_timeout_within_the_commit_leaves_an_unknown_outcome(
    hub, connected, mock_cluster
):
    """The commit may still happen, so the outcome is unknown; the next one works."""
    producer = connected()
    events = transaction_events(producer)
    mock_cluster.delay_requests("EndTxn", 1.0)
    started_at = time.monotonic()

    with (
        pytest.raises(gevent.Timeout),
        gevent.Timeout(0.2),
        producer.transaction() as tx,
    ):
        producer.produce_sync(topic="t", payload=b"x")

    assert time.monotonic() - started_at < 0.5
    assert tx.outcome == "unknown"
    assert outcomes(events) == ["unknown"]
    assert send(producer)[0].report


def test_flush_that_may_be_committed_is_not_put_back(hub, connected, mock_cluster):
    """Messages of an unknown commit stay out of the buffer.

    A second flush could repeat them.
    """
    producer = connected()
    events = transaction_events(producer)
    mock_cluster.delay_requests("EndTxn", 1.0)
    producer.buffer(topic="t", payload=b"x")

    with pytest.raises(gevent.Timeout), gevent.Timeout(0.2):
        producer.flush_sync()

    assert outcomes(events) == ["unknown"]
    assert producer.buffered == ()


def test_failed_flush_is_put_back_when_its_block_is_rolled_back(world, transactional):
    """Queued messages return to the buffer in order, ahead of those not yet queued."""
    tight = {"queue.buffering.max.messages": 3, "linger.ms": 5_000}
    producer = transactional(tight, wait_on_queue_full=False)
    producer.buffer_many({"topic": "t", "payload": str(each)} for each in range(5))

    with pytest.raises(ProduceManyError), producer.transaction() as tx:
        producer.flush_sync()

    assert tx.outcome == "aborted"
    assert [each.payload for each in producer.buffered] == list("01234")


def test_killed_greenlet_rolls_back(hub, connected):
    """`kill` returns when the transaction of the killed greenlet is rolled back."""
    producer = connected()
    events = transaction_events(producer)

    def run():
        with producer.transaction():
            send(producer)
            gevent.sleep(60)

    task = gevent.spawn(run)
    gevent.sleep(0.05)
    task.kill()

    assert outcomes(events) == ["aborted"]
    assert send(producer)[0].report


def test_interrupt_is_not_held_up_for_long(hub, connected, mock_cluster):
    """An interrupted block leaves a slow rollback to the brokers."""
    producer = connected()
    producer.produce_sync(topic="t", payload=b"x", partition=0)
    mock_cluster.delay_requests("EndTxn", 5.0)
    started_at = time.monotonic()

    with pytest.raises(gevent.Timeout), producer.transaction() as tx:
        producer.produce_sync(topic="t", payload=b"x", partition=0)
        started_at = time.monotonic()
        raise gevent.Timeout

    assert time.monotonic() - started_at < 3.0
    assert tx.outcome == "aborted"


@pytest.mark.parametrize("where", ["body", "commit"])
def test_ctrl_c_ends_a_block_at_once(make_producer, connected, mock_cluster, where):
    """Ctrl-C ends a block of the main thread at once, and the producer still works."""
    producer = connected()
    if where == "commit":
        mock_cluster.delay_requests("EndTxn", 1.5)
    main = threading.main_thread().ident
    alarm = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
    started_at = time.monotonic()
    alarm.start()

    with pytest.raises(KeyboardInterrupt), producer.transaction() as tx:
        producer.produce_sync(topic="t", payload=b"x")
        if where == "body":
            time.sleep(5)

    alarm.join()
    assert time.monotonic() - started_at < 1.2
    assert tx.outcome == ("aborted" if where == "body" else "unknown")
    assert send(producer)[0].report


# -- closing, disconnecting and scopes ----------------------------------------------


def test_closing_inside_is_refused(world, transactional):
    """A block can't close its own producer: the transaction has to end first."""
    producer = transactional(id="open")

    with producer.transaction() as tx:
        send(producer)
        with pytest.raises(ProducerTransactionalCloseAttemptError, match="open"):
            producer.close()
        assert producer.status == "connected"

    assert tx.outcome == "committed"
    producer.close()
    assert producer.status == "closed"


def test_closing_waits_for_the_transaction_of_another_task(
    world, transactional, spawn, pause, until
):
    """The transaction of another task ends as it would have without `close`."""
    producer = transactional()
    ended = []

    def run():
        with producer.transaction() as tx:
            send(producer)
            pause(0.2)
        ended.append(tx.outcome)

    task = spawn(run)
    until(lambda: producer.status == "connected" and producer._core.transactions.in_use)
    producer.close()
    task.join()

    assert ended == ["committed"]
    assert producer.status == "closed"


@pytest.mark.parametrize("force", [False, True])
def test_closing_does_not_wait_for_ever(transactional, spawn, until, force):
    """A transaction that exceeds the time of `close` ends with its producer."""
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
    started_at = time.monotonic()
    producer.close(timeout=0.2, force=force)

    assert time.monotonic() - started_at < 3.0
    assert producer.status == "closed"
    stop.append(1)
    task.join()
    assert caught[0].outcome == "aborted"
    assert "closed" in str(caught[1])


@pytest.mark.slow
def test_closing_has_one_timeout_for_all_of_its_waits(
    mock_cluster, transactional, spawn, until
):
    """The wait for a transaction leaves that much less for the deliveries."""
    producer = transactional()
    with producer.transaction():
        send(producer)
    stop, caught = [], []

    def run():
        try:
            with producer.transaction() as tx:
                mock_cluster.round_trip(30.0)
                send(producer)
                caught.append(tx)
                until(lambda: stop)
        except TransactionAbortedError as error:
            caught.append(error)

    task = spawn(run)
    until(lambda: caught)
    started_at = time.monotonic()
    producer.close(timeout=2.0, force=True)

    assert 1.9 < time.monotonic() - started_at < 3.7
    stop.append(1)
    task.join()


def test_closed_producer_refuses_transactions(world, transactional):
    """Beginning a transaction after `close` raises the error for closed producers."""
    producer = transactional()
    producer.produce_sync(topic="t", payload=b"x")
    producer.close()

    with pytest.raises(ProducerClosedError), producer.transaction():
        pass
    with pytest.raises(ProducerClosedError):
        send(producer)


@pytest.mark.parametrize("used", [False, True])
def test_sending_races_closing(transactional, spawn, pause, until, used):
    """A send that is under way when `close` begins ends, and so does `close`."""
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
    """No task can disconnect while a transaction is open."""
    producer = transactional()
    answers = []

    with producer.transaction():
        send(producer)
        assert producer.disconnect() is False
        spawn(lambda: answers.append(producer.disconnect())).join()
        send(producer)
    assert answers == [False]
    assert producer.disconnect() is True
    assert send(producer)[0].report


def test_scopes_record_handles_inside_transactions(world, transactional):
    """A message sent in a scope and a transaction belongs to both."""
    producer = transactional()

    with producer.transaction(), producer.scope() as scope:
        send(producer, 3)
        assert "3 messages" in repr(scope)


def test_repr_shows_an_open_transaction(transactional):
    """The repr of a producer shows an open transaction, whichever task has begun it."""
    producer = transactional()

    with producer.transaction():
        assert "in_transaction" in repr(producer)
    assert "in_transaction" not in repr(producer)


@pytest.mark.parametrize("name", ["started", "committed", "finished"])
def test_listener_may_close(world, transactional, until, name):
    """A `close` by a listener takes effect when the transaction has ended."""
    producer = transactional()
    producer.monitor.subscribe(f"transaction.{name}", lambda _: producer.close())

    with producer.transaction() as tx:
        pass
    until(lambda: producer.status == "closed")

    assert tx.outcome == "committed"


def test_closing_has_one_deadline_for_all_steps_of_the_last_flush(
    world, connected, mock_cluster
):
    """Begin, send, commit and rollback share the time given to `close`."""
    producer = connected()
    producer.buffer(topic="t", payload=b"x")
    mock_cluster.broker_down()
    started_at = time.monotonic()

    with pytest.raises(MessagesAbandonedError, match="1 buffered message was not"):
        producer.close(timeout=1.0)

    assert time.monotonic() - started_at < 1.9
    assert [each.payload for each in producer.buffered] == [b"x"]


def test_only_the_owner_can_abort(hub, connected):
    """A transaction belongs to the greenlet that has begun it."""
    producer = connected()

    def intrude(tx):
        with pytest.raises(TransactionRequiredError, match="another greenlet"):
            tx.abort()

    with producer.transaction() as tx:
        gevent.spawn(intrude, tx).get()
        (handle,) = send(producer)

    assert (tx.outcome, handle.error) == ("committed", None)
