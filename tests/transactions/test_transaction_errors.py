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
    LONG,
    Failing,
    events_of,
    names,
    outcomes,
    send,
    transaction_events,
)

#: Kafka's number of an error that means "fenced".
INVALID_PRODUCER_EPOCH = 47


# -- commands that fail -------------------------------------------------------------


def command_errors(heard):
    """Give what was told of failed commands: its type, whether again, which try."""
    return [
        (each["type"], each["retry"], each["attempt"])
        for each in heard
        if each["type"].startswith("transaction.")
    ]


@pytest.mark.parametrize("name", ["begin", "commit", "abort"])
def test_command_is_tried_again(world, connected, name):
    """With a pause that grows, until it works. Acceptance check 106."""
    producer = connected(wait_backoff_on_transaction_command=0.05)
    heard = events_of(producer, "error.occurred")
    ends = transaction_events(producer)
    command = Failing(producer, f"{name}_transaction", 3, retriable=True)

    with producer.transaction() as tx:
        send(producer)
        if name == "abort":
            tx.abort()

    assert tx.outcome == ("aborted" if name == "abort" else "committed")
    assert names(ends)[0] == "started"
    assert len(ends) == 3
    assert command_errors(heard) == [
        (f"transaction.{name}", True, attempt) for attempt in (1, 2, 3)
    ]
    first, second, third, fourth = command.called
    assert second - first >= 0.049
    assert third - second >= 0.099
    assert fourth - third >= 0.149


def test_tries_are_limited(world, connected):
    """A begin that goes on failing is told as such, and nothing was begun."""
    producer = connected(max_attempts_on_transaction_command=3)
    heard = events_of(producer, "error.occurred")
    ends = transaction_events(producer)
    command = Failing(producer, "begin_transaction", 99, retriable=True)

    with pytest.raises(TransactionAbortedError, match="not now") as raised:
        send(producer)

    assert raised.value.name == "REQUEST_TIMED_OUT"
    assert len(command.called) == 3
    assert [again for _, again, _ in command_errors(heard)] == [True, True, False]
    assert ends == []


def test_failed_begin_is_not_rolled_back(world, connected):
    """There is nothing to roll back (section 10, 6); the next one works."""
    producer = connected()
    abort = Failing(producer, "abort_transaction", 99)
    Failing(producer, "begin_transaction", 1)
    heard = events_of(producer, "producer.reload")

    with pytest.raises(TransactionAbortedError):
        send(producer)

    assert abort.called == []
    assert len(heard) == 1
    assert send(producer)[0].report


def test_abortable_error_of_a_commit_aborts_once(world, connected):
    """And is the one that is seen, without a new client (section 10, 5)."""
    producer = connected()
    heard = transaction_events(producer)
    reloads = events_of(producer, "producer.reload")
    abort = Failing(producer, "abort_transaction", 0)
    Failing(producer, "commit_transaction", 1, abortable=True)

    with pytest.raises(TransactionAbortedError) as raised, producer.transaction() as tx:
        send(producer)

    assert (raised.value.name, raised.value.abortable) == ("REQUEST_TIMED_OUT", True)
    assert tx.outcome == "aborted"
    assert names(heard) == ["started", "aborted", "finished"]
    assert len(abort.called) == 1
    assert reloads == []
    assert send(producer)[0].report


def test_abortable_error_of_the_brokers(world, connected, mock_cluster):
    """The same, as a broker does it."""
    producer = connected()
    mock_cluster.fail_requests("AddPartitionsToTxn", "TOPIC_AUTHORIZATION_FAILED")

    with pytest.raises(TransactionAbortedError) as raised, producer.transaction() as tx:
        producer.produce_async(topic="other", payload=b"x")

    assert raised.value.name == "TOPIC_AUTHORIZATION_FAILED"
    assert tx.outcome == "aborted"
    assert send(producer)[0].report


def test_commit_that_may_have_happened_is_told_as_such(world, connected):
    """Abortable, and then the abort fails: nobody knows. The client is replaced."""
    producer = connected()
    heard = transaction_events(producer)
    reloads = events_of(producer, "producer.reload")
    Failing(producer, "abort_transaction", 99)
    Failing(producer, "commit_transaction", 1, abortable=True)

    with pytest.raises(TransactionUnknownError), producer.transaction() as tx:
        send(producer)

    assert tx.outcome == "unknown"
    assert outcomes(heard) == ["unknown"]
    assert len(reloads) == 1
    assert send(producer)[0].report


def test_commit_without_an_answer_is_unknown(world, connected, mock_cluster):
    """A coordinator that doesn't answer in time: the text and the class say so."""
    producer = connected().variant(max_wait_timeout=0.5)
    reloads = events_of(producer, "producer.reloaded")
    mock_cluster.delay_requests("EndTxn", 3.0)
    began = time.monotonic()

    with pytest.raises(TransactionUnknownError) as raised, producer.transaction() as tx:
        send(producer)

    assert time.monotonic() - began < 2.5
    assert raised.value.name == "_TIMED_OUT"
    assert tx.outcome == "unknown"
    assert len(reloads) == 1


