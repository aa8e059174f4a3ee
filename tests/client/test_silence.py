"""The warning of a program that waits for its first message without a broker."""

import sys

import pytest

from greendrop._client import silence
from greendrop._librdkafka.bindings import has_metadata
from greendrop.producer import Producer
from tests.interpreter import run

MODES = ["none", "unpatched", "patched"]

# Nothing listens at the first address; the second accepts connections and stays silent.
PROGRAM = """
    import logging, socket

    # The test suite's own programs suppress this warning.
    logging.getLogger("greendrop.librdkafka").handlers.clear()

    from greendrop import ProduceError, Producer

    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    if silent:
        server.listen(50)
    address = "127.0.0.1:%d" % server.getsockname()[1]
    print(address)
    kafka = {"bootstrap.servers": address, "message.timeout.ms": 5000}
    if transactional:
        kafka["transactional.id"] = "p"
    producer = Producer(kafka=kafka, max_wait_timeout=5.5, id="p")
    try:
        producer.produce_sync(topic="t", payload=b"x")
    except ProduceError:
        print("not delivered")
    producer.close(force=True)
    server.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("transactional", [False, True])
def test_program_without_a_broker_logs_one_warning(mode, silent, transactional):
    """One line on standard error names the address, without any logging configured.

    A transactional producer waits for the brokers before its first message.
    """
    ended = run(PROGRAM, mode, fails=True, silent=silent, transactional=transactional)

    address, *rest = ended.stdout.splitlines()
    assert (ended.returncode, rest) == (0, ["not delivered"]), ended.stderr
    (line,) = ended.stderr.splitlines()
    assert address in line
    assert ("no answer within 1.5 s" if silent else "Connection refused") in line


def test_client_with_metadata_is_not_watched(mock_cluster):
    """Once a broker has described its cluster, there is no warning any more."""
    producer = Producer({"bootstrap.servers": mock_cluster.bootstrap_servers})
    producer.produce_sync(topic="t", payload=b"x")
    poll_loop = producer._core.main.client.poll_loop

    assert has_metadata(poll_loop.kafka_handle.producer) is True
    # Some polls return while a message is in flight, and look.
    mock_cluster.round_trip(0.5)
    producer.produce_sync(topic="t", payload=b"x")
    assert poll_loop._silence is None
    producer.close()


def test_other_objects_have_no_metadata():
    """A producer in memory has no metadata, so no warning is logged."""
    assert has_metadata(object()) is None
    assert silence.PATIENCE <= 2


INTERRUPTED = """
    import _thread, logging, signal, sys, time

    logging.getLogger("greendrop").addHandler(logging.NullHandler())

    from greendrop import Producer

    producer = Producer(kafka={"bootstrap.servers": "127.0.0.1:9"}, id="p")
    producer.produce_async(topic="orders", payload=b"x")
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        if closes:
            producer.close()
        else:
            producer.produce_sync(topic="orders", payload=b"x")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        producer.close(force=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("closes", [False, True])
def test_interrupted_wait_names_its_subject(mode, closes):
    """The traceback of Ctrl-C ends with the message, or the producer, it waited for."""
    ended = run(INTERRUPTED, mode, fails=True, closes=closes)

    lines = ended.stderr.strip().splitlines()
    assert "KeyboardInterrupt" in lines[-2], ended.stderr
    if closes:
        assert lines[-1].startswith("greendrop: interrupted while closing producer 'p'")
        assert "1 message in flight" in lines[-1]
    else:
        assert "waiting for the delivery of a message to 'orders'" in lines[-1]
        assert "Connection refused" in lines[-1]
