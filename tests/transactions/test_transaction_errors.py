"""Errors of transactional commands: retries, rollbacks, fatal errors, new clients."""

import time

import pytest

from greendrop import (
    ConfigurationInvalidError,
    IllegalWaitError,
    ProduceError,
    ProduceManyError,
    TransactionAbortedError,
    TransactionError,
    TransactionUnknownError,
)
from greendrop.testing import trigger_fatal_error
from tests.transactions.transacting import (
    INVALID_PRODUCER_EPOCH,
    LONG,
    Failing,
    events_of,
    names,
    outcomes,
    send,
    transaction_events,
)

# -- commands that fail -------------------------------------------------------------


def command_errors(events):
    """Return type, retry flag and attempt of each failed command."""
    return [
        (each["type"], each["retry"], each["attempt"])
        for each in events
        if each["type"].startswith("transaction.")
    ]


@pytest.mark.parametrize("name", ["begin", "commit", "abort"])
def test_command_is_repeated_until_it_works(world, connected, name):
    """A retriable command is repeated, with growing pauses, until it succeeds."""
    producer = connected(wait_backoff_on_transaction_command=0.05)
    events = events_of(producer, "error.occurred")
    ends = transaction_events(producer)
    command = Failing(producer, f"{name}_transaction", 3, retriable=True)

    with producer.transaction() as tx:
        send(producer)
        if name == "abort":
            tx.abort()

    assert tx.outcome == ("aborted" if name == "abort" else "committed")
    assert names(ends)[0] == "started"
    assert len(ends) == 3
    assert command_errors(events) == [
        (f"transaction.{name}", True, attempt) for attempt in (1, 2, 3)
    ]
    first, second, third, fourth = command.called
    assert second - first >= 0.049
    assert third - second >= 0.099
    assert fourth - third >= 0.149


def test_attempts_are_limited(world, connected):
    """A begin that keeps failing raises its error, and no transaction is open."""
    producer = connected(max_attempts_on_transaction_command=3)
    events = events_of(producer, "error.occurred")
    ends = transaction_events(producer)
    command = Failing(producer, "begin_transaction", 99, retriable=True)

    with pytest.raises(TransactionAbortedError, match="not now") as raised:
        send(producer)

    assert raised.value.name == "REQUEST_TIMED_OUT"
    assert len(command.called) == 3
    assert [again for _, again, _ in command_errors(events)] == [True, True, False]
    assert ends == []


def test_failed_begin_is_not_rolled_back(world, connected):
    """A begin that failed has nothing to roll back; the next transaction works."""
    producer = connected()
    abort = Failing(producer, "abort_transaction", 99)
    Failing(producer, "begin_transaction", 1)
    events = events_of(producer, "producer.reload")

    with pytest.raises(TransactionAbortedError):
        send(producer)

    assert abort.called == []
    assert len(events) == 1
    assert send(producer)[0].report


def test_abortable_error_of_a_commit_aborts_once(world, connected):
    """The commit's error is raised after a single abort, without a new client."""
    producer = connected()
    events = transaction_events(producer)
    reloads = events_of(producer, "producer.reload")
    abort = Failing(producer, "abort_transaction", 0)
    Failing(producer, "commit_transaction", 1, abortable=True)

    with pytest.raises(TransactionAbortedError) as raised, producer.transaction() as tx:
        send(producer)

    assert (raised.value.name, raised.value.abortable) == ("REQUEST_TIMED_OUT", True)
    assert tx.outcome == "aborted"
    assert names(events) == ["started", "aborted", "finished"]
    assert len(abort.called) == 1
    assert reloads == []
    assert send(producer)[0].report


def test_abortable_error_of_the_brokers_aborts_once(world, connected, mock_cluster):
    """An abortable error sent by a broker aborts the transaction in the same way."""
    producer = connected()
    mock_cluster.fail_requests("AddPartitionsToTxn", "TOPIC_AUTHORIZATION_FAILED")

    with pytest.raises(TransactionAbortedError) as raised, producer.transaction() as tx:
        producer.produce_async(topic="other", payload=b"x")

    assert raised.value.name == "TOPIC_AUTHORIZATION_FAILED"
    assert tx.outcome == "aborted"
    assert send(producer)[0].report


