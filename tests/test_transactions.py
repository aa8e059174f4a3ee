import contextlib
import signal
import threading
import time
from types import SimpleNamespace

import gevent
import gevent.pool
import pytest

from greendrop import (
    AbortTransaction,
    BrokerError,
    ConfigurationInvalidError,
    DeliveryError,
    IllegalWaitError,
    Message,
    MessagePurgedError,
    ProduceError,
    ProduceManyError,
    ProducerClosedError,
    ProducerNotTransactionalError,
    ProducerTransactionalCloseAttemptError,
    TransactionAbortedError,
    TransactionalOffsetInvalidError,
    TransactionBusyError,
    TransactionError,
    TransactionRequiredError,
    TransactionUnknownError,
    VariantInvalidError,
)
from greendrop.testing import MockCluster, trigger_fatal_error

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 20.0
#: Kafka's number of an error that means "fenced".
INVALID_PRODUCER_EPOCH = 47
ENDS = ("committed", "aborted", "finished")


@pytest.fixture
def transactional(make_producer):
    """Make transactional producers that try again, and replace clients, at once."""
    made = []

    def make(kafka=None, **settings):
        options = {
            "wait_backoff_on_transaction_command": 0.01,
            "wait_backoff_on_transaction_fatal_error": 0.0,
        }
        made.append(1)
        name = {"transactional.id": f"tx-{len(made)}", "retry.backoff.ms": 10}
        return make_producer(name | (kafka or {}), **options | settings)

    return make


def send(producer, count=1, **fields):
    """Send messages without waiting; give their handles."""
    return [
        producer.produce_async(topic="t", payload=b"x", label=number, **fields)
        for number in range(count)
    ]


def events_of(producer, *names):
    """Note from now on events by name."""
    heard = []
    for name in names:
        producer.monitor.subscribe(name, heard.append)
    return heard


def transaction_events(producer):
    """Note from now on what is told of transactions."""
    return events_of(
        producer, *(f"transaction.{each}" for each in ("started", *ENDS))
    )


def names(heard):
    """Tell what was heard, briefly."""
    return [each.name.removeprefix("transaction.") for each in heard]


def outcomes(heard):
    """Tell how the transactions ended of which was heard."""
    return [each["outcome"] for each in heard if each.name == "transaction.finished"]


# -- the block ----------------------------------------------------------------------


def test_block_commits(world, transactional):
    """What is sent in a block is delivered, and committed, at its end."""
    producer = transactional()
    heard = transaction_events(producer)

    with producer.transaction() as tx:
        handles = send(producer, 5)
        assert producer.in_transaction
        assert tx.outcome is None

    assert all(handle.report for handle in handles)
    assert not producer.in_transaction
    assert tx.outcome == "committed"
    assert tx.producer is producer
    assert names(heard) == ["started", "committed", "finished"]
    assert outcomes(heard) == ["committed"]
    assert all(0 <= each["time"] < LONG for each in heard)


def test_abort_is_silent(world, transactional):
    """`tx.abort()` leaves the block, and what was still queued ends as purged."""
    producer = transactional()
    heard = transaction_events(producer)

    with producer.transaction() as tx:
        (handle,) = send(producer)
        tx.abort()

    assert tx.outcome == "aborted"
    assert isinstance(handle.error, MessagePurgedError)
    assert names(heard) == ["started", "aborted", "finished"]
    assert outcomes(heard) == ["aborted"]


def test_abort_transaction_is_silent(world, transactional):
    """So does an `AbortTransaction` that is raised. Acceptance check 103."""
    producer = transactional()

    with producer.transaction() as tx:
        raise AbortTransaction

    assert tx.outcome == "aborted"


