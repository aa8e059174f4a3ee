"""Resources: closed producers leave none behind, and idle ones use few."""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path

import gevent
import pytest

from greendrop import ConfigurationInvalidError, DeliveryTimeoutError, Producer
from greendrop._concurrency.wakeup import WakeupFd
from tests.tasks import Task, await_true, together

PROC = Path("/proc/self")


@pytest.fixture(params=["fd", "thread"])
def driver(request):
    """Run a test once in a thread with a hub, and once without a hub."""
    if request.param == "fd":
        request.getfixturevalue("hub")
    return request.param


def open_files():
    """Count the file descriptors of this process."""
    return len(os.listdir(PROC / "fd"))  # noqa: PTH208 - only their number


def native_threads():
    """Count the threads of this process, including librdkafka's."""
    return len(os.listdir(PROC / "task"))  # noqa: PTH208


def python_threads():
    """Count the threads that run Python code."""
    return len(sys._current_frames())


def in_use():
    """Count descriptors, threads and Python threads."""
    return open_files(), native_threads(), python_threads()


def is_more_in_use(before):
    """Return whether more is in use than before.

    Less is irrelevant: a thread of an earlier test may just have ended.
    """
    return any(now > was for now, was in zip(in_use(), before, strict=True))


# --- closed producers -----------------------------------------------------------------


@pytest.mark.slow
def test_cycles_leak_nothing(driver, make_producer):
    """Twenty producers made, used and closed leave no descriptor and no thread."""
    before = in_use()
    for _ in range(20):
        producer = make_producer()
        producer.produce_sync(topic="events", payload=b"x")
        assert driver == producer.polling
        assert open_files() > before[0]
        producer.close()

    # The last thread may be executing its last instructions.
    await_true(lambda: not is_more_in_use(before))


DEAD = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
BAD = {
    "no certificate": {"ssl.ca.location": "/nonexistent", "security.protocol": "ssl"},
    "bad cipher": {"ssl.cipher.suites": "none", "security.protocol": "ssl"},
    "bad value": {"acks": "some"},
}


@pytest.mark.parametrize("bad", BAD)
def test_a_refused_configuration_leaks_nothing(bad, driver):
    """A configuration that librdkafka refuses leaves no descriptor and no thread."""
    before = in_use()

    for _ in range(5):
        with pytest.raises(ConfigurationInvalidError):
            Producer(DEAD | BAD[bad])

    assert not is_more_in_use(before)


@pytest.mark.slow
def test_a_dead_address_leaks_nothing(driver):
    """Producers that never reach a broker close, and leave nothing behind."""
    before = in_use()
    for _ in range(5):
        producer = Producer(DEAD, max_wait_timeout=0.05)
        with pytest.raises(DeliveryTimeoutError):
            producer.produce_sync(topic="events", payload=b"x")
        assert is_more_in_use(before)
        producer.close(force=True)

    await_true(lambda: not is_more_in_use(before))