def test_commit_that_may_have_happened_is_unknown(world, connected):
    """A failing abort after a failed commit leaves the outcome unknown.

    The client is replaced.
    """
    producer = connected()
    events = transaction_events(producer)
    reloads = events_of(producer, "producer.reload")
    Failing(producer, "abort_transaction", 99)
    Failing(producer, "commit_transaction", 1, abortable=True)

    with pytest.raises(TransactionUnknownError), producer.transaction() as tx:
        send(producer)

    assert tx.outcome == "unknown"
    assert outcomes(events) == ["unknown"]
    assert len(reloads) == 1
    assert send(producer)[0].report


def test_commit_without_an_answer_is_unknown(world, connected, mock_cluster):
    """A coordinator that doesn't answer in time leaves the outcome unknown.

    Class and text say so.
    """
    producer = connected().variant(max_wait_timeout=0.5)
    reloads = events_of(producer, "producer.reloaded")
    mock_cluster.delay_requests("EndTxn", 3.0)
    started_at = time.monotonic()

    with pytest.raises(TransactionUnknownError) as raised, producer.transaction() as tx:
        send(producer)

    assert time.monotonic() - started_at < 2.5
    assert raised.value.name == "_TIMED_OUT"
    assert tx.outcome == "unknown"
    assert len(reloads) == 1


@pytest.mark.slow
def test_commit_continues_in_short_calls(world, connected, mock_cluster):
    """A slow broker is waited for, though each single call is short."""
    producer = connected()
    events = events_of(producer, "error.occurred")
    mock_cluster.delay_requests("EndTxn", 2.5)

    with producer.transaction() as tx:
        send(producer)

    assert tx.outcome == "committed"
    assert events == []
    assert send(producer)[0].report


def test_unknown_batch_is_not_buffered_again(world, connected):
    """A batch of unknown outcome may be stored.

    The program decides on sending it again.
    """
    producer = connected()
    producer.buffer(topic="t", payload=b"x")
    Failing(producer, "commit_transaction", 99)

    with pytest.raises(ProduceManyError) as raised:
        producer.flush_sync()

    assert isinstance(raised.value.__cause__, TransactionUnknownError)
    assert len(raised.value.dispatched) == 1
    assert producer.buffered == ()


def test_error_of_the_block_is_raised_first(world, connected):
    """A failing rollback is reported as an event and costs a client.

    The block's error is raised.
    """
    producer = connected()
    events = events_of(producer, "error.occurred", "producer.reload")
    Failing(producer, "abort_transaction", 99)

    with pytest.raises(ValueError, match="mine"), producer.transaction() as tx:
        send(producer)
        raise ValueError("mine")

    assert tx.outcome == "aborted"
    assert [each.name for each in events] == ["error.occurred", "producer.reload"]
    assert events[0]["type"] == "transaction.abort"
    assert send(producer)[0].report


def test_abort_that_fails_raises(world, connected):
    """A failed rollback raises an error; the brokers have yet to do it."""
    producer = connected()
    Failing(producer, "abort_transaction", 99)

    with pytest.raises(TransactionAbortedError, match="nothing was committed"):  # noqa: SIM117
        with producer.transaction() as tx:
            tx.abort()
    assert tx.outcome == "aborted"
    assert send(producer)[0].report


def test_messages_without_a_report_are_rolled_back(world, connected, mock_cluster):
    """A commit waits for delivery reports no longer than its time limit."""
    producer = connected().variant(max_wait_timeout=0.3)
    mock_cluster.delay_requests("Produce", 1.0)

    with pytest.raises(TransactionAbortedError, match="no delivery report") as raised:  # noqa: SIM117
        with producer.transaction() as tx:
            (handle,) = send(producer)

    assert "for 1 message within 0.3 s" in str(raised.value)
    assert (tx.outcome, handle.done) == ("aborted", True)