@pytest.mark.parametrize(
    "kind",
    [ValueError, KeyboardInterrupt, SystemExit, gevent.GreenletExit, gevent.Timeout],
)
def test_any_exception_aborts_and_goes_on(world, transactional, kind):
    """Not only errors: also what interrupts or ends. Acceptance checks 74 and 103."""
    producer = transactional()
    heard = transaction_events(producer)
    error = kind()

    with pytest.raises(kind) as raised, producer.transaction() as tx:
        send(producer)
        raise error

    assert raised.value is error
    assert tx.outcome == "aborted"
    assert names(heard) == ["started", "aborted", "finished"]
    with producer.transaction() as tx:
        send(producer)
    assert tx.outcome == "committed"


def test_block_may_be_left_early(world, transactional):
    """`return` and `break` commit, and the next one works. Acceptance check 66."""
    producer = transactional()

    def leave():
        with producer.transaction() as tx:
            send(producer)
            return tx

    assert leave().outcome == "committed"
    for _ in range(2):
        with producer.transaction() as tx:
            send(producer)
            break
    assert tx.outcome == "committed"
    with producer.transaction() as tx:
        send(producer)
    assert tx.outcome == "committed"


def test_run_in_transaction_gives_the_value(world, transactional):
    """Or None when it was aborted; errors are raised again. Acceptance check 103."""
    producer = transactional()

    def fail(_):
        raise ValueError

    def give_up(tx):
        tx.abort()

    assert producer.run_in_transaction(lambda tx: (tx.outcome, 7)) == (None, 7)
    assert producer.run_in_transaction(give_up) is None
    with pytest.raises(ValueError):  # noqa: PT011 - the very one
        producer.run_in_transaction(fail)


def test_nested_blocks_join_the_outer_one(world, transactional):
    """Begun and committed once, at the end of the outer block. Acceptance check 103."""
    producer = transactional()
    heard = transaction_events(producer)

    with producer.transaction() as outer:
        with producer.transaction() as inner:
            send(producer)
        assert inner.outcome is None
        with producer.variant(max_wait_timeout=9.0).transaction():
            send(producer)

    assert names(heard) == ["started", "committed", "finished"]
    assert (outer.outcome, inner.outcome) == ("committed", "committed")


def test_nested_abort_aborts_all(world, transactional):
    """It leaves the outer block, too. Acceptance check 103."""
    producer = transactional()
    heard = transaction_events(producer)
    reached = []

    with producer.transaction() as outer:
        with producer.transaction() as inner:
            inner.abort()
        reached.append("after the inner block")

    assert reached == []
    assert outer.outcome == "aborted"
    assert names(heard) == ["started", "aborted", "finished"]


def test_abort_that_is_caught_aborts_all_the_same(world, transactional):
    """Somebody's `except Exception` in between can't make it a commit."""
    producer = transactional()

    with producer.transaction() as tx:
        with contextlib.suppress(Exception):
            tx.abort()
        send(producer)

    assert tx.outcome == "aborted"


def test_error_of_an_inner_block_is_not_forgotten(world, transactional):
    """Caught between the blocks, it still can't be half committed."""
    producer = transactional()

    with pytest.raises(TransactionAbortedError) as raised, producer.transaction() as tx:
        with contextlib.suppress(ValueError), producer.transaction():
            raise ValueError
        send(producer)

    assert isinstance(raised.value.__cause__, ValueError)
    assert tx.outcome == "aborted"


def test_empty_transactions_are_fine(world, transactional):
    """Nothing sent, nothing wrong."""
    producer = transactional()

    for _ in range(3):
        with producer.transaction() as tx:
            pass
        assert tx.outcome == "committed"
    with producer.transaction() as tx:
        tx.abort()
    assert tx.outcome == "aborted"


def test_transaction_is_entered_once(transactional):
    """A second time would mean two things by one outcome."""
    producer = transactional()
    with producer.transaction() as tx:
        assert "open" in repr(tx)
    assert "committed" in repr(tx)

    with pytest.raises(RuntimeError), tx:
        pass


def test_plain_producer_has_no_transactions(make_producer):
    """Without a `transactional.id` there is a clear error."""
    producer = make_producer(id="plain")

    with pytest.raises(ProducerNotTransactionalError, match="plain"):
        producer.transaction()
    assert producer.in_transaction is False


