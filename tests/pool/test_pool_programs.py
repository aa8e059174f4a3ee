"""Pools in every kind of program, and on both sides of a fork."""

import pytest

from tests.interpreter import MODES

pytestmark = [pytest.mark.slow, pytest.mark.patched]

every_mode = pytest.mark.parametrize("mode", MODES)

BEGIN = """
    import os, threading, time
    from greendrop import PoolClosedError, Producer, ProducerPool
    from greendrop import ProducerUsedInParentProcessError
    from tests.forking import Fork, forks
    from tests.tasks import Task, await_true, sleep, together

    def make(slot):
        return Producer({"bootstrap.servers": servers}, id=f"slot-{slot}")

    def send(topic="events"):
        with pool.producer() as producer:
            producer.produce_sync(topic=topic, payload=b"x")
            return producer.id

    def caught(call, *arguments):
        try:
            call(*arguments)
        except Exception as error:
            return type(error).__name__

    def slots():
        # The ids of all producers of the pool.
        ids = []
        def use():
            with pool.producer(0) as producer:
                ids.append(producer.id)
                await_true(lambda: len(ids) == pool.size)
        together([use] * pool.size)
        return sorted(ids)

    pool = ProducerPool(make, size=2)
    sleep(0)
"""


@every_mode
def test_tasks_share_the_producers_of_a_pool(mode, mock_cluster, run_script, stored):
    """Two tasks at a time have a producer, and every task gets one."""
    program = """
    most = []

    def work():
        for _ in range(5):
            with pool.producer(10) as producer, pool.producer(0) as same:
                assert producer is same
                most.append(pool.size - pool.available)
                producer.produce_sync(topic="events", payload=b"x")
        return producer.id

    ids = together([work] * 10)
    assert set(ids) == {"slot-1", "slot-2"}, ids
    assert max(most) == 2
    pool.reload()
    assert slots() == ["slot-1", "slot-2"]
    assert send() == send() == send()
    pool.close()
    assert caught(send) == "PoolClosedError"
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)

    assert stored("events") == 53


@every_mode
def test_pool_made_before_the_fork_works_on_both_sides(
    mode, mock_cluster, run_script, stored
):
    """A pool that was not used before the fork needs no reset."""
    program = """
    def use():
        used = send(), slots()
        pool.close()
        return used

    for fork in forks().values():
        children = [Fork(use, fork) for _ in range(3)]
        for child in children:
            assert child.result() == ["slot-1", ["slot-1", "slot-2"]]
    send()
    pool.close()
    print(1 + 3 * len(forks()))
    """

    ended = run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)

    assert stored("events") == int(ended.stdout)


@every_mode
def test_a_child_may_not_use_a_pool_that_its_parent_used(
    mode, mock_cluster, run_script
):
    """Each use in the child raises until reset(), also of slots never used before."""
    program = """
    def use():
        errors = {caught(send), caught(slots), caught(pool.reload)}
        looked = repr(pool), pool.stats
        pool.reset()
        used = [send("child") for _ in range(3)], slots()
        pool.reset()
        pool.close()
        return sorted(errors), looked, used, caught(send)

    send()
    for name, fork in forks().items():
        result = Fork(use, fork).result()
        assert result == [
            ["ProducerUsedInParentProcessError"],
            ["<ProducerPool 2 of 2 available, 0 waiting>", [2, 2, 0]],
            [["slot-1"] * 3, ["slot-1", "slot-2"]],
            "PoolClosedError",
        ], (name, result)
        assert send() == "slot-1"
    pool.close()
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)


@every_mode
def test_tasks_of_the_parent_hold_no_slot_in_the_child(mode, mock_cluster, run_script):
    """After reset() all slots are free, although the parent's tasks use or want them.

    A block around the fork ends in the child too, and has no effect there.
    """
    program = """
    def hold():
        with pool.producer() as producer:
            await_true(lambda: done, 60)
            return producer.produce_sync(topic="events", payload=b"x").topic

    def use():
        pool.reset()
        return pool.stats, send("child"), slots()

    done = False
    holding = Task(hold)
    await_true(lambda: pool.available == 1)
    for fork in forks().values():
        with pool.producer() as producer:
            waiting = Task(send)
            await_true(lambda: pool.stats.waiting == 1)
            result = Fork(use, fork).result()
            reader, writer = os.pipe()
            pid = fork()
            if not pid:
                pool.reset()
        if not pid:
            os.write(writer, f"{pool.stats == (2, 2, 0)} {slots()}".encode())
            os._exit(0)
        os.close(writer)
        assert os.read(reader, 100) == b"True ['slot-1', 'slot-2']"
        os.close(reader)
        assert result == [[2, 2, 0], "slot-1", ["slot-1", "slot-2"]], result
        assert waiting.join() == producer.id
        assert pool.stats == (2, 1, 0)
    done = True
    assert holding.join() == "events"
    assert slots() == ["slot-1", "slot-2"]
    pool.close()
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)


def test_reload_before_the_fork_applies_after_it(mock_cluster, run_script):
    """A producer that is to be replaced on return is replaced in the child too."""
    program = """
    def use():
        pool.reset()
        with pool.producer() as fresh:
            return fresh is not producer, fresh.id

    with pool.producer() as producer:
        producer.produce_sync(topic="events", payload=b"x")
        pool.reload()
        assert Fork(use).result() == [True, "slot-1"]
    await_true(lambda: producer.status == "closed")
    pool.close()
    """

    run_script(BEGIN + program, "none", servers=mock_cluster.bootstrap_servers)


@every_mode
def test_closing_in_a_child_leaves_the_parent_alone(mode, mock_cluster, run_script):
    """Closing in the child returns at once, for good; the parent goes on."""
    program = """
    def close():
        started = time.monotonic()
        pool.close()
        took = time.monotonic() - started
        return took < 0.5, caught(send), caught(pool.close), pool.reset(), caught(send)

    for fork in forks().values():
        with pool.producer() as producer:
            producer.produce_sync(topic="events", payload=b"x")
            result = Fork(close, fork).result()
            closed = "PoolClosedError"
            assert result == [True, closed, None, None, closed], result
            assert send() == producer.id
    pool.close()
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)


@pytest.mark.parametrize("mode", ["none", "unpatched", "patched"])
def test_forking_while_others_use_the_pool_does_not_hang(
    mode, mock_cluster, run_script
):
    """A child does not hang, whatever another thread was doing with the pool."""
    program = """
    def churn():
        while busy:
            try:
                with pool.producer(0.001):
                    pass
            except TimeoutError:
                pass
            except (ProducerUsedInParentProcessError, PoolClosedError):
                sleep(60)  # a copy of this greenlet, in a child
            sleep(0)

    def use():
        error = caught(send)
        pool.reset()
        return error, send("child"), caught(pool.close)

    # All are made before the forks: librdkafka does not survive one in the middle of
    # making a client.
    slots()
    busy = True
    # Native threads in every mode but "patched".
    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    task = Task(churn)
    for fork in forks().values():
        for _ in range(20):
            sleep(0.003)
            result = Fork(use, fork).result()
            assert result == ["ProducerUsedInParentProcessError", "slot-1", None]
    busy = False
    task.join()
    while any(thread.is_alive() for thread in threads):
        sleep(0.01)
    assert slots() == ["slot-1", "slot-2"]
    pool.close()
    """

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)