# -- fatal errors -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fenced", "InvalidTxnState"])
def test_fatal_error_of_a_commit_replaces_the_client(
    world, connected, mock_cluster, name
):
    """A fenced producer stays fenced; other fatal errors give it a new client."""
    producer = connected()
    reloads = events_of(producer, "producer.reload", "producer.reloaded")
    error = "INVALID_PRODUCER_EPOCH" if name == "fenced" else "INVALID_TXN_STATE"
    mock_cluster.fail_requests("EndTxn", error)

    with pytest.raises(TransactionUnknownError) as raised, producer.transaction() as tx:
        send(producer)

    assert raised.value.fatal
    assert tx.outcome == "unknown"
    if name == "fenced":
        assert raised.value.name == "_FENCED"
        assert reloads == []
        for _ in range(2):
            with pytest.raises(TransactionAbortedError) as raised:
                send(producer)
            assert (raised.value.name, raised.value.fatal) == ("_FENCED", True)
    else:
        assert raised.value.name == "INVALID_TXN_STATE"
        assert names(reloads) == ["producer.reload", "producer.reloaded"]
        assert send(producer)[0].report


def test_fatal_error_of_an_abort_keeps_the_error_of_the_block(
    world, connected, mock_cluster
):
    """The block's own error is raised, and the next transaction works."""
    producer = connected()
    reloads = events_of(producer, "producer.reloaded")
    mock_cluster.fail_requests("EndTxn", "INVALID_TXN_STATE")

    with pytest.raises(ValueError), producer.transaction() as tx:  # noqa: PT011
        producer.produce_sync(topic="t", payload=b"x")
        raise ValueError

    assert tx.outcome == "aborted"
    assert [each["attempt"] for each in reloads] == [1]
    assert send(producer)[0].report


def test_fatal_error_in_a_block_fails_its_messages_at_once(world, connected):
    """Sends in the block fail at once, and the next transaction has a new client."""
    producer = connected()
    abort = Failing(producer, "abort_transaction", 99)
    reloads = events_of(producer, "producer.reload", "producer.reloaded")

    with pytest.raises(ProduceError) as raised, producer.transaction() as tx:
        (before,) = send(producer)
        trigger_fatal_error(producer, INVALID_PRODUCER_EPOCH)
        producer.produce_sync(topic="t", payload=b"x")

    assert (raised.value.code, raised.value.fatal) == (INVALID_PRODUCER_EPOCH, True)
    assert tx.outcome == "aborted"
    assert before.done
    assert abort.called == []
    assert names(reloads) == ["producer.reload", "producer.reloaded"]
    assert reloads[0]["error"].fatal
    assert send(producer)[0].report


def test_fenced_producer_may_change_its_id(world, connected, mock_cluster):
    """A listener of `producer.reload` may choose another `transactional.id`."""
    producer = connected(non_reloadable_errors=())
    reloads = events_of(producer, "producer.reloaded")

    @producer.monitor.subscribe("producer.reload")
    def rename(event):
        event["kafka"]["transactional.id"] = "another"

    mock_cluster.fail_requests("EndTxn", "INVALID_PRODUCER_EPOCH")
    with pytest.raises(TransactionUnknownError) as raised:
        send(producer)
    assert raised.value.name == "_FENCED"
    for _ in range(10):
        assert send(producer)[0].report

    assert [each["attempt"] for each in reloads] == [1]
    assert producer._core.settings.kafka["transactional.id"] == "another"


def test_ids_follow_the_change(make_producer, connected):
    """The new `transactional.id` is taken, and the old one is free again."""
    producer = connected()
    old = producer._core.settings.kafka["transactional.id"]

    @producer.monitor.subscribe("producer.reload")
    def rename(event):
        event["kafka"]["transactional.id"] = "another"

    with pytest.raises(ProduceError), producer.transaction():
        trigger_fatal_error(producer, INVALID_PRODUCER_EPOCH)
        producer.produce_sync(topic="t", payload=b"x")

    with pytest.raises(ConfigurationInvalidError):
        make_producer({"transactional.id": "another"})
    assert make_producer({"transactional.id": old}).produce_sync(
        topic="t", payload=b"x"
    )