def test_sync_message_of_an_aborted_transaction_keeps_its_report(world, transactional):
    """It was delivered; that nobody sees it is another thing. Acceptance check 104."""
    producer = transactional()
    heard = events_of(producer, "message.purged", "error.occurred")

    with producer.transaction() as tx:
        report = producer.produce_sync(topic="t", payload=b"x")
        tx.abort()

    assert report.offset == 0
    assert heard == []


def test_purged_messages_are_told_as_such(world, transactional):
    """Not as errors. Acceptance checks 94 and 95."""
    producer = transactional({"linger.ms": 5_000})
    heard = events_of(producer, "message.purged", "error.occurred")

    with producer.transaction() as tx:
        handles = send(producer, 3)
        tx.abort()

    assert all(handle.done for handle in handles)
    assert [each.name for each in heard] == ["message.purged"] * 3
    assert sorted(each["label"] for each in heard) == [0, 1, 2]
    assert {type(each["error"]) for each in heard} == {MessagePurgedError}


@pytest.mark.parametrize("caught", [True, False])
def test_bad_message_fails_the_transaction_only(world, transactional, caught):
    """One that librdkafka refuses is not just left out, even if nobody looks.

    Acceptance check 108, and section 10, 7.
    """
    producer = transactional({"message.max.bytes": 2_000})
    heard = events_of(producer, "producer.reload", "producer.connected")

    with pytest.raises(ProduceError) as raised, producer.transaction() as tx:
        (good,) = send(producer)
        with contextlib.suppress(DeliveryError if caught else ()):
            producer.produce_async(topic="t", payload=b"x" * 5_000)
    assert isinstance(raised.value, (TransactionAbortedError, DeliveryError))
    assert (tx.outcome, good.done) == ("aborted", True)

    with pytest.raises(ProduceError) as raised:
        producer.produce_sync(topic="t", payload=b"x" * 5_000)
    assert raised.value.name == "MSG_SIZE_TOO_LARGE"
    assert producer.produce_sync(topic="t", payload=b"x")
    with pytest.raises(ProduceError) as raised:
        producer.produce_async(topic="t", payload=b"x" * 5_000)
    assert raised.value.name == "MSG_SIZE_TOO_LARGE"
    assert producer.produce_async(topic="t", payload=b"x")
    assert names(heard) == ["producer.connected"]


def test_failed_message_fails_the_transaction(world, transactional, mock_cluster):
    """It is rolled back, at the cost of no new client (section 10, 7)."""
    producer = transactional()
    heard = events_of(producer, "producer.reload")
    mock_cluster.fail_requests("Produce", "INVALID_RECORD")

    with pytest.raises(TransactionAbortedError), producer.transaction() as tx:
        (handle,) = send(producer)

    assert tx.outcome == "aborted"
    assert handle.error.name == "INVALID_RECORD"
    with producer.transaction() as tx:
        send(producer)
    assert tx.outcome == "committed"
    assert heard == []


# -- alone --------------------------------------------------------------------------


def test_single_message_is_a_transaction(world, transactional):
    """Each send outside of a block returns after its commit."""
    producer = transactional()
    heard = events_of(
        producer,
        *("transaction.started", "message.acknowledged", "transaction.committed"),
        *("transaction.finished", "message.produced_sync", "message.produced_async"),
    )

    report = producer.produce_sync(topic="t", payload=b"x")
    handle = producer.produce_async(topic="t", payload=b"x")

    assert report.topic == "t"
    assert handle.report is not None
    each = ["started", "message.acknowledged", "committed", "finished"]
    assert names(heard) == [
        *each,
        "message.produced_sync",
        *each,
        "message.produced_async",
    ]


def test_batch_is_a_transaction(world, transactional):
    """One for all of it; the handles are final."""
    producer = transactional()
    heard = transaction_events(producer)
    batch = [Message("t", b"x", label=number) for number in range(300)]

    reports = producer.produce_many_sync(batch)
    handles = producer.produce_many_async(batch)

    assert [each.label for each in reports] == list(range(300))
    assert all(each.report for each in handles)
    assert names(heard) == ["started", "committed", "finished"] * 2


