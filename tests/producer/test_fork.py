"""Producers on both sides of a fork."""

import pytest

from tests.interpreter import MODES

pytestmark = [pytest.mark.slow, pytest.mark.patched]

every_mode = pytest.mark.parametrize("mode", MODES)

# All programs here run with every way to fork that they have.
BEGIN = """
    import os, sys, threading, time
    from greendrop import Producer, ProducerClosedError
    from greendrop import ProducerUsedInParentProcessError
    from tests.forking import Fork, forks, wait_for_exit
    from tests.tasks import Task, sleep, together

    def send(topic="events"):
        return producer.produce_sync(topic=topic, payload=b"x").topic

    def caught(call, *arguments):
        try:
            call(*arguments)
        except Exception as error:
            return type(error).__name__

    producer = Producer({"bootstrap.servers": servers})
    sleep(0)
"""


@every_mode
def test_a_child_may_not_use_a_producer_that_its_parent_used(
    mode, mock_cluster, run_script
):
    """Each use in the child raises until reset(), and works afterwards."""
    program = """
    def use():
        batch = [{"topic": "events", "payload": b"x"}]
        errors = {caught(send), caught(send), caught(producer.produce_many_sync, batch)}
        before = repr(producer), producer.queue_size, producer.status
        producer.reset()
        sent = [send("child") for _ in range(5)]
        producer.close()
        return sorted(errors), sent

    send()
    for name, fork in forks().items():
        errors, sent = Fork(use, fork).result()
        assert errors == ["ProducerUsedInParentProcessError"], (name, errors)
        assert sent == ["child"] * 5, (name, sent)
        assert send() == "events"
    producer.close()
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)


@every_mode
def test_a_parent_loses_no_wakeup_to_its_child(mode, mock_cluster, run_script):
    """A child that runs its copy of the hub takes no reports from the parent."""
    program = """
    def live():
        deadline = time.monotonic() + 0.8
        while time.monotonic() < deadline:
            sleep(0.01)

    send()
    slowest = 0
    for fork in forks().values():
        child = Fork(live, fork)
        for _ in range(200):
            started = time.monotonic()
            send()
            slowest = max(slowest, time.monotonic() - started)
        child.result()
        send()
    producer.close()
    print(slowest)
    """

    ended = run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)

    # The safety timer would make up for a lost wake-up after half a second.
    assert float(ended.stdout) < 0.4


@pytest.mark.parametrize("loop", ["libev-cext", "libev-cffi", "libuv"])
def test_no_loop_of_gevent_loses_wakeups_to_a_child(
    loop, mock_cluster, run_script, monkeypatch
):
    """The same holds for each of gevent's loops, when gevent forks."""
    program = """
    def live():
        sleep(0.5)
        producer.reset()
        sent = send("child")
        producer.close()
        return sent

    send()
    child = Fork(live)
    slowest = 0
    for _ in range(100):
        started = time.monotonic()
        send()
        slowest = max(slowest, time.monotonic() - started)
    assert child.result() == "child"
    send()
    producer.close()
    print(slowest)
    """
    monkeypatch.setenv("GEVENT_LOOP", loop)

    ended = run_script(
        BEGIN + program, "patched", servers=mock_cluster.bootstrap_servers
    )

    assert float(ended.stdout) < 0.4


@every_mode
def test_closing_in_a_child_leaves_the_parent_alone(mode, mock_cluster, run_script):
    """Close in the child returns at once, for good; the parent goes on."""
    program = """
    def close():
        started = time.monotonic()
        producer.close()
        took = time.monotonic() - started
        other = Producer({"bootstrap.servers": servers})
        other.produce_sync(topic="child", payload=b"x")
        other.close()
        return took < 0.5, producer.status, caught(send), caught(producer.close)

    send()
    for fork in forks().values():
        result = Fork(close, fork).result()
        assert result == [True, "closed", "ProducerClosedError", None], result
        assert send() == "events"
    producer.close()
    assert producer.status == "closed"
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)


@every_mode
def test_a_child_that_exits_leaves_the_parent_alone(
    mode, mock_cluster, run_script, stored
):
    """A child that exits normally exits quickly and sends none of its parent's data."""
    program = """
    send()
    handles = [producer.produce_async(topic="events", payload=b"x") for _ in range(50)]
    for fork in forks().values():
        pid = fork()
        if not pid:
            sys.exit(3)
        started = time.monotonic()
        assert wait_for_exit(pid) == 3
        assert time.monotonic() - started < 1
        assert send() == "events"
    reports = [each.wait(10) for each in handles]
    producer.close()
    print(len(reports) + 1 + len(forks()))
    """
    mock_cluster.round_trip(0.1)

    ended = run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)

    assert stored("events") == int(ended.stdout)


