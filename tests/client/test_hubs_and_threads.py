"""Pollers with several hubs, without a hub, and with a hub that goes away."""

import gc
import threading
import time

import gevent
import pytest

from greendrop import _concurrency
from tests.tasks import LongestGap, await_true, together

#: Seconds that a hub may be held, on a busy machine.
HELD = 0.5
#: Seconds of a round trip that a blocked hub would be held for.
LONG_TRIP = 1.0


def in_threads(functions):
    """Run functions in native threads; the calling thread's hub runs meanwhile."""
    results = []

    def run(function):
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised below
            results.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in functions]
    for thread in threads:
        thread.start()
    await_true(lambda: not any(thread.is_alive() for thread in threads), 20)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def with_own_hub(function):
    """Wrap a function to make a hub for its thread and destroy it at the end."""

    def run():
        try:
            gevent.get_hub()
            return function()
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    return run


# --- several hubs and threads ---------------------------------------------------------


@pytest.mark.slow
def test_hubs_of_several_threads_share_a_producer(mock_cluster, make_producer):
    """Greenlets of three hubs send by one producer; each hub lets others run."""
    producer = make_producer()
    mock_cluster.round_trip(LONG_TRIP)

    def send():
        return [producer.produce_sync(topic="events", payload=b"x") for _ in range(3)]

    def greenlets():
        with LongestGap() as gap:
            reports = [each for sent in together([send] * 5) for each in sent]
        return reports, gap.seconds

    results = in_threads([with_own_hub(greenlets)] * 3)

    places = {
        (each.partition, each.offset) for reports, _ in results for each in reports
    }
    assert len(places) == 45
    assert max(gap for _, gap in results) < HELD


def test_threads_send_beside_a_hub(make_producer, hub):
    """Native threads and greenlets send by one producer that the hub polls."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"first")

    def send():
        return [producer.produce_sync(topic="events", payload=b"x") for _ in range(50)]

    greenlets = [gevent.spawn(send) for _ in range(4)]
    results = in_threads([send] * 4)
    results += [each.get(timeout=10) for each in greenlets]

    places = {(each.partition, each.offset) for sent in results for each in sent}
    assert len(places) == 400
    assert producer.polling == "fd"


def test_the_thread_pool_of_gevent_may_send(make_producer, longest_gap, mock_cluster):
    """Functions in gevent's thread pool send and wait, beside the hub's greenlets."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"first")
    mock_cluster.round_trip(0.05)

    def send():
        return producer.produce_sync(topic="events", payload=b"x")

    with longest_gap() as gap:
        pool = gevent.get_hub().threadpool
        results = [each.get(timeout=10) for each in [pool.spawn(send) for _ in "1234"]]

    assert len({(each.partition, each.offset) for each in results}) == 4
    assert gap.seconds < HELD


def test_threads_send_while_the_hub_is_blocked(make_producer, hub):
    """A hub whose thread is blocked natively does not hold up other threads."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"first")
    reports = []

    def send():
        reports.extend(
            producer.produce_sync(topic="events", payload=b"x") for _ in range(5)
        )

    thread = threading.Thread(target=send)
    thread.start()
    # This blocks the thread and its hub.
    thread.join(15)

    assert not thread.is_alive()
    assert len(reports) == 5


def test_threads_and_the_batcher_keep_their_order(make_producer, hub):
    """Messages of the hub and of a thread to one partition keep each one's order."""
    producer = make_producer()
    places = {}

    def send(sender):
        handles = [
            producer.produce_async(topic="events", payload=b"x", partition=0)
            for _ in range(2_000)
        ]
        places[sender] = [each.wait(10).offset for each in handles]

    greenlet = gevent.spawn(send, "greenlet")
    in_threads([lambda: send("thread")])
    greenlet.get(timeout=10)

    assert sorted(places["greenlet"] + places["thread"]) == list(range(4_000))
    for offsets in places.values():
        assert offsets == sorted(offsets)


# --- replacing a poller ---------------------------------------------------------------


def test_a_hub_takes_over_from_the_thread(make_producer, longest_gap, mock_cluster):
    """A producer first used without a hub is polled by a hub that comes later."""
    producer = make_producer()
    polled = in_threads(
        [lambda: (producer.produce_sync(topic="t", payload=b"x"), producer.polling)]
    )
    mock_cluster.round_trip(LONG_TRIP)

    with longest_gap() as gap:
        report = producer.produce_sync(topic="t", payload=b"x")

    assert polled[0][1] == "thread"
    assert producer.polling == "fd"
    assert report.topic == "t"
    assert gap.seconds < HELD