@pytest.mark.parametrize("verb", ["produce_many_sync", "produce_many_async"])
def test_batch_is_visible_as_a_whole_or_not_at_all(world, transactional, verb):
    """`dispatched` is empty, and all handles are to be had (section 10, 9)."""
    producer = transactional({"message.max.bytes": 2_000})
    batch = [Message("t", b"x" * size) for size in (1, 5_000, 1)]

    with pytest.raises(ProduceManyError) as raised:
        getattr(producer, verb)(batch)

    error = raised.value
    assert error.dispatched == ()
    assert error.failed_index == 1
    assert error.__cause__.name == "MSG_SIZE_TOO_LARGE"
    assert all(handle.done for handle in error.rolled_back)
    assert producer.produce_many_sync([Message("t", b"x")])


def test_failed_message_is_told_by_its_own_error(world, transactional, mock_cluster):
    """The first error is the one that is seen, also of a message that is alone."""
    producer = transactional()
    mock_cluster.fail_requests("Produce", "INVALID_RECORD")
    heard = events_of(producer, "error.occurred")

    with pytest.raises(DeliveryError) as raised:
        producer.produce_async(topic="t", payload=b"x")

    assert raised.value.name == "INVALID_RECORD"
    assert heard[-1]["type"] == "message.produce_async"


def test_variant_with_a_connection_of_its_own_is_refused(transactional):
    """Two clients of one `transactional.id` would fence each other."""
    producer = transactional()

    with pytest.raises(VariantInvalidError, match="transactional"):
        producer.variant(topic_config={"message.timeout.ms": 5_000})


# -- the buffer ---------------------------------------------------------------------


def test_buffer_is_flushed_in_a_transaction(world, transactional):
    """One for all of it, also with senders of several kinds."""
    producer = transactional()
    heard = transaction_events(producer)
    producer.buffer(topic="t", payload=b"x", label=0)
    producer.variant(max_wait_timeout=9.0).buffer(topic="t", payload=b"x", label=1)

    reports = producer.flush_sync()

    assert [each.label for each in reports] == [0, 1]
    assert names(heard) == ["started", "committed", "finished"]


def test_flush_that_is_rolled_back_keeps_all(world, transactional, mock_cluster):
    """What nobody will see is in the buffer again, in order."""
    producer = transactional()
    mock_cluster.fail_requests("AddPartitionsToTxn", "TOPIC_AUTHORIZATION_FAILED")
    for number in range(3):
        producer.buffer(topic="t", payload=b"x", label=number, partition=0)

    with pytest.raises(ProduceManyError, match="3 messages are back"):
        producer.flush_sync()

    assert [each.label for each in producer.buffered] == [0, 1, 2]
    assert [each.label for each in producer.flush_sync()] == [0, 1, 2]


def test_close_flushes_in_a_transaction(world, transactional, stored):
    """What is buffered at the end is committed (section 10, 2)."""
    producer = transactional()
    heard = transaction_events(producer)
    for _ in range(3):
        producer.buffer(topic="t", payload=b"x")

    producer.close()

    assert outcomes(heard) == ["committed"]
    assert producer.buffered == ()
    assert stored("t") >= 3


# -- one after the other ------------------------------------------------------------


@pytest.mark.slow
def test_transactions_never_overlap(world, transactional, spawn):
    """Five tasks with ten each: all succeed, one after the other.

    Acceptance check 37.
    """
    producer = transactional()
    heard = events_of(producer, "transaction.started", "transaction.finished")
    done = []

    def run(number):
        for _ in range(10):
            with producer.transaction():
                for _ in range(3):
                    producer.produce_async(topic=f"t{number}", payload=b"x")
            done.append(number)

    for task in [spawn(lambda number=number: run(number)) for number in range(5)]:
        task.join()

    assert len(done) == 50
    assert names(heard) == ["started", "finished"] * 50