@pytest.mark.slow
def test_commit_goes_on_in_pieces(world, connected, mock_cluster):
    """A broker that takes its time is waited for, though each call is short."""
    producer = connected()
    heard = events_of(producer, "error.occurred")
    mock_cluster.delay_requests("EndTxn", 2.5)

    with producer.transaction() as tx:
        send(producer)

    assert tx.outcome == "committed"
    assert heard == []
    assert send(producer)[0].report


def test_unknown_batch_is_not_buffered_again(world, connected):
    """It may be there: sending it again is for the program to decide."""
    producer = connected()
    producer.buffer(topic="t", payload=b"x")
    Failing(producer, "commit_transaction", 99)

    with pytest.raises(ProduceManyError) as raised:
        producer.flush_sync()

    assert isinstance(raised.value.__cause__, TransactionUnknownError)
    assert len(raised.value.dispatched) == 1
    assert producer.buffered == ()


def test_error_of_the_block_is_seen_first(world, connected):
    """Also when rolling back fails: that is told, and costs a new client."""
    producer = connected()
    heard = events_of(producer, "error.occurred", "producer.reload")
    Failing(producer, "abort_transaction", 99)

    with pytest.raises(ValueError, match="mine"), producer.transaction() as tx:
        send(producer)
        raise ValueError("mine")

    assert tx.outcome == "aborted"
    assert [each.name for each in heard] == ["error.occurred", "producer.reload"]
    assert heard[0]["type"] == "transaction.abort"
    assert send(producer)[0].report


def test_abort_that_fails_is_not_silent(world, connected):
    """A program that wanted to roll back is told that the brokers have yet to."""
    producer = connected()
    Failing(producer, "abort_transaction", 99)

    with pytest.raises(TransactionAbortedError, match="nothing was committed"):  # noqa: SIM117
        with producer.transaction() as tx:
            tx.abort()
    assert tx.outcome == "aborted"
    assert send(producer)[0].report


def test_messages_without_a_verdict_are_rolled_back(world, connected, mock_cluster):
    """A commit waits for reports no longer than it may."""
    producer = connected().variant(max_wait_timeout=0.3)
    mock_cluster.delay_requests("Produce", 1.0)

    with pytest.raises(TransactionAbortedError, match="no delivery report") as raised:  # noqa: SIM117
        with producer.transaction() as tx:
            (handle,) = send(producer)

    assert "for 1 message within 0.3 s" in str(raised.value)
    assert (tx.outcome, handle.done) == ("aborted", True)


# -- fatal errors -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fenced", "InvalidTxnState"])
def test_fatal_error_of_a_commit(world, connected, mock_cluster, name):
    """Fenced producers stay so; after other fatal errors there is a new client.

    Acceptance checks 7 and 38.
    """
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


def test_fatal_error_of_an_abort(world, connected, mock_cluster):
    """The block's own error is seen, and the next transaction works.

    Acceptance check 38.
    """
    producer = connected()
    reloads = events_of(producer, "producer.reloaded")
    mock_cluster.fail_requests("EndTxn", "INVALID_TXN_STATE")

    with pytest.raises(ValueError), producer.transaction() as tx:  # noqa: PT011
        producer.produce_sync(topic="t", payload=b"x")
        raise ValueError

    assert tx.outcome == "aborted"
    assert [each["attempt"] for each in reloads] == [1]
    assert send(producer)[0].report


def test_fatal_error_inside_of_the_block(world, connected):
    """What is sent then fails at once, and a new client is there for the next one."""
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


def test_fenced_producer_may_change_its_name(world, connected, mock_cluster):
    """A listener of `producer.reload` gives it another one. Acceptance check 6."""
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


def test_names_follow_the_change(make_producer, connected):
    """The new one is taken, and the old one free again."""
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
def test_bad_change_is_refused(world, connected, change):
    """What a listener breaks is told, and the next transaction tries again (28)."""
    producer = connected()
    heard = events_of(producer, "error.occurred")

    @producer.monitor.subscribe("producer.reload")
    def spoil(event):
        event["kafka"].update(change)

    with pytest.raises(ProduceError), producer.transaction():
        trigger_fatal_error(producer, INVALID_PRODUCER_EPOCH)
        producer.produce_sync(topic="t", payload=b"x")
    told = [e["error"] for e in heard if e["type"] == "transaction.reload"]
    assert isinstance(told[-1], ConfigurationInvalidError)

    producer.monitor.unsubscribe(spoil)
    with pytest.raises(TransactionAbortedError):
        send(producer)
    assert send(producer)[0].report


def test_new_clients_are_limited(world, connected, mock_cluster):
    """One that is fatal each time is replaced so often and no more.

    Acceptance check 8.
    """
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


def test_commit_allows_new_attempts(world, connected, mock_cluster):
    """The limit is for failures in a row."""
    producer = connected(max_attempts_on_transaction_fatal_error=1)

    for _ in range(3):
        mock_cluster.fail_requests("EndTxn", "INVALID_TXN_STATE")
        with pytest.raises(TransactionUnknownError):
            send(producer)
        assert send(producer)[0].report