def test_taking_over_loses_nothing(mock_cluster, make_producer, stored):
    """Messages that are in flight when the hub takes over get their reports."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"first")
    mock_cluster.round_trip(0.05)
    for _ in range(5):
        handles = [
            producer.produce_async(topic="events", payload=b"x") for _ in range(100)
        ]
        gevent.get_hub()
        handles += [
            producer.produce_async(topic="events", payload=b"x") for _ in range(100)
        ]
        assert producer.polling == "fd"
        assert all(each.wait(10) for each in handles)
        gevent.get_hub().destroy(destroy_loop=True)
        assert producer.produce_sync(topic="events", payload=b"x")

    assert stored("events") == 1 + 5 * 201


# --- a hub that goes away -------------------------------------------------------------


def test_a_destroyed_hub_is_replaced(mock_cluster, make_producer, stored):
    """After hub.destroy() messages in flight and batched ones get their reports."""
    producer = make_producer()
    gevent.get_hub()
    producer.produce_sync(topic="events", payload=b"first")
    mock_cluster.round_trip(0.1)
    handles = [producer.produce_async(topic="events", payload=b"x") for _ in range(50)]

    gevent.get_hub().destroy(destroy_loop=True)

    handles.append(producer.produce_async(topic="events", payload=b"x"))
    assert all(each.wait(10) for each in handles)
    gevent.get_hub()
    assert producer.produce_sync(topic="events", payload=b"x")
    assert producer.polling == "fd"
    assert stored("events") == 53


def kill_our_greenlets():
    """Kill all greenlets of greendrop that the garbage collector knows."""
    gevent.killall(
        [
            each
            for each in gc.get_objects()
            if issubclass(type(each), gevent.Greenlet)
            and each.parent is gevent.get_hub()
            and "greendrop" in repr(each)
            and not each.dead
        ]
    )


def test_a_killed_poller_is_replaced(mock_cluster, make_producer, hub, stored):
    """No message is lost when the poller's greenlet is killed, early or late."""
    producer = make_producer()

    handles = [producer.produce_async(topic="events", payload=b"x")]
    kill_our_greenlets()  # before the poller runs first
    handles.append(producer.produce_async(topic="events", payload=b"x"))
    gevent.sleep(0.01)
    kill_our_greenlets()
    handles += [producer.produce_async(topic="events", payload=b"x") for _ in range(9)]

    assert all(each.wait(10) for each in handles)
    kill_our_greenlets()
    assert producer.produce_sync(topic="events", payload=b"x")
    kill_our_greenlets()
    started = time.monotonic()
    producer.close()
    assert time.monotonic() - started < 2
    assert stored("events") == 12


# In a fresh interpreter: gevent never frees a hub whose thread has ended.
HUB_THREAD_ENDS = """
    import gevent, threading, time
    from greendrop import Producer

    producer = Producer({"bootstrap.servers": servers})
    handles = []

    def send():
        gevent.spawn(producer.produce_sync, topic="events", payload=b"first").get()
        handles.extend(
            producer.produce_async(topic="events", payload=b"x") for _ in range(50)
        )

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()
    first = producer.polling
    if then == "hub":
        gevent.sleep(0)
    started = time.monotonic()
    if then == "close":
        producer.close()
    reports = [each.wait(10) for each in handles]
    took = time.monotonic() - started
    if then != "close":
        producer.produce_sync(topic="events", payload=b"x")
    print(first, producer.polling, len(reports), took < 3)
    producer.close()
"""


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize(
    ("then", "result"),
    [("hub", ("fd", 52)), ("thread", ("thread", 52)), ("close", ("None", 51))],
)
def test_a_hub_that_ended_with_its_thread_is_replaced(
    then, result, mock_cluster, run_script, stored
):
    """When the polling hub's thread ends, another hub, a thread or close takes over."""
    polling, count = result
    mock_cluster.round_trip(0.1)

    ended = run_script(
        HUB_THREAD_ENDS, "unpatched", servers=mock_cluster.bootstrap_servers, then=then
    )

    assert ended.stdout.split() == ["fd", polling, "50", "True"]
    assert stored("events") == count


# --- without the descriptor -----------------------------------------------------------

# As on a platform where librdkafka can't be reached: ctypes opens no library.
NO_LIBRARY = """
    import ctypes

    class NoLibrary:
        def __init__(self, *_, **__):
            raise OSError("no such library")

    ctypes.CDLL = ctypes.PyDLL = NoLibrary

    import time
    from greendrop import Producer
    from tests.tasks import LongestGap, sleep, together

    def send():
        return [producer.produce_sync(topic="events", payload=b"x") for _ in range(3)]

    sleep(0)
    with Producer({"bootstrap.servers": servers}) as producer:
        with LongestGap() as gap:
            reports = sum(together([send] * 10), [])
            handles = producer.produce_many_async(
                [{"topic": "events", "payload": b"x"}] * 1_000
            )
            reports += [each.wait(10) for each in handles]
        polling = producer.polling
    print(polling, len(reports), gap.ticks > 100, gap.seconds)
"""


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("mode", ["none", "unpatched", "patched", "late"])
def test_the_fallback_lets_others_run(mode, mock_cluster, run_script, stored):
    """Where librdkafka can't signal a descriptor, a thread polls and greenlets wait."""
    mock_cluster.round_trip(LONG_TRIP)

    ended = run_script(NO_LIBRARY, mode, servers=mock_cluster.bootstrap_servers)

    polling, count, ticked, gap = ended.stdout.split()
    assert (polling, count, ticked) == ("thread", "1030", "True")
    assert float(gap) < HELD
    assert stored("events") == 1030


# --- gevent's loops -------------------------------------------------------------------

