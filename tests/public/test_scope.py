# ruff: noqa: PT012 - blocks are what is tested here
import gc
import threading
import time
import weakref

import gevent
import pytest

from greendrop import (
    DeliveryError,
    DeliveryTimeoutError,
    IllegalWaitError,
    Message,
    ProduceManyError,
    Producer,
    ProducerNotConfiguredError,
)
from greendrop.delivery import _MANY
from tests.interpreter import MODES
from tests.tasks import Task

REFUSED = "MESSAGE_TOO_LARGE"


def send(producer, count=1, **fields):
    """Send messages without waiting; return their handles."""
    fields = {"topic": "events", "payload": b"x", "partition": 0} | fields
    return [producer.produce_async(**fields) for _ in range(count)]


# --- waiting for the messages of a block ----------------------------------------------


@pytest.mark.slow
def test_block_ends_when_its_messages_are_delivered(
    mock_cluster, make_producer, longest_gap
):
    """Leaving the block waits for the deliveries; other greenlets run meanwhile."""
    producer = make_producer()
    mock_cluster.round_trip(0.4)

    with longest_gap() as gap, producer.scope():
        handles = send(producer, 20)
        assert not any(handle.done for handle in handles)

    assert all(handle.report for handle in handles)
    assert gap.seconds < 0.2


def test_messages_of_every_verb_are_in_the_scope(mock_cluster, make_producer):
    """Single messages and batches, sync and async, are all in the scope, in order."""
    producer = make_producer()
    mock_cluster.fail_requests("Produce", REFUSED, times=100)
    batch = [Message("events", b"x", label="many"), {"topic": "events", "payload": b""}]

    with pytest.raises(ProduceManyError) as caught, producer.scope():
        send(producer, label="async")
        with pytest.raises(DeliveryError):
            producer.produce_sync(topic="events", payload=b"x", label="sync")
        producer.produce_many_async(batch)
        with pytest.raises(ProduceManyError):
            producer.produce_many_sync(batch)

    labels = [handle.label for handle in caught.value.dispatched]
    assert labels == ["async", "sync", "many", None, "many", None]


def test_message_that_waited_for_space_is_in_the_scope(make_producer):
    """A message that first waited for space in the queue is in the scope too."""
    producer = make_producer({"queue.buffering.max.messages": 2})

    with producer.scope():
        handles = send(producer, 10)
        handles += producer.produce_many_async([Message("events", b"x")] * 10)

    assert all(handle.report for handle in handles)


def test_scope_works_in_a_thread_without_a_hub(make_producer):
    """In a thread without a hub the end of the block blocks until all is delivered."""
    producer = make_producer()

    with producer.scope():
        handles = send(producer, 10)

    assert producer.polling == "thread"
    assert all(handle.report for handle in handles)


# --- which messages belong to a scope -------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_messages_of_other_greenlets_are_not_waited_for(mock_cluster, make_producer):
    """Messages of greenlets started inside or outside the block are not in it."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"x", partition=0)
    mock_cluster.round_trip(1.0)
    started = time.monotonic()

    outside = gevent.spawn(send, producer)
    with producer.scope():
        inside = gevent.spawn(send, producer)
        gevent.joinall([outside, inside])

    assert time.monotonic() - started < 0.5
    assert not inside.get()[0].done
    assert not outside.get()[0].done


@pytest.mark.slow
def test_messages_of_other_threads_are_not_waited_for(mock_cluster, make_producer):
    """Messages of a thread that was started in the block are not in its scope."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"x", partition=0)
    mock_cluster.round_trip(1.0)
    started = time.monotonic()
    handles = []

    with producer.scope():
        thread = threading.Thread(target=lambda: handles.extend(send(producer)))
        thread.start()
        thread.join()

    assert time.monotonic() - started < 0.5
    assert not handles[0].done


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.patched
@pytest.mark.slow
def test_each_task_has_its_own_scope(run_script, mode):
    """Concurrent tasks with a scope each wait for their own ten messages."""
    run_script(
        """
        from greendrop import Producer
        from greendrop.testing import MockCluster
        from tests.tasks import sleep, together

        def work():
            with producer.scope() as scope:
                handles = []
                for _ in range(10):
                    handles.append(producer.produce_async(topic="t", payload=b"x"))
                    sleep(0.001)
                assert list(scope._handles) == handles
            assert all(handle.report for handle in handles)

        with MockCluster.spawn() as cluster:
            servers = {"bootstrap.servers": cluster.bootstrap_servers}
            with Producer(kafka=servers) as producer:
                together([work] * 10)
                assert not producer._core.scopes
        """,
        mode,
    )