@pytest.mark.parametrize("change", [{"acks": 0}, {"transactional.id": ""}])
def test_invalid_change_is_refused(world, connected, change):
    """Settings broken by a listener are reported; the next transaction tries again."""
    producer = connected()
    events = events_of(producer, "error.occurred")

    @producer.monitor.subscribe("producer.reload")
    def spoil(event):
        event["kafka"].update(change)

    with pytest.raises(ProduceError), producer.transaction():
        trigger_fatal_error(producer, INVALID_PRODUCER_EPOCH)
        producer.produce_sync(topic="t", payload=b"x")
    reported = [e["error"] for e in events if e["type"] == "transaction.reload"]
    assert isinstance(reported[-1], ConfigurationInvalidError)

    producer.monitor.unsubscribe(spoil)
    with pytest.raises(TransactionAbortedError):
        send(producer)
    assert send(producer)[0].report


def test_new_clients_are_limited(world, connected, mock_cluster):
    """A client that is fatal each time is replaced up to the limit, and no further."""
    producer = connected(
        max_attempts_on_transaction_fatal_error=3, non_reloadable_errors=()
    )
    reloads = events_of(producer, "producer.reload")
    mock_cluster.fail_requests("EndTxn", "INVALID_PRODUCER_EPOCH", times=99)

    for _ in range(6):
        with pytest.raises(TransactionError) as raised:
            send(producer)
        assert raised.value.name == "_FENCED"
    assert [each["attempt"] for each in reloads] == [1, 2, 3]

    mock_cluster.forgive_requests("EndTxn")
    assert producer.disconnect() is True
    assert send(producer)[0].report


def test_commit_resets_the_limit_of_new_clients(world, connected, mock_cluster):
    """The limit counts failures in a row."""
    producer = connected(max_attempts_on_transaction_fatal_error=1)

    for _ in range(3):
        mock_cluster.fail_requests("EndTxn", "INVALID_TXN_STATE")
        with pytest.raises(TransactionUnknownError):
            send(producer)
        assert send(producer)[0].report


def test_client_stays_without_reloading(world, connected):
    """With reloading switched off each transaction raises the fatal error."""
    producer = connected(reload_on_transaction_fatal_error=False)
    reloads = events_of(producer, "producer.reload")
    trigger_fatal_error(producer, INVALID_PRODUCER_EPOCH)

    for _ in range(2):
        with pytest.raises(ProduceError) as raised:
            producer.produce_sync(topic="t", payload=b"x")
        assert raised.value.fatal
    assert reloads == []


def test_next_transaction_waits_for_the_backoff(world, connected):
    """The error comes at once; a transaction begun too soon waits for the backoff."""
    producer = connected(wait_backoff_on_transaction_fatal_error=0.3)
    started_at = time.monotonic()

    with pytest.raises(ProduceError), producer.transaction():
        trigger_fatal_error(producer, INVALID_PRODUCER_EPOCH)
        producer.produce_sync(topic="t", payload=b"x")
    assert time.monotonic() - started_at < 0.25

    assert send(producer)[0].report
    assert time.monotonic() - started_at >= 0.3


def test_buffered_messages_survive_a_new_client(world, connected):
    """A new client costs the messages in librdkafka's queue, not the buffered ones."""
    producer = connected()
    producer.buffer(topic="t", payload=b"x", label="kept")

    with pytest.raises(ProduceError), producer.transaction():
        trigger_fatal_error(producer, INVALID_PRODUCER_EPOCH)
        producer.produce_sync(topic="t", payload=b"x")

    assert producer.flush_sync()[0].label == "kept"


# -- transactions that can't begin --------------------------------------------------