EVERY_WAY = """
    import gevent, time
    from greendrop import Producer
    from tests.tasks import LongestGap, together

    producer = Producer({"bootstrap.servers": servers})
    gevent.sleep(0)
    # Only the main greenlet waits, and only for the report.
    producer.produce_sync(topic="events", payload=b"x")
    handles = [producer.produce_async(topic="events", payload=b"x") for _ in range(100)]
    assert len(gevent.wait(handles, timeout=10)) == 100

    def send():
        return [producer.produce_sync(topic="events", payload=b"x") for _ in range(5)]

    with LongestGap() as gap:
        reports = sum(together([send] * 200), [])
    assert (producer.polling, producer.queue_size) == ("fd", 0)
    # Nothing is left to wait for while the producer is idle.
    started = time.monotonic()
    assert gevent.wait() is True
    idle = time.monotonic() - started
    producer.produce_sync(topic="events", payload=b"x")
    producer.close()
    print(len(reports), idle < 1, gap.seconds)
"""


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("loop", ["libev-cext", "libev-cffi", "libuv"])
def test_every_loop_of_gevent_works(
    loop, mock_cluster, run_script, stored, monkeypatch
):
    """Sync, async, many greenlets, an idle producer and close work on each loop."""
    monkeypatch.setenv("GEVENT_LOOP", loop)
    mock_cluster.round_trip(0.01)

    ended = run_script(EVERY_WAY, "unpatched", servers=mock_cluster.bootstrap_servers)

    count, returned, gap = ended.stdout.split()
    assert (count, returned) == ("1000", "True")
    assert float(gap) < HELD
    assert stored("events") == 1_102


LONE_WAITERS = """
    import gevent
    from greendrop import DeliveryTimeoutError, Producer

    gevent.sleep(0)
    producer = Producer({"bootstrap.servers": servers}, max_wait_timeout=0.2)
    handle = producer.produce_async(topic="events", payload=b"x")
    handle.wait(10)
    assert gevent.wait([producer.produce_async(topic="events", payload=b"x")])
    with gevent.Timeout(10):
        producer.produce_many_sync([{"topic": "events", "payload": b"x"}] * 10)
    producer.close()
    producer = Producer({"bootstrap.servers": "127.0.0.1:1"}, max_wait_timeout=0.2)
    try:
        producer.produce_sync(topic="events", payload=b"x")
    except DeliveryTimeoutError:
        print("timed out")
    producer.close(force=True)
"""


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("loop", ["libev-cext", "libev-cffi", "libuv"])
def test_a_lone_waiter_gets_no_loop_exit(loop, mock_cluster, run_script, monkeypatch):
    """LoopExit is not raised where the program has nothing else to wait for."""
    monkeypatch.setenv("GEVENT_LOOP", loop)
    mock_cluster.round_trip(0.05)

    ended = run_script(
        LONE_WAITERS, "unpatched", servers=mock_cluster.bootstrap_servers
    )

    assert ended.stdout == "timed out\n"


def test_a_thread_without_a_hub_waits_natively(make_producer, mock_cluster):
    """Without a hub a wait blocks its thread only, and makes no hub."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"first")
    mock_cluster.round_trip(0.2)
    started = time.monotonic()

    results = in_threads(
        [lambda: producer.produce_sync(topic="events", payload=b"x")] * 8
    )

    assert len(results) == 8
    assert time.monotonic() - started < 1.2
    assert producer.polling == "thread"


@pytest.mark.slow
def test_calls_from_threads_do_not_end_the_loop(hub):
    """Two threads call into a hub all the time, while its timers fire.

    gevent's own mechanism miscounts within half a second: then the loop ends with
    LoopExit, though greenlets wait.
    """
    answered = []
    over = False
    _concurrency.ensure_threadsafe_calls(hub)
    # Not always 0: the main thread's next loop continues the count of the previous one.
    held_before = hub.loop.activecnt

    def call():
        for _ in range(10_000):
            _concurrency.call_soon_threadsafe(hub, answered.append, None)
            time.sleep(0.00002)

    def doze():
        while not over:
            gevent.sleep(0.001)  # the shortest timer of libuv

    dozing = [gevent.spawn(doze) for _ in range(30)]
    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(answered) < 20_000:
        gevent.sleep(0.01)
    over = True
    gevent.joinall(dozing)
    gevent.sleep(0.05)

    held_now = hub.loop.activecnt
    assert held_now == held_before


def test_a_thread_with_the_identifier_of_an_ended_poller_is_no_listener(make_producer):
    """The system gives identifiers again; such a thread may wait, and close."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"x")
    poller = producer._slot.client.poll_loop.poller
    identifier = poller._ident
    producer.close()
    taken_for_listeners = []
    # All at once, since a thread that starts alone gets the stack of the last one.
    together = threading.Barrier(20)

    def work():
        if threading.get_ident() == identifier:
            taken_for_listeners.append(poller.is_current())
        together.wait(10)

    for _ in range(50):
        if not taken_for_listeners:
            threads = [threading.Thread(target=work) for _ in range(together.parties)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    assert taken_for_listeners == [False]