def test_scope_lasts_when_its_thread_gets_a_hub(make_producer):
    """A scope goes on collecting when its thread gets a hub within the block."""
    producer = make_producer()

    with producer.scope() as scope:
        handles = send(producer)
        gevent.sleep(0)
        handles += send(producer)
        assert list(scope._handles) == handles

    assert all(handle.report for handle in handles)


def test_messages_of_another_producer_are_not_collected(make_producer):
    """A scope belongs to one producer."""
    producer, other = make_producer(), make_producer()

    with producer.scope() as scope:
        send(other)
        assert not scope._handles


def test_inner_and_outer_scopes_both_collect(mock_cluster, make_producer):
    """Messages of an inner block are in the outer scope too, but not vice versa."""
    producer = make_producer()

    with producer.scope() as outer:
        first = send(producer)
        with producer.scope() as inner:
            second = send(producer)
            assert list(inner._handles) == second
            assert list(outer._handles) == first + second
        third = send(producer)
        assert list(outer._handles) == first + second + third

    assert all(handle.report for handle in first + second + third)


# --- failures -------------------------------------------------------------------------


@pytest.mark.usefixtures("hub")
def test_error_has_the_first_failure_and_all_handles(mock_cluster, make_producer):
    """The error has all handles, in order, and names the first that failed."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"x", partition=0)

    with pytest.raises(ProduceManyError) as caught, producer.scope():
        handles = send(producer, 2)
        gevent.wait(handles, 10)
        mock_cluster.fail_requests("Produce", REFUSED, times=100)
        handles += send(producer, 3)

    assert "3 messages were not delivered" in str(caught.value)
    assert caught.value.dispatched == tuple(handles)
    assert caught.value.failed_index == 2
    assert caught.value.name == REFUSED
    assert isinstance(caught.value.__cause__, DeliveryError)


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_one_deadline_holds_for_all_messages(mock_cluster, make_producer):
    """Ten undelivered messages take one timeout together; their outcome is unknown."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"x", partition=0)
    mock_cluster.round_trip(2.0)
    started = time.monotonic()

    with pytest.raises(ProduceManyError) as caught, producer.scope(timeout=0.2):
        handles = send(producer, 10)

    assert time.monotonic() - started < 1.0
    assert "may still be delivered" in str(caught.value)
    assert isinstance(caught.value.__cause__, DeliveryTimeoutError)
    assert caught.value.dispatched == tuple(handles)


def test_error_of_the_block_is_raised(mock_cluster, make_producer):
    """An error raised in the block is kept, after the wait for the block's messages."""
    producer = make_producer()
    mock_cluster.fail_requests("Produce", REFUSED, times=100)
    handles = []

    with pytest.raises(LookupError), producer.scope():
        handles += send(producer)
        raise LookupError

    assert isinstance(handles[0].error, DeliveryError)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, gevent.GreenletExit])
def test_interruption_leaves_the_block_at_once(mock_cluster, make_producer, kind):
    """An exception that interrupts the block leaves it without waiting for messages."""
    producer = make_producer()
    mock_cluster.broker_down()

    with pytest.raises(kind), producer.scope() as scope:
        send(producer)
        raise kind

    assert not scope._handles


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_timeout_interrupts_the_wait_at_the_end_of_a_block(mock_cluster, make_producer):
    """A gevent.Timeout around the block ends the wait; the messages stay in flight."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"x", partition=0)
    mock_cluster.round_trip(0.5)

    with pytest.raises(gevent.Timeout), gevent.Timeout(0.1), producer.scope():
        handles = send(producer)

    assert handles[0].wait(10)
    assert not producer._core.scopes


# --- waiting within the block ---------------------------------------------------------


def test_wait_is_for_the_messages_sent_so_far(mock_cluster, make_producer):
    """`wait` returns when all messages sent so far in the block are delivered."""
    producer = make_producer()

    with producer.scope() as scope:
        first = send(producer, 3)
        scope.wait(10)
        assert all(handle.report for handle in first)
        assert not scope._handles
        send(producer)


def test_failure_that_wait_raised_is_not_raised_again(mock_cluster, make_producer):
    """A failure that `wait` raised is not raised again at the end of the block."""
    producer = make_producer()
    mock_cluster.fail_requests("Produce", REFUSED, times=100)

    with producer.scope() as scope:
        send(producer)
        with pytest.raises(ProduceManyError):
            scope.wait(10)


@pytest.mark.slow
def test_message_without_an_outcome_stays_in_the_scope(mock_cluster, make_producer):
    """After a timeout the wait can be repeated, also by the end of the block."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"x", partition=0)
    mock_cluster.round_trip(0.5)

    with producer.scope() as scope:
        handles = send(producer)
        with pytest.raises(ProduceManyError, match="no delivery report"):
            scope.wait(0)
        assert list(scope._handles) == handles

    assert handles[0].report