@pytest.mark.slow
def test_unreachable_brokers_fail_the_begin_in_time(world, make_producer):
    """Beginning without brokers fails in time, and leaves nothing open."""
    kafka = {"bootstrap.servers": "127.0.0.1:9", "transactional.id": "nowhere"}
    producer = make_producer(kafka, max_wait_timeout=0.3)
    events = events_of(producer, "error.occurred")
    started_at = time.monotonic()

    for _ in range(2):
        with pytest.raises(TransactionAbortedError) as raised:
            send(producer)
        assert raised.value.name == "_TIMED_OUT"
        assert producer._slot.client is None

    assert time.monotonic() - started_at < 5.0
    assert producer.status == "configured"
    reported = [each for each in events if each["type"] == "transaction.init"]
    assert len(reported) == 2


def test_beginning_waits_for_brokers(world, transactional, mock_cluster):
    """A transaction waits for a broker that is slow to let it begin."""
    producer = transactional()
    mock_cluster.delay_requests("InitProducerId", 0.3)

    assert send(producer)[0].report


@pytest.mark.parametrize("verb", ["produce_sync", "produce_async"])
def test_single_message_has_the_reason_of_its_transaction(
    world, connected, mock_cluster, verb
):
    """The dropped message is a consequence; the error carries the reason."""
    producer = connected().variant(max_wait_timeout=0.3)
    mock_cluster.broker_down()

    with pytest.raises(TransactionAbortedError, match="no delivery report"):
        getattr(producer, verb)(topic="t", payload=b"x")


def test_commit_that_was_never_requested_is_aborted(world, connected, mock_cluster):
    """A failed message keeps librdkafka from sending the commit."""
    producer = connected()
    mock_cluster.fail_requests("AddPartitionsToTxn", "PRODUCER_FENCED")
    mock_cluster.watch_requests()

    with pytest.raises(TransactionAbortedError), producer.transaction() as tx:
        (handle,) = send(producer)

    assert tx.outcome == "aborted"
    assert handle.error is not None
    assert "EndTxn" not in mock_cluster.requests()


def test_dropped_messages_fail_the_transaction(hub, connected):
    """A dropped message fails the transaction, even one unknown to librdkafka."""
    producer = connected()

    with pytest.raises(TransactionAbortedError), producer.transaction() as tx:
        handles = send(producer, 4)
        producer.purge()

    assert tx.outcome == "aborted"
    assert [each.error for each in handles if each.report is None]


# -- listeners ----------------------------------------------------------------------


def test_listener_that_forwards_errors_is_not_called_recursively(
    world, connected, mock_cluster
):
    """A message that the listener can't send raises there, without recursion."""
    producer = connected(max_wait_timeout=2.0)
    mock_cluster.broker_down()
    raised = []

    @producer.monitor.subscribe("error.occurred")
    def forward(event):
        if event["type"].startswith(("transaction.", "message.")):
            try:
                producer.produce_async(topic="errors", payload=event["type"])
            except ProduceError as error:
                raised.append(error)
            except IllegalWaitError as error:
                raised.append(error)

    started_at = time.monotonic()
    with pytest.raises(TransactionAbortedError):
        producer.produce_sync(topic="t", payload=b"x")

    assert time.monotonic() - started_at < LONG
    assert 1 <= len(raised) < 10


def test_listener_of_a_reload_can_not_send(world, connected):
    """Sending before the new client exists raises an error; one reload is enough."""
    producer = connected()
    errors = []

    @producer.monitor.subscribe("producer.reload")
    def send_word(event):
        try:
            producer.produce_async(topic="audit", payload=b"reload")
        except IllegalWaitError as error:
            errors.append(str(error))

    trigger_fatal_error(producer)
    with pytest.raises(TransactionAbortedError):
        producer.produce_sync(topic="t", payload=b"x")

    assert len(errors) == 1
    assert "nothing was sent" in errors[0]
    assert producer.produce_sync(topic="t", payload=b"x").topic == "t"