def test_order_is_that_of_asking(world, transactional, spawn, pause, until):
    """Who asked first is next."""
    producer = transactional()
    order = []

    def run(number):
        with producer.transaction():
            order.append(number)

    tasks = []
    with producer.transaction():
        for number in range(6):
            tasks.append(spawn(lambda number=number: run(number)))
            until(lambda: len(producer._core.transactions._lock._queue) == number + 1)  # noqa: B023
    for task in tasks:
        task.join()

    assert order == list(range(6))


def test_single_messages_wait_their_turn(world, transactional, spawn, pause):
    """They are transactions, too, and don't get into that of another task."""
    producer = transactional()
    heard = transaction_events(producer)

    with producer.transaction() as tx:
        task = spawn(lambda: producer.produce_sync(topic="t", payload=b"x"))
        pause(0.05)
        tx.abort()
    task.join()

    assert outcomes(heard) == ["aborted", "committed"]


def test_wait_for_the_turn_has_a_deadline(world, transactional, spawn):
    """It is the variant's, and the error says that nothing was sent."""
    producer = transactional()
    hurried = producer.variant(max_wait_timeout=0.1)
    caught = []

    def try_it():
        for act in (
            lambda: hurried.transaction().__enter__(),
            lambda: hurried.produce_sync(topic="t", payload=b"x"),
            lambda: hurried.produce_many_async([Message("t", b"x")]),
        ):
            try:
                act()
            except ProduceError as error:
                caught.append(error)

    with producer.transaction():
        task = spawn(try_it)
        until_dead(task)

    assert [type(each) for each in caught] == [
        TransactionBusyError,
        TransactionBusyError,
        ProduceManyError,
    ]
    assert isinstance(caught[2].__cause__, TransactionBusyError)
    assert isinstance(caught[0], TimeoutError)
    assert "nothing sent" in str(caught[0])


def until_dead(task):
    """Wait for a task as a program does that doesn't `join`."""
    alive = getattr(task, "is_alive", None) or (lambda: not task.dead)
    while alive():
        (gevent if hasattr(task, "dead") else time).sleep(0.005)


@pytest.mark.parametrize("how", ["join", "get", "joinall", "wait", "group", "third"])
def test_greenlet_that_waits_for_itself_is_told(hub, transactional, hub_errors, how):
    """A block that waits for a greenlet which sends would never end."""
    producer = transactional()
    group = gevent.pool.Group()

    with pytest.raises(TransactionBusyError) as raised, producer.transaction():
        task = group.spawn(producer.produce_sync, topic="t", payload=b"x")
        {
            "join": task.join,
            "get": task.get,
            "joinall": lambda: gevent.joinall([task]),
            "wait": lambda: gevent.wait([task]),
            "group": group.join,
            "third": lambda: gevent.spawn(task.join).join(),
        }[how]()
        task.get()

    assert "waits for this one" in str(raised.value)
    hub_errors.clear()


def test_thread_that_waits_for_itself_is_told(transactional):
    """So would one that joins a thread which sends."""
    producer = transactional()
    caught = []

    def run():
        try:
            producer.produce_sync(topic="t", payload=b"x")
        except TransactionBusyError as error:
            caught.append(error)

    with producer.transaction():
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    assert "waits for this one" in str(caught[0])


def test_killed_waiter_passes_its_turn_on(hub, transactional):
    """One that is killed while it waits, or just when it may go, holds up nobody."""
    producer = transactional()

    with producer.transaction():
        waiting = [
            gevent.spawn(producer.produce_sync, topic="t", payload=b"x")
            for _ in range(3)
        ]
        gevent.sleep(0.01)
        waiting[0].kill()
    gevent.spawn(waiting[1].kill)
    gevent.joinall(waiting)

    assert waiting[2].value.topic == "t"
    assert not producer._core.transactions.busy


