"""Fork markers: whether a process is the one that made the marker."""

import pytest

from greendrop import _concurrency
from tests.interpreter import MODES


@pytest.fixture(
    params=[_concurrency.fork_marker, _concurrency.PidMarker], ids=["memory", "pid"]
)
def mark(request):
    """Make a marker of either kind."""
    return request.param()


def test_a_marker_is_true_in_the_process_that_made_it(mark):
    """It stays true, however often it is read."""
    assert all(mark[0] for _ in range(3))
    assert all(mark.same_process for _ in range(3))


@pytest.mark.slow
@pytest.mark.patched
def test_a_marker_is_false_in_a_forked_child(run_script):
    """The marker is false in a child, also if C code forked it.

    uWSGI forks in C, without running Python's hooks.
    """
    program = """
    import ctypes, os
    from greendrop import _concurrency
    from tests.forking import Fork

    for make in _concurrency.fork_marker, _concurrency.PidMarker:
        for fork in os.fork, ctypes.PyDLL(None).fork:
            mark = make()
            child = lambda: [bool(mark[0]), mark.same_process]
            assert Fork(child, fork).result() == [False, False]
            assert mark[0] and mark.same_process
    """

    run_script(program, "none")


def test_markers_are_cheap_on_linux():
    """Where memory can be wiped at a fork, reading a marker makes no system call."""
    assert not isinstance(_concurrency.fork_marker(), _concurrency.PidMarker)


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("mode", MODES)
def test_a_producer_notices_a_fork_in_c(mode, mock_cluster, run_script):
    """A used producer raises in a child although no fork hook has run."""
    program = """
    import ctypes
    from greendrop import Producer, ProducerUsedInParentProcessError
    from tests.forking import Fork

    producer = Producer({"bootstrap.servers": servers})
    producer.produce_sync(topic="events", payload=b"x")

    def use():
        try:
            producer.produce_async(topic="events", payload=b"x")
        except ProducerUsedInParentProcessError:
            return True

    assert Fork(use, ctypes.PyDLL(None).fork).result()
    producer.produce_sync(topic="events", payload=b"x")
    producer.close()
    """

    run_script(program, mode, servers=mock_cluster.bootstrap_servers)


@pytest.mark.slow
@pytest.mark.patched
def test_a_fork_in_c_is_noticed_by_every_use(mock_cluster, run_script, stored):
    """As in uWSGI no hook ran: each use raises until reset(); nothing is resent.

    Messages that the parent buffered or has in flight are sent only by the parent, also
    when the child exits normally. The parent is idle when it forks: with threads
    that run then, Python itself may hang in the child.
    """
    program = """
    import ctypes, sys, time
    from greendrop import Producer, ProducerUsedInParentProcessError
    from tests.forking import Fork, wait_for_exit

    fork = ctypes.PyDLL(None).fork
    message = {"topic": "events", "payload": b"x"}
    producer = Producer({"bootstrap.servers": servers})
    producer.produce_sync(**message)
    variant = producer.variant(topic_config={"acks": 1})
    producer.buffer(**message)
    uses = [
        lambda: producer.produce_sync(**message),
        lambda: producer.produce_async(**message),
        lambda: producer.produce_many_sync([message]),
        lambda: producer.produce_many_async([message]),
        lambda: producer.tombstone_async(topic="events", key=b"k", partition=0),
        lambda: producer.buffer(**message),
        lambda: producer.partition_count("events"),
        lambda: variant.produce_sync(**message),
        lambda: producer.purge(),
        lambda: producer.disconnect(),
        lambda: handle.wait(5),
    ]

    def raises(use):
        try:
            use()
        except ProducerUsedInParentProcessError:
            return True

    def in_child():
        raised = [raises(use) for use in uses]
        buffered = len(producer.buffered)
        producer.reset()
        producer.produce_sync(topic="child", payload=b"x")
        producer.close()
        return raised, buffered

    handle = producer.produce_async(**message)
    result = Fork(in_child, fork).result()
    assert result == [[True] * len(uses), 0], result
    pid = fork()
    if not pid:
        sys.exit(3)
    assert wait_for_exit(pid) == 3
    handle.wait(10)
    producer.close()
    """
    mock_cluster.delay_requests("Produce", 0.3, times=2)

    run_script(program, "none", servers=mock_cluster.bootstrap_servers)

    assert (stored("events"), stored("child")) == (3, 1)