@pytest.mark.usefixtures("hub")
def test_another_greenlet_may_wait(mock_cluster, make_producer):
    """Another greenlet that calls `wait` waits for the messages of the block."""
    producer = make_producer()

    with producer.scope() as scope:
        handles = send(producer, 5)
        Task(scope.wait).join()
        assert all(handle.report for handle in handles)


# --- memory ---------------------------------------------------------------------------


def test_handles_of_delivered_messages_are_released(make_producer):
    """A scope of very many messages keeps few handles of the delivered ones."""
    producer = make_producer()

    with producer.scope() as scope:
        for _ in range(10):
            handles = producer.produce_many_async([Message("events", b"x")] * _MANY)
            handles[-1].wait(10)
        assert len(scope._handles) <= 3 * _MANY


def test_failures_among_very_many_are_kept(mock_cluster, make_producer):
    """A failed message is reported at the end, after many delivered ones too."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"x", partition=0)
    mock_cluster.fail_requests("Produce", REFUSED, times=1)

    with pytest.raises(ProduceManyError) as caught, producer.scope():
        (failed,) = send(producer)
        with pytest.raises(DeliveryError):
            failed.wait(10)
        for _ in range(3):
            producer.produce_many_sync([Message("events", b"x")] * _MANY)

    error = caught.value
    assert error.dispatched[error.failed_index] is failed
    assert len(error.dispatched) < 3 * _MANY


def test_nothing_is_kept_after_the_block(make_producer):
    """After the block neither the scope nor its handles are referenced."""
    producer = make_producer()
    with producer.scope() as scope:
        gone = weakref.ref(scope)
        send(producer)
    assert not scope._handles

    del scope
    gc.collect()

    assert gone() is None
    assert not producer._core.scopes


# --- bad uses -------------------------------------------------------------------------


def test_scope_is_entered_once(make_producer):
    """Entering a scope again is refused at once, while it is open and afterwards."""
    scope = make_producer().scope()

    with scope, pytest.raises(RuntimeError, match="entered once"), scope:
        pass
    with pytest.raises(RuntimeError, match="entered once"), scope:
        pass


@pytest.mark.parametrize("timeout", [-1, float("inf"), float("nan"), "1", True])
def test_bad_timeout_is_refused_at_once(make_producer, timeout):
    """A timeout that is not a finite number of seconds is refused."""
    producer = make_producer()

    with pytest.raises(ValueError, match="finite seconds"):
        producer.scope(timeout=timeout)
    with producer.scope() as scope, pytest.raises(ValueError, match="finite seconds"):
        scope.wait(timeout)


def test_unconfigured_producer_has_no_scope():
    """Before `setup` a producer has no scope."""
    with pytest.raises(ProducerNotConfiguredError):
        Producer().scope()


def test_scope_in_a_listener_is_refused_at_once(make_producer):
    """A listener can't wait at the end of a block, so the block is never entered."""
    producer = make_producer()
    outcomes = []

    @producer.monitor.subscribe("message.acknowledged")
    def listener(event):
        try:
            with producer.scope():
                outcomes.append("entered")
        except IllegalWaitError as error:
            outcomes.append(error)

    producer.produce_sync(topic="events", payload=b"x")

    assert [IllegalWaitError] == [type(each) for each in outcomes]


@pytest.mark.parametrize("used", [False, True])
def test_scope_in_the_hub_is_refused_at_once(hub, make_producer, used):
    """The hub can't wait for messages, whether or not the producer was used before."""
    producer = make_producer()
    if used:
        producer.produce_sync(topic="events", payload=b"x")
    outcomes = []

    def call():
        try:
            producer.scope().__enter__()
        except IllegalWaitError as error:
            outcomes.append(error)

    hub.loop.run_callback(call)
    gevent.sleep(0.01)

    assert len(outcomes) == 1
