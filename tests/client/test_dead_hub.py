"""Waits in a thread whose hub died because an exception reached it while it started.

`hub.throw(KeyboardInterrupt)` before the hub has run has the effect of a signal that
arrives while the hub runs for the first time.
"""

import sys
import threading
import time

import gevent
import pytest

from greendrop import _concurrency

pytestmark = [pytest.mark.slow, pytest.mark.patched]

both = pytest.mark.parametrize("mode", ["unpatched", "patched"])

BEGIN = """
    import sys, time
    import gevent
    from greendrop import DeliveryTimeoutError, MessagesAbandonedError, Producer

    producer = Producer({"bootstrap.servers": servers}, exit_timeout=2)
    hub = gevent.get_hub()
    # From Python 3.13 on, a patched program waits in its hub when it ends, and gevent
    # fails there.
    if sys.version_info >= (3, 13):
        sys.unraisablehook = lambda raised: (
            raised.exc_type is gevent.exceptions.InvalidSwitchError
            or sys.__unraisablehook__(raised)
        )

    def kill_hub(error=KeyboardInterrupt):
        try:
            hub.throw(error)
        except error:
            assert hub.dead
"""

UNREACHABLE = "127.0.0.1:1"


@both
@pytest.mark.parametrize("sent", [0, 1, 2, 50])
def test_messages_are_delivered_after_the_hub_died(
    mode, sent, mock_cluster, run_script, stored
):
    """All messages sent before and after the death of the hub are delivered."""
    program = """
    handles = [producer.produce_async(topic="t", payload=b"x") for _ in range(sent)]
    kill_hub()
    for handle in handles:
        handle.wait(20)
    producer.produce_sync(topic="t", payload=b"x")
    handles = [producer.produce_async(topic="t", payload=b"x") for _ in range(10)]
    producer.close(20)
    assert all(handle.report for handle in handles)
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers, sent=sent)

    assert stored("t") == sent + 11


@both
@pytest.mark.parametrize("error", ["KeyboardInterrupt", "SystemExit"])
def test_exit_delivers_messages_after_the_hub_died(
    mode, error, mock_cluster, run_script, stored
):
    """A program that ends right after its hub died still delivers what it sent."""
    program = """
    for _ in range(50):
        producer.produce_async(topic="t", payload=b"x")
    kill_hub(%s)
    """

    run_script(BEGIN + program % error, mode, servers=mock_cluster.bootstrap_servers)

    assert stored("t") == 50


@both
def test_waits_end_by_their_deadline_after_the_hub_died(mode, run_script):
    """Without a broker every wait ends by its deadline, and none spins."""
    program = """
    handles = [producer.produce_async(topic="t", payload=b"x") for _ in range(5)]
    kill_hub()
    started, cpu = time.monotonic(), time.process_time()
    for handle in handles[:2]:
        try:
            handle.wait(0.7)
        except DeliveryTimeoutError:
            pass
    try:
        producer.variant(max_wait_timeout=0.7).produce_sync(topic="t", payload=b"x")
    except DeliveryTimeoutError:
        pass
    try:
        producer.close(0.7)
    except MessagesAbandonedError as error:
        assert error.count == 6, error.count
    took = time.monotonic() - started
    assert 2.8 <= took < 15, took
    assert time.process_time() - cpu < took / 2
    """

    run_script(BEGIN + program, mode, servers=UNREACHABLE)


@both
def test_exit_takes_the_exit_timeout_after_the_hub_died(mode, run_script):
    """Without a broker a program whose hub died ends within `exit_timeout`."""
    program = """
    for _ in range(50):
        producer.produce_async(topic="t", payload=b"x")
    kill_hub()
    print(time.monotonic())
    """

    ended = run_script(BEGIN + program, mode, servers=UNREACHABLE, fails=True)

    assert ended.returncode == 0
    assert time.monotonic() - float(ended.stdout) < 10
    assert "50 messages were not delivered" in ended.stderr


@both
def test_later_sends_are_delivered_though_nothing_waits(
    mode, mock_cluster, run_script, stored
):
    """A program that only calls `produce_async` after its hub died gets its reports."""
    program = """
    acknowledged = []
    producer.monitor.subscribe("message.acknowledged", acknowledged.append)
    producer.produce_async(topic="t", payload=b"x")
    kill_hub()
    deadline = time.monotonic() + 20
    while len(acknowledged) < 20 and time.monotonic() < deadline:
        producer.produce_async(topic="t", payload=b"x")
        blocking_sleep(0.01)
    assert len(acknowledged) >= 20
    """
    sleep = """
    from greendrop import _concurrency
    def blocking_sleep(seconds):
        lock = _concurrency.allocate_lock()
        lock.acquire()
        lock.acquire(timeout=seconds)
    """

    run_script(BEGIN + sleep + program, mode, servers=mock_cluster.bootstrap_servers)


@both
def test_transactions_end_after_the_hub_died(mode, mock_cluster, run_script):
    """A transactional producer goes on after the death of the hub."""
    program = """
    producer.close()
    kafka = {"bootstrap.servers": servers, "transactional.id": "dead-hub"}
    producer = Producer(kafka)
    kill_hub()
    with producer.transaction():
        handle = producer.produce_async(topic="t", payload=b"x")
    assert handle.report
    producer.close()
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)


def test_waiter_made_before_the_hub_died_ends_in_time(hub):
    """A waiter that outlives its hub blocks the thread until its deadline."""
    waiter = _concurrency.new_waiter()
    with pytest.raises(KeyboardInterrupt):
        hub.throw(KeyboardInterrupt)
    cpu = time.process_time()

    assert waiter.wait(0.5) is False
    assert time.process_time() - cpu < 0.25
    waiter.wake()
    assert waiter.wait(10) is True


def test_wait_ends_though_an_exception_hit_its_timer(hub, hub_errors):
    """An exception at the entry of a timer's function only delays the end of a wait."""

    def raise_once(frame, event, argument):
        if frame.f_code is _concurrency.GreenletWaiter.time_out.__code__:
            sys.settrace(None)
            raise KeyboardInterrupt

    def wait():
        hub.loop.run_callback(sys.settrace, raise_once)
        return _concurrency.new_waiter().wait(0.05)

    waiting = gevent.spawn(wait)
    # The hub passes the exception on to the main greenlet.
    with pytest.raises(KeyboardInterrupt):
        waiting.join(10)

    assert waiting.get(timeout=10) is False
    assert len(hub_errors) == 1
    hub_errors.clear()


def test_call_from_a_thread_survives_an_exception_in_the_hub(hub, hub_errors):
    """An exception while a hub runs calls of other threads loses none of them."""
    called = []
    _concurrency.ensure_threadsafe_calls(hub)

    def raise_once(frame, event, argument):
        if frame.f_code is _concurrency.ThreadsafeCalls._schedule.__code__:
            sys.settrace(None)
            raise KeyboardInterrupt

    hub.loop.run_callback(sys.settrace, raise_once)
    thread = threading.Thread(
        target=_concurrency.call_soon_threadsafe, args=(hub, called.append, "called")
    )
    thread.start()
    thread.join()
    with pytest.raises(KeyboardInterrupt):
        gevent.sleep(10)

    _concurrency.new_waiter()  # as every wait in this hub does
    gevent.sleep(0.1)

    assert called == ["called"]
    assert len(hub_errors) == 1
    hub_errors.clear()