@every_mode
def test_producer_closed_before_the_fork_is_closed_after_it(
    mode, mock_cluster, run_script
):
    """A producer that was closed stays closed in the child, whatever is called."""
    program = """
    def use():
        errors = [caught(send)]
        producer.reset()
        return [*errors, caught(send), caught(producer.close), producer.status]

    send()
    producer.close()
    for fork in forks().values():
        result = Fork(use, fork).result()
        assert result == [
            "ProducerClosedError", "ProducerClosedError", None, "closed"
        ], result
    assert caught(send) == "ProducerClosedError"
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)


@every_mode
def test_producer_configured_before_the_fork_works_on_both_sides(
    mode, mock_cluster, run_script, stored
):
    """A producer that is only constructed before the fork needs no care."""
    program = """
    def use():
        sent = send()
        producer.close()
        return sent

    for fork in forks().values():
        children = [Fork(use, fork) for _ in range(3)]
        assert [each.result() for each in children] == ["events"] * 3
    send()
    producer.close()
    print(1 + 3 * len(forks()))
    """

    ended = run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)

    assert stored("events") == int(ended.stdout)


@pytest.mark.parametrize("mode", ["none", "unpatched", "patched"])
def test_forking_during_a_load_loses_no_message(mode, mock_cluster, run_script, stored):
    """Forks during a load from other tasks cause no hang and lose no message."""
    program = """
    def load():
        count = 0
        while loading:
            try:
                handles = producer.produce_many_async(
                    [{"topic": "events", "payload": b"x"}] * 50
                )
                count += len([each.wait(10) for each in handles])
            except ProducerUsedInParentProcessError:
                # A child has copies of all greenlets, which go on running. Threads that
                # end there are an error to `threading`, when they are greenlets.
                sleep(60)
        return count

    def use():
        error = caught(send)
        sleep(0.01)
        producer.reset()
        return error, send("child")

    loading = True
    # Native threads in every mode but "patched".
    counts = []
    threads = [
        threading.Thread(target=lambda: counts.append(load())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    task = Task(load)
    for fork in forks().values():
        for _ in range(5):
            sleep(0.02)
            result = Fork(use, fork).result()
            assert result == ["ProducerUsedInParentProcessError", "child"], result
    loading = False
    counts.append(task.join())
    while any(thread.is_alive() for thread in threads):
        sleep(0.01)
    producer.close()
    assert len(counts) == 4
    print(sum(counts))
    """

    ended = run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)

    assert stored("events") == int(ended.stdout)


@pytest.mark.parametrize("mode", ["none", "unpatched", "patched"])
def test_children_of_multiprocessing_can_use_a_producer(
    mode, mock_cluster, run_script, stored
):
    """A process of multiprocessing, forked or spawned, is a child like any other."""
    program = """
    import multiprocessing
    from multiprocessing.connection import wait

    def use(answers):
        answers.send([caught(send), producer.reset(), send("child")])
        producer.close()

    send()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=use, args=(theirs,))
    process.start()
    assert ours.poll(10)
    result = ours.recv()
    assert result == ["ProducerUsedInParentProcessError", None, "child"], result
    assert wait([process.sentinel], 10)

    process = multiprocessing.get_context("spawn").Process(
        target=exec,
        args=(
            "from greendrop import Producer\\n"
            f"with Producer({{'bootstrap.servers': {servers!r}}}) as producer:\\n"
            "    producer.produce_sync(topic='child', payload=b'x')",
        ),
    )
    process.start()
    assert wait([process.sentinel], 10)
    assert send() == "events"
    producer.close()
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)

    assert stored("child") == 2