def test_client_stays_when_told_so(world, connected):
    """Without reloading each transaction tells the fatal error."""
    producer = connected(reload_on_transaction_fatal_error=False)
    reloads = events_of(producer, "producer.reload")
    trigger_fatal_error(producer, INVALID_PRODUCER_EPOCH)

    for _ in range(2):
        with pytest.raises(ProduceError) as raised:
            producer.produce_sync(topic="t", payload=b"x")
        assert raised.value.fatal
    assert reloads == []


def test_next_transaction_waits_for_the_backoff(world, connected):
    """The error is told at once; who begins again too soon waits."""
    producer = connected(wait_backoff_on_transaction_fatal_error=0.3)
    began = time.monotonic()

    with pytest.raises(ProduceError), producer.transaction():
        trigger_fatal_error(producer, INVALID_PRODUCER_EPOCH)
        producer.produce_sync(topic="t", payload=b"x")
    assert time.monotonic() - began < 0.25

    assert send(producer)[0].report
    assert time.monotonic() - began >= 0.3


def test_buffered_messages_survive_a_new_client(world, connected):
    """Only what librdkafka had is dropped (section 10, 4)."""
    producer = connected()
    producer.buffer(topic="t", payload=b"x", label="kept")

    with pytest.raises(ProduceError), producer.transaction():
        trigger_fatal_error(producer, INVALID_PRODUCER_EPOCH)
        producer.produce_sync(topic="t", payload=b"x")

    assert producer.flush_sync()[0].label == "kept"


# -- the brokers do not let it begin ------------------------------------------------


@pytest.mark.slow
def test_unreachable_brokers(world, make_producer):
    """Beginning ends in time, and leaves nothing open. Acceptance checks 40 and 54."""
    kafka = {"bootstrap.servers": "127.0.0.1:9", "transactional.id": "nowhere"}
    producer = make_producer(kafka, max_wait_timeout=0.3)
    heard = events_of(producer, "error.occurred")
    began = time.monotonic()

    for _ in range(2):
        with pytest.raises(TransactionAbortedError) as raised:
            send(producer)
        assert raised.value.name == "_TIMED_OUT"
        assert producer._slot.client is None

    assert time.monotonic() - began < 5.0
    assert producer.status == "configured"
    told = [each for each in heard if each["type"] == "transaction.init"]
    assert len(told) == 2


def test_beginning_waits_for_brokers(world, transactional, mock_cluster):
    """One that is slow to let it begin is waited for."""
    producer = transactional()
    mock_cluster.delay_requests("InitProducerId", 0.3)

    assert send(producer)[0].report


@pytest.mark.parametrize("verb", ["produce_sync", "produce_async"])
def test_single_message_tells_why_its_transaction_failed(
    world, connected, mock_cluster, verb
):
    """That the message was dropped is a consequence; the error is the reason."""
    producer = connected().variant(max_wait_timeout=0.3)
    mock_cluster.broker_down()

    with pytest.raises(TransactionAbortedError, match="no delivery report"):
        getattr(producer, verb)(topic="t", payload=b"x")


def test_commit_that_was_never_asked_for_is_no_mystery(world, connected, mock_cluster):
    """A message has failed, so librdkafka asks no broker for the commit."""
    producer = connected()
    mock_cluster.fail_requests("AddPartitionsToTxn", "PRODUCER_FENCED")
    mock_cluster.watch_requests()

    with pytest.raises(TransactionAbortedError), producer.transaction() as tx:
        (handle,) = send(producer)

    assert tx.outcome == "aborted"
    assert handle.error is not None
    assert "EndTxn" not in mock_cluster.requests()


def test_dropped_messages_fail_the_transaction(hub, connected):
    """Also those that were only gathered, of which librdkafka never hears."""
    producer = connected()

    with pytest.raises(TransactionAbortedError), producer.transaction() as tx:
        handles = send(producer, 4)
        producer.purge()

    assert tx.outcome == "aborted"
    assert [each.error for each in handles if each.report is None]


# -- listeners ----------------------------------------------------------------------


def test_listener_that_forwards_errors_is_told_once(world, connected, mock_cluster):
    """What it can't send is raised there; it does not call itself, for ever."""
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

    began = time.monotonic()
    with pytest.raises(TransactionAbortedError):
        producer.produce_sync(topic="t", payload=b"x")

    assert time.monotonic() - began < LONG
    assert 1 <= len(raised) < 10


def test_listener_of_a_reload_can_not_send(world, connected):
    """The new client is not there yet. It is told so, and one reload is enough."""
    producer = connected()
    told = []

    @producer.monitor.subscribe("producer.reload")
    def send_word(event):
        try:
            producer.produce_async(topic="audit", payload=b"reload")
        except IllegalWaitError as error:
            told.append(str(error))

    trigger_fatal_error(producer)
    with pytest.raises(TransactionAbortedError):
        producer.produce_sync(topic="t", payload=b"x")

    assert len(told) == 1
    assert "nothing was sent" in told[0]
    assert producer.produce_sync(topic="t", payload=b"x").topic == "t"