@pytest.mark.slow
def test_producers_that_come_and_go_do_not_delay_each_other(driver, make_producer):
    """Two tasks make, use and close a producer each, 100 times: no send is late."""

    def come_and_go():
        longest = 0.0
        for _ in range(100):
            producer = make_producer()
            started = time.monotonic()
            producer.produce_sync(topic="events", payload=b"x")
            longest = max(longest, time.monotonic() - started)
            producer.close()
        return longest

    if driver == "fd":
        longest = together([come_and_go] * 2)
    else:
        longest = []
        threads = [
            threading.Thread(target=lambda: longest.append(come_and_go()))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    assert len(longest) == 2
    assert max(longest) < 2


@pytest.mark.slow
def test_reports_are_handled_while_producers_are_made(make_producer, hub):
    """Reports, statistics and errors that arrive meanwhile are handled."""
    observed = {}

    def listen(producer):
        names = observed[producer.id] = set()

        def remember(event):
            names.add(event["producer_id"])

        for name in ("message.acknowledged", "statistics.emitted"):
            producer.monitor.subscribe(name, remember)

    def send():
        for _ in range(10):
            producer = make_producer({"statistics.interval.ms": 1})
            listen(producer)
            for _ in range(20):
                handle = producer.produce_async(topic="events", payload=b"x")
            handle.wait(10)
            producer.close()

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    together([send] * 4)
    await_true(lambda: not any(each.is_alive() for each in threads))

    assert len(observed) == 60
    assert [{name} for name in observed] == list(observed.values())


@pytest.mark.slow
@pytest.mark.patched
def test_a_listener_that_sleeps_leaves_no_hub_in_the_thread_that_polls(
    run_script, mock_cluster
):
    """In a patched program its sleep makes a hub there, which ends with the thread."""
    run_script(
        """
        import gevent, os
        from gevent.monkey import get_original
        from greendrop import Producer

        def descriptors():
            return len(os.listdir("/proc/self/fd"))

        def send():
            producer = Producer(kafka={"bootstrap.servers": servers})
            slept = []

            @producer.monitor.subscribe("message.acknowledged")
            def sleep(_):
                gevent.sleep(0.01)
                slept.append(True)

            producer.produce_async(topic="t", payload=b"x")
            while not slept:
                get_original("time", "sleep")(0.01)
            assert producer.polling == "thread"
            producer.close(10)

        def send_in_thread():
            done = []
            start = get_original("_thread", "start_new_thread")
            start(lambda: done.append(send()), ())
            with gevent.Timeout(20):
                while not done:
                    gevent.sleep(0.01)

        send_in_thread()
        before = descriptors()
        for _ in range(3):
            send_in_thread()
        with gevent.Timeout(5):
            while descriptors() > before:
                gevent.sleep(0.01)
        """,
        "patched",
        servers=mock_cluster.bootstrap_servers,
    )


def test_closing_writes_into_no_other_file(tmp_path):
    """A file that gets the number of a closed wake-up descriptor is not written to.

    A client's close runs callbacks, which used to signal, into the connections of
    other clients.
    """
    signal = WakeupFd()
    number = signal.read_fd
    signal.close()
    path = tmp_path / "stranger"

    with path.open("wb") as stranger:
        # The lowest free number is assigned next.
        assert number == stranger.fileno()
        signal.set()

    assert not path.read_bytes()


# --- open producers -------------------------------------------------------------------


def our_threads():
    """Return the names of this process's threads that are not librdkafka's."""
    threads = set()
    for thread in (PROC / "task").iterdir():
        with contextlib.suppress(OSError):  # the thread has just ended
            if not (thread / "comm").read_text().startswith("rdk:"):
                threads.add(thread.name)
    return threads


def threads_beside(before, wanted):
    """Count the new threads, once there are as many as expected."""
    # A thread of librdkafka has its name a moment after it was started.
    deadline = time.monotonic() + 5
    while len(our_threads() - before) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(our_threads() - before)


@pytest.mark.parametrize("count", [1, 10])
def test_a_connected_producer_has_few_threads(count, driver, make_producer):
    """In a hub a producer has only librdkafka's threads; elsewhere one more.

    It has no thread before its first use and after its end, and a new one afterwards.
    """
    before = our_threads()
    producers = [make_producer() for _ in range(count)]
    assert our_threads() <= before

    for producer in producers:
        producer.produce_sync(topic="events", payload=b"x")

    each = 1 if driver == "thread" else 0
    assert threads_beside(before, count * each) == count * each
    for producer in producers[1:]:
        producer.close()
    assert threads_beside(before, each) == each
    producers[0].close()
    assert threads_beside(before, 0) == 0
    make_producer().produce_sync(topic="events", payload=b"x")
    assert threads_beside(before, each) == each


def test_nothing_is_opened_before_the_first_message(driver, make_producer):
    """Making, naming and closing a producer opens no descriptor and no thread."""
    before = in_use()

    producer = make_producer()
    assert "configured" in repr(producer)
    assert producer.queue_size == 0
    assert not is_more_in_use(before)
    producer.close()

    assert not is_more_in_use(before)


def wakeups():
    """Count how often this thread has gone to sleep."""
    status = Path("/proc/thread-self/status").read_text()
    (line,) = (each for each in status.splitlines() if each.startswith("voluntary"))
    return int(line.split()[1])


def test_a_client_has_few_enough_attributes(make_producer):
    """CPython stores up to 29 of them in the object itself; more slow sends down."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"x")

    assert len(vars(producer._slot.client)) <= 29


@pytest.mark.slow
def test_an_idle_producer_does_not_wake_its_hub(make_producer, hub):
    """A connected producer that is not used does not wake its hub."""
    producer = make_producer({"statistics.interval.ms": 0})
    producer.produce_sync(topic="events", payload=b"x")
    gevent.sleep(1)  # the safety timer fires once more, and then not again
    before = wakeups()

    gevent.sleep(2)

    assert wakeups() - before <= 4
    assert producer.polling == "fd"


@pytest.mark.slow
def test_the_thread_of_an_idle_producer_uses_little_time(make_producer):
    """Where a thread polls, an idle producer costs under one percent of a processor."""
    producer = make_producer({"statistics.interval.ms": 0})
    producer.produce_sync(topic="events", payload=b"x")
    before = time.process_time()

    time.sleep(1)

    assert time.process_time() - before < 0.02
    assert producer.polling == "thread"


@pytest.mark.slow
def test_closing_lets_others_run(mock_cluster, make_producer, longest_gap):
    """Closing many producers with messages in flight never holds the hub."""
    mock_cluster.round_trip(0.4)
    producers = [make_producer() for _ in range(10)]
    handles = [
        each.produce_async(topic="events", payload=b"x")
        for each in producers
        for _ in range(10)
    ]

    with longest_gap() as gap:
        tasks = [Task(each.close) for each in producers]
        for task in tasks:
            task.join()

    assert all(each.report for each in handles)
    assert gap.seconds < 0.2