def test_others_go_on_meanwhile(transactional, make_producer, mock_cluster, longest_gap):
    """The hub is free at begin, commit, abort, and while others wait for their turn."""
    producer = transactional()
    other = make_producer()
    mock_cluster.round_trip(0.05)

    def run():
        with producer.transaction():
            send(producer, 3)
        with producer.transaction() as tx:
            producer.produce_sync(topic="t", payload=b"x")
            tx.abort()

    with longest_gap() as gap:
        tasks = [gevent.spawn(run) for _ in range(3)]
        other.produce_sync(topic="t", payload=b"x")
        assert not all(task.dead for task in tasks)
        gevent.joinall(tasks, raise_error=True)

    assert gap.seconds < 0.05
    assert gap.ticks > 100


@pytest.mark.slow
def test_producers_have_transactions_side_by_side(world, transactional, spawn):
    """One that takes its time holds up no other producer. Acceptance check 30."""
    producers = [transactional() for _ in range(2)]
    acknowledged = [events_of(each, "message.acknowledged") for each in producers]
    began = time.monotonic()

    def run(producer):
        for _ in range(2):
            with producer.transaction():
                send(producer, 5)
                (gevent if spawn_is_greenlet(world) else time).sleep(0.5)

    for task in [spawn(lambda each=each: run(each)) for each in producers]:
        task.join()

    assert time.monotonic() - began < 1.9
    assert [len(each) for each in acknowledged] == [10, 10]


def spawn_is_greenlet(world):
    """Tell which `sleep` lets others run."""
    return world == "greenlets"


def test_many_transactions(world, transactional):
    """Ten of five messages each, without an error. Acceptance checks 15 and 29."""
    producer = transactional(
        reload_on_transaction_fatal_error=True,
        max_attempts_on_transaction_fatal_error=7,
    )
    heard = events_of(producer, "message.acknowledged", "error.occurred")
    reloads = events_of(producer, "producer.reload")

    for _ in range(10):
        with producer.transaction():
            send(producer, 5)

    assert [each.name for each in heard] == ["message.acknowledged"] * 50
    assert reloads == []
    settings = producer._core.settings
    assert settings.reload_on_transaction_fatal_error is True
    assert settings.max_attempts_on_transaction_fatal_error == 7
    assert settings.wait_backoff_on_transaction_fatal_error == 0.0


# -- where nobody may wait ----------------------------------------------------------


def test_listener_can_not_have_a_transaction(world, transactional, until):
    """The task that runs it would have to bring its reports; nothing is sent."""
    producer = transactional()
    caught = []

    @producer.monitor.subscribe("message.acknowledged")
    def listen(event):
        try:
            producer.produce_async(topic="t", payload=b"x")
        except IllegalWaitError as error:
            caught.append(str(error))

    producer.produce_sync(topic="t", payload=b"x")

    assert len(caught) == 1
    assert "nothing was sent" in caught[0]


@pytest.mark.parametrize("name", ENDS)
def test_listener_of_the_end_can_not_send(world, transactional, name):
    """It is told while its own transaction ends: nothing may join that any more."""
    producer = transactional()
    caught = []

    @producer.monitor.subscribe(f"transaction.{name}")
    def listen(event):
        try:
            producer.produce_async(topic="t", payload=b"x")
        except IllegalWaitError as error:
            caught.append(str(error))

    with producer.transaction() as tx:
        if name == "aborted":
            tx.abort()

    assert "nothing was sent" in caught[0]
    assert tx.outcome == ("aborted" if name == "aborted" else "committed")


def test_listener_of_the_beginning_sends_in_it(world, transactional):
    """What it sends is part of the transaction."""
    producer = transactional()
    heard = transaction_events(producer)
    handles = []
    producer.monitor.subscribe(
        "transaction.started", lambda _: handles.extend(send(producer))
    )

    with producer.transaction():
        pass

    assert handles[0].report is not None
    assert names(heard) == ["started", "committed", "finished"]


def test_hub_can_not_have_a_transaction(hub, transactional):
    """A callback of the event loop is told so at once."""
    producer = transactional()
    caught = []

    def call():
        try:
            producer.produce_async(topic="t", payload=b"x")
        except IllegalWaitError as error:
            caught.append(str(error))

    hub.loop.run_callback(call)
    gevent.sleep(0.01)

    assert "nothing was sent" in caught[0]


