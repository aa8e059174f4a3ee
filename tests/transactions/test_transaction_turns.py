"""The order of transactions of one producer, and callers that may not wait for one."""

import time

import gevent
import gevent.pool
import pytest

from greendrop import (
    IllegalWaitError,
    Message,
    ProduceError,
    ProduceManyError,
    TransactionBusyError,
)
from tests.transactions.transacting import (
    ENDS,
    events_of,
    names,
    outcomes,
    send,
    transaction_events,
)

# -- the order of transactions ------------------------------------------------------


@pytest.mark.slow
def test_transactions_never_overlap(world, transactional, spawn):
    """Fifty transactions of five tasks all succeed, one after the other."""
    producer = transactional()
    events = events_of(producer, "transaction.started", "transaction.finished")
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
    assert names(events) == ["started", "finished"] * 50


def test_transactions_begin_in_the_order_of_requests(
    world, transactional, spawn, pause, until
):
    """The task that asked first is next."""
    producer = transactional()
    order = []

    def run(number):
        with producer.transaction():
            order.append(number)

    tasks = []
    with producer.transaction():
        for number in range(6):
            tasks.append(spawn(lambda number=number: run(number)))
            until(lambda: producer._core.transactions._lock.waiting == number + 1)  # noqa: B023
    for task in tasks:
        task.join()

    assert order == list(range(6))


def test_single_messages_wait_their_turn(world, transactional, spawn, pause):
    """A single message is a transaction, and stays out of that of another task."""
    producer = transactional()
    events = transaction_events(producer)

    with producer.transaction() as tx:
        task = spawn(lambda: producer.produce_sync(topic="t", payload=b"x"))
        pause(0.05)
        tx.abort()
    task.join()

    assert outcomes(events) == ["aborted", "committed"]


def test_wait_for_the_turn_has_a_deadline(world, transactional, spawn):
    """The wait ends after the variant's limit; the error says that nothing was sent."""
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
    """Wait for a task without `join`, by polling."""
    alive = getattr(task, "is_alive", None) or (lambda: not task.dead)
    while alive():
        (gevent if hasattr(task, "dead") else time).sleep(0.005)


def test_block_that_joins_a_sending_task_ends_by_the_timeout(
    world, transactional, spawn
):
    """A sender that the open block waits for gets an error when its timeout ends."""
    producer = transactional()
    hurried = producer.variant(max_wait_timeout=0.2)
    caught = []

    def send_within():
        try:
            hurried.produce_sync(topic="t", payload=b"x")
        except TransactionBusyError as error:
            caught.append(error)

    with producer.transaction():
        spawn(send_within).join()
        producer.produce_async(topic="t", payload=b"x")

    assert len(caught) == 1


def test_killed_waiter_passes_its_turn_on(hub, transactional):
    """A greenlet killed while it waits, or as its turn comes, blocks no other one."""
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
    assert not producer._core.transactions.in_use


def test_other_greenlets_run_during_transactions(
    transactional, make_producer, mock_cluster, longest_gap
):
    """The hub stays free in begin, commit, abort and the wait for a turn."""
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
def test_producers_have_concurrent_transactions(world, transactional, spawn):
    """A slow transaction of one producer doesn't delay another producer."""
    producers = [transactional() for _ in range(2)]
    acknowledged = [events_of(each, "message.acknowledged") for each in producers]
    started_at = time.monotonic()

    def run(producer):
        for _ in range(2):
            with producer.transaction():
                send(producer, 5)
                (gevent if spawn_is_greenlet(world) else time).sleep(0.5)

    for task in [spawn(lambda each=each: run(each)) for each in producers]:
        task.join()

    assert time.monotonic() - started_at < 1.9
    assert [len(each) for each in acknowledged] == [10, 10]


def spawn_is_greenlet(world):
    """Return whether tasks are greenlets, so that gevent's `sleep` lets others run."""
    return world == "greenlets"


def test_ten_transactions_succeed(world, transactional):
    """Ten transactions of five messages each succeed without an error or a reload."""
    producer = transactional(
        reload_on_transaction_fatal_error=True,
        max_attempts_on_transaction_fatal_error=7,
    )
    events = events_of(producer, "message.acknowledged", "error.occurred")
    reloads = events_of(producer, "producer.reload")

    for _ in range(10):
        with producer.transaction():
            send(producer, 5)

    assert [each.name for each in events] == ["message.acknowledged"] * 50
    assert reloads == []
    settings = producer._core.settings
    assert settings.reload_on_transaction_fatal_error is True
    assert settings.max_attempts_on_transaction_fatal_error == 7
    assert settings.wait_backoff_on_transaction_fatal_error == 0.0


# -- callers that may not wait ------------------------------------------------------


def test_listener_can_not_have_a_transaction(world, transactional, until):
    """The listener's task would have to bring the delivery reports; nothing is sent."""
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
    """The listener runs while its own transaction ends, and can't join it any more."""
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
    """A message sent by the listener is part of the transaction."""
    producer = transactional()
    events = transaction_events(producer)
    handles = []
    producer.monitor.subscribe(
        "transaction.started", lambda _: handles.extend(send(producer))
    )

    with producer.transaction():
        pass

    assert handles[0].report is not None
    assert names(events) == ["started", "committed", "finished"]


def test_hub_can_not_have_a_transaction(hub, transactional):
    """A callback of the event loop gets an error at once."""
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