@every_mode
def test_a_child_can_be_forked_again(mode, mock_cluster, run_script):
    """A producer that a child resets and uses is inherited by its own children."""
    program = """
    def use(depth):
        error = caught(send)
        producer.reset()
        sent = send("child")
        below = Fork(lambda: use(depth - 1)).result() if depth else []
        assert send("child") == "child"
        producer.close()
        return [error, sent, *below]

    send()
    result = Fork(lambda: use(2)).result()
    assert result == ["ProducerUsedInParentProcessError", "child"] * 3, result
    assert send() == "events"
    producer.close()
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)


@pytest.mark.parametrize("mode", ["none", "unpatched", "patched"])
def test_handles_of_the_parent_can_not_be_waited_for_in_the_child(
    mode, mock_cluster, run_script
):
    """Waiting in the child for a message of the parent raises and ends the wait."""
    program = """
    def use():
        return caught(handle.wait, 5), handle.done

    send()
    for fork in forks().values():
        handle = producer.produce_async(topic="events", payload=b"x")
        result = Fork(use, fork).result()
        assert result == ["ProducerUsedInParentProcessError", False], result
        assert handle.wait(10).topic == "events"
    producer.close()
    """
    mock_cluster.delay_requests("Produce", 0.5, times=3)

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)


@pytest.mark.parametrize("mode", ["none", "unpatched", "patched"])
def test_a_child_drops_the_producer_of_its_parent(mode, mock_cluster, run_script):
    """Collecting the inherited producer in the child is quick and closes nothing."""
    program = """
    import gc, warnings

    def drop():
        global producer
        started = time.monotonic()
        with warnings.catch_warnings(record=True) as warned:
            del producer
            gc.collect()
        return time.monotonic() - started < 0.5, [str(each.message) for each in warned]

    send()
    handle = producer.produce_async(topic="events", payload=b"x")
    result = Fork(drop).result()
    assert result == [True, []], result
    assert handle.wait(10).topic == "events"
    producer.close()
    """
    mock_cluster.round_trip(0.1)

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)


@every_mode
def test_listeners_get_no_events_of_the_other_process(mode, mock_cluster, run_script):
    """A child that closes an inherited producer emits nothing.

    Its own messages, after reset(), emit events in the child only; statistics go on in
    the parent.
    """
    program = """
    producer = Producer(
        {"bootstrap.servers": servers, "statistics.interval.ms": 50},
        id="p",
        stall_alarm=0.2,
    )
    events = []
    for name in (
        "producer.connected", "producer.closing", "producer.closed",
        "message.acknowledged", "error.occurred", "statistics.emitted",
    ):
        producer.monitor.subscribe(name, lambda event: events.append(event.name))

    def app_events():
        return [name for name in events if name != "statistics.emitted"]

    def close():
        events.clear()
        producer.close()
        producer.close()
        return app_events(), producer.status

    def reset():
        events.clear()
        producer.reset()
        send("child")
        producer.close()
        return app_events()

    send()
    for name, fork in forks().items():
        assert Fork(close, fork).result() == [[], "closed"], name
        assert Fork(reset, fork).result() == [
            "producer.connected",
            "message.acknowledged",
            "producer.closing",
            "producer.closed",
        ], name
        events.clear()
        send()
        assert app_events() == ["message.acknowledged"], (name, events)
        deadline = time.monotonic() + 10
        while "statistics.emitted" not in events:
            assert time.monotonic() < deadline
            sleep(0.01)
    producer.close()
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)


@every_mode
def test_locks_that_a_thread_of_the_parent_held_are_free(
    mode, mock_cluster, run_script
):
    """Another thread, which the child does not have, holds a lock during the fork."""
    program = """
    from greendrop import _concurrency
    from greendrop import delivery

    held = [producer._core._connections.state.lock, delivery._swap]
    inside, over = _concurrency.allocate_lock(), _concurrency.allocate_lock()
    inside.acquire()
    over.acquire()

    def hold():
        for lock in held:
            lock.acquire()
        inside.release()
        over.acquire()
        for lock in held:
            lock.release()

    def use():
        handle = producer.produce_async(topic="events", payload=b"x")
        return handle.wait(5).topic

    _concurrency.start_thread(hold)
    inside.acquire()
    for fork in forks().values():
        assert Fork(use, fork).result() == "events"
    over.release()
    assert use() == "events"
    producer.close()
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)


@every_mode
def test_lock_that_a_task_of_the_parent_held_is_not_waited_for(
    mode, mock_cluster, run_script
):
    """Between two clients of a transactional producer only the lock shows the fork."""
    program = """
    from greendrop._concurrency import Deadline
    from greendrop._concurrency.fair_lock import LockRequest

    kafka = {"bootstrap.servers": servers, "transactional.id": "t-{pid}"}
    producer = Producer(kafka=kafka, max_wait_timeout=5.0)
    turn = LockRequest(-1)  # a thread
    assert producer._core.transactions._lock.acquire(turn, Deadline(0.0))

    def use():
        started = time.monotonic()
        refused = caught(send)
        took = time.monotonic() - started
        producer.reset()
        sent = send()
        producer.close()
        return [refused, took < 2, sent]

    for fork in forks().values():
        expected = ["ProducerUsedInParentProcessError", True, "events"]
        assert Fork(use, fork).result() == expected
    producer._core.transactions._lock.release(turn)
    assert send() == "events"
    producer.close()
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)


@every_mode
def test_closed_producer_stays_closed_after_reset(mode, mock_cluster, run_script):
    """Also if a task of the parent holds its transactions at the moment of the fork."""
    program = """
    from greendrop._concurrency import Deadline
    from greendrop._concurrency.fair_lock import LockRequest

    kafka = {"bootstrap.servers": servers, "transactional.id": "t-{pid}"}
    producer = Producer(kafka=kafka, max_wait_timeout=5.0)
    send()
    producer.close()
    turn = LockRequest(-1)  # a thread
    assert producer._core.transactions._lock.acquire(turn, Deadline(0.0))

    def use():
        producer.reset()
        return producer.status

    for fork in forks().values():
        assert Fork(use, fork).result() == "closed"
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)