# -- commands that fail -------------------------------------------------------------


def command_errors(heard):
    """Give what was told of failed commands: its type, whether again, which try."""
    return [
        (each["type"], each["retry"], each["attempt"])
        for each in heard
        if each["type"].startswith("transaction.")
    ]


class Failing:
    """A command of a client's that fails so often, with an error of our choice."""

    def __init__(self, producer, name, times, **flags):
        self._real = getattr(producer._lane.client.native, name)
        self._times = times
        self._flags = flags
        self.called = []
        setattr(producer._lane.client.native, name, self)

    def __call__(self, *arguments):
        """Fail, or do it."""
        self.called.append(time.monotonic())
        if len(self.called) <= self._times:
            flags = {"code": 7, "name": "REQUEST_TIMED_OUT", **self._flags}
            raise BrokerError("not now", **flags)
        return self._real(*arguments)


@pytest.fixture
def connected(transactional):
    """Make transactional producers that have committed something."""

    def make(*arguments, **settings):
        producer = transactional(*arguments, **settings)
        producer.produce_sync(topic="t", payload=b"x")
        return producer

    return make


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

    with pytest.raises(TransactionAbortedError, match="no verdict") as raised:  # noqa: SIM117
        with producer.transaction() as tx:
            (handle,) = send(producer)

    assert "1 messages" in str(raised.value)
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

    with pytest.raises(ValueError), producer.transaction() as tx:  # noqa: PT011, PT012
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
        with pytest.raises(TransactionAbortedError) as raised:
            send(producer)
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
    """Beginning has a deadline, and leaves nothing open. Acceptance check 40."""
    kafka = {"bootstrap.servers": "127.0.0.1:9", "transactional.id": "nowhere"}
    producer = make_producer(kafka, max_wait_timeout=0.3)
    heard = events_of(producer, "error.occurred")
    began = time.monotonic()

    for _ in range(2):
        with pytest.raises(TransactionAbortedError) as raised:
            send(producer)
        assert raised.value.name == "_TIMED_OUT"
        assert producer._lane.client is None

    assert time.monotonic() - began < 5.0
    assert producer.status == "configured"
    told = [each for each in heard if each["type"] == "transaction.init"]
    assert len(told) == 2


def test_beginning_waits_for_brokers(world, transactional, mock_cluster):
    """One that is slow to let it begin is waited for."""
    producer = transactional()
    mock_cluster.delay_requests("InitProducerId", 0.3)

    assert send(producer)[0].report


# -- interrupted --------------------------------------------------------------------


def test_timeout_while_the_commit_waits_for_reports(hub, connected, mock_cluster):
    """It is rolled back then, and the timeout goes on."""
    producer = connected()
    mock_cluster.delay_requests("Produce", 1.0)

    with pytest.raises(gevent.Timeout), gevent.Timeout(0.2), producer.transaction() as tx:
        (handle,) = send(producer)

    assert (tx.outcome, handle.done) == ("aborted", True)
    assert send(producer)[0].report


def test_timeout_within_the_commit(hub, connected, mock_cluster):
    """It may happen all the same, so nobody knows; the next one works."""
    producer = connected()
    heard = transaction_events(producer)
    mock_cluster.delay_requests("EndTxn", 1.0)
    began = time.monotonic()

    with pytest.raises(gevent.Timeout), gevent.Timeout(0.2), producer.transaction() as tx:
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

    with pytest.raises(gevent.Timeout), producer.transaction() as tx:  # noqa: PT012
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
    alarm = threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,))
    began = time.monotonic()
    alarm.start()

    with pytest.raises(KeyboardInterrupt), producer.transaction() as tx:  # noqa: PT012
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
def test_closing_does_not_wait_for_ever(
    world, transactional, spawn, pause, until, force
):
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
def test_sending_races_closing(world, transactional, spawn, pause, until, used):
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
