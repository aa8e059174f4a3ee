"""Closing while the poller is held up in a listener or log handler."""

import os
import threading
import time

import gevent.lock
import pytest

from greendrop import MessagesAbandonedError

NOWHERE = "127.0.0.1:1"
#: Seconds. A close that waited for the poller would take 15 s longer than its timeout.
LATE = 8.0


@pytest.fixture
def lock(world):
    """Make a lock that lets greenlets wait where there is a hub."""
    return gevent.lock.RLock() if world == "greenlets" else threading.RLock()


def descriptors():
    """Count the open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not read


@pytest.mark.parametrize("event", ["error.occurred", "message.acknowledged"])
def test_close_ends_though_the_caller_holds_a_lock_that_a_listener_needs(
    event, lock, make_producer, mock_cluster, until
):
    """A listener waits for a lock that the caller of `close` holds: close ends."""
    before = descriptors()
    if event == "error.occurred":
        producer = make_producer({"bootstrap.servers": NOWHERE})
    else:
        producer = make_producer()
    entered, left = [], []

    def listen(_):
        entered.append(1)
        with lock:
            left.append(1)

    producer.monitor.subscribe(event, listen)
    handle = producer.produce_async(topic="t", payload=b"x")
    more = producer.produce_async(topic="t", payload=b"x")
    with lock:
        until(lambda: entered)
        started = time.monotonic()
        with pytest.raises(MessagesAbandonedError):
            producer.close(timeout=1.0)
        took = time.monotonic() - started
        assert producer.status == "closed"

    assert 0.9 < took < LATE
    # Now the listener goes on, and with it the tasks that wait for it.
    until(lambda: handle.done and more.done and len(left) == len(entered))
    mock_cluster.close()
    until(lambda: descriptors() <= before)


def test_all_messages_get_their_reports_when_the_listener_returns(
    lock, make_producer, until
):
    """Messages that `close` dropped while the poller was held up are reported then."""
    producer = make_producer({"bootstrap.servers": NOWHERE})
    entered = []

    def listen(_):
        entered.append(1)
        with lock:
            pass

    producer.monitor.subscribe("error.occurred", listen)
    handles = [producer.produce_async(topic="t", payload=b"x") for _ in range(300)]
    poller = producer._slot.client.poll_loop.poller
    with lock:
        until(lambda: entered)
        with pytest.raises(MessagesAbandonedError) as raised:
            producer.close(timeout=0.5)

    assert raised.value.count == 300
    until(lambda: all(handle.done for handle in handles))
    assert poller.join(10)


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("mode", ["none", "unpatched", "patched"])
def test_close_ends_though_the_caller_holds_the_lock_of_logging(mode, run_script):
    """`logging.config.dictConfig` holds that lock while it closes handlers."""
    program = """
    import logging, sys, time
    from greendrop import MessagesAbandonedError, Producer
    from tests.tasks import sleep

    logging.basicConfig(stream=sys.stdout, level=logging.DEBUG)
    sleep(0)
    producer = Producer({"bootstrap.servers": "127.0.0.1:1"})
    log = logging.getLogger("new")
    producer.monitor.subscribe("error.occurred", lambda _: log.error("an error"))
    producer.produce_async(topic="t", payload=b"x")
    started = time.monotonic()
    with logging._lock:
        try:
            producer.close(timeout=1)
        except MessagesAbandonedError:
            took = time.monotonic() - started
    assert 0.9 < took < limit, took
    """

    run_script(program, mode, limit=LATE)


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("mode", ["none", "unpatched", "patched"])
def test_exit_ends_though_a_listener_never_returns(mode, run_script):
    """A program whose listener waits for ever ends within about `exit_timeout`."""
    program = """
    import time
    from greendrop import Producer
    from tests.tasks import sleep

    sleep(0)
    producer = Producer({"bootstrap.servers": "127.0.0.1:1"}, exit_timeout=1)

    def wait_for_ever(_):
        while True:
            sleep(0.1)

    producer.monitor.subscribe("error.occurred", wait_for_ever)
    producer.produce_async(topic="t", payload=b"x")
    sleep(0.5)
    print(time.monotonic())
    """

    ended = run_script(program, mode, fails=True)

    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - float(ended.stdout) < 1 + LATE
    assert "not delivered" in ended.stderr
