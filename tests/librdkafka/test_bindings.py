import os
import select
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.cimpl import Consumer, Producer

from greendrop._librdkafka import bindings
from greendrop._librdkafka.bindings import MainQueue
from greendrop.errors import GreendropError
from greendrop.testing._mock_brokers import MockBrokers
from tests.interpreter import run


@pytest.fixture(scope="module")
def brokers():
    """One mock broker for all tests that do not affect it."""
    cluster = MockBrokers(1)
    yield cluster.bootstraps
    cluster.destroy()


@pytest.fixture
def make_producer(brokers):
    """Make producers of confluent-kafka that are closed when the test ends."""
    with ExitStack() as stack:

        def make(cls=Producer, **kafka):
            config = {"bootstrap.servers": brokers, "linger.ms": 0, "log_level": 0}
            return stack.enter_context(closing(cls({**config, **kafka})))

        yield make


@pytest.fixture
def make_queue():
    """Find main queues that are released when the test ends."""
    with ExitStack() as stack:

        def make(producer):
            queue = MainQueue.of(producer)
            assert queue is not None
            stack.callback(queue.release)
            return queue

        yield make


@pytest.fixture
def fd():
    """Make a descriptor like the one that greendrop gives to librdkafka."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    yield SimpleNamespace(reader=reader, writer=writer)
    os.close(reader)
    os.close(writer)


def readable(fd, seconds=5.0) -> bool:
    """Return whether a descriptor becomes readable in time."""
    return bool(select.select([fd.reader], [], [], seconds)[0])


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


# -- the probe ----------------------------------------------------------------------


def test_queue_of_a_producer_is_found(make_producer, make_queue):
    """The main queue of a live producer is found."""
    make_queue(make_producer())


class Slotted(Producer):
    """A subclass with a slot of its own."""

    __slots__ = ("mine",)


class Dictionary(Producer):
    """A subclass with a dictionary."""


@pytest.mark.parametrize("cls", [Slotted, Dictionary])
def test_queue_of_a_subclass_is_found(make_producer, make_queue, cls):
    """A subclass keeps the client at the same offset as the base class."""
    make_queue(make_producer(cls))


class Impostor:
    """An object that claims to be a producer."""

    @property
    def __class__(self):
        """Claim to be a producer."""
        return Producer


@pytest.mark.parametrize(
    "foreign", [object(), None, 7, "x", Producer, Impostor(), SimpleNamespace()]
)
def test_foreign_objects_have_no_queue(foreign):
    """Other objects get None, also an object that claims to be a producer."""
    assert MainQueue.of(foreign) is None


def test_consumers_have_no_queue(brokers):
    """A consumer has a client too, but it is not greendrop's concern."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "g"})
    try:
        assert MainQueue.of(consumer) is None
    finally:
        consumer.close()


def test_unfinished_producers_have_no_queue():
    """A producer whose constructor never ran has no client."""
    assert MainQueue.of(Producer.__new__(Producer)) is None


def test_closed_producers_have_no_queue(brokers):
    """A closed producer has no client."""
    producer = Producer({"bootstrap.servers": brokers})
    producer.close()

    assert MainQueue.of(producer) is None
    assert bindings.fatal_error(producer) is None


@pytest.mark.parametrize("cls", [object, type("Grown", (Producer,), {}), Exception])
def test_unknown_layouts_are_not_inspected(cls):
    """A class without space for the pointer, or with another base, is not inspected."""
    assert not bindings._has_known_layout(cls)
    assert bindings._has_known_layout(Producer)


def test_greendrop_works_without_access_to_librdkafka():
    """Where librdkafka can't be found, every function has a harmless result."""
    run(
        """
        import sys
        from confluent_kafka.cimpl import Producer
        from greendrop._librdkafka import bindings, check

        producer = Producer({"bootstrap.servers": "", "log_level": 0})
        sys.platform = "win32"
        assert bindings.MainQueue.of(producer) is None
        assert bindings.fatal_error(producer) is None
        assert check.check_configuration({"nonsense": "x"}, ()) == {}
        assert bindings.error_codes() == {}
        """,
        "none",
    )


@pytest.mark.parametrize(
    "address",
    [0x8, 0xDEADBEE8, 0x7FFF00000000, 2**47 - 8, 2**63 - 8, 2**63, 2**64 - 0x1000],
)
def test_garbage_pointers_do_not_crash(address):
    """An unmapped address is recognised without being read."""
    assert not bindings._is_readable(address)


def test_live_memory_is_readable():
    """The page of a live object can be read."""
    assert bindings._is_readable(id(object()) & ~0xFFF)


@pytest.fixture
def no_descriptors():
    """Exhaust the file descriptors of the process."""
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        yield
    finally:
        for each in taken:
            os.close(each)


@pytest.mark.usefixtures("no_descriptors")
def test_memory_counts_as_unreadable_without_descriptors():
    """A process without free file descriptors can't probe, and gets False."""
    assert not bindings._is_readable(id(object()) & ~0xFFF)


def test_probed_layouts_need_no_descriptor(make_producer, make_queue, request):
    """A second look at a producer opens nothing, so that nothing can be left open.

    A signal handler that raises in between could leave a descriptor open, and a process
    without free descriptors would not learn of its fatal errors.
    """
    producer = make_producer()
    make_queue(producer)
    bindings.trigger_fatal_error(producer, 47, "fenced by a test")
    request.getfixturevalue("no_descriptors")

    code, _ = bindings.fatal_error(producer)

    assert code == 47
    with pytest.raises(KafkaException):
        producer.poll(0)


@linux
def test_probe_leaves_no_descriptor_open():
    """Probing and the test of the signal close the descriptors that they opened."""
    run(
        """
        import os
        from confluent_kafka.cimpl import Producer
        from greendrop._librdkafka.bindings import MainQueue

        producer = Producer({"bootstrap.servers": "", "log_level": 0})
        signal = os.eventfd(0, os.EFD_NONBLOCK)
        before = os.listdir("/proc/self/fd")
        queue = MainQueue.of(producer)
        assert queue.signal_on(signal)
        queue.release()
        assert before == os.listdir("/proc/self/fd")
        """,
        "none",
    )


# -- signals ------------------------------------------------------------------------


def test_report_signals_the_descriptor(make_producer, make_queue, fd):
    """A delivery report makes the descriptor readable, and a poll then handles it."""
    producer, seen = make_producer(), []
    assert make_queue(producer).signal_on(fd.writer)
    producer.poll(0)

    producer.produce("t", b"x", on_delivery=lambda *report: seen.append(report))

    while not seen:
        assert readable(fd)
        os.read(fd.reader, 4096)
        producer.poll(0)
    assert seen[0][0] is None


def test_signal_is_8_bytes_in_native_order(make_producer, make_queue, fd):
    """The signal is the number 1 in the form that eventfd expects."""
    queue = make_queue(make_producer())
    queue.signal_on(fd.writer)

    queue.wake()

    assert os.read(fd.reader, 4096) == (1).to_bytes(8, sys.byteorder)


@linux
def test_eventfd_is_signalled(make_producer, make_queue):
    """The signal makes an eventfd readable."""
    eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    queue = make_queue(make_producer())
    try:
        assert queue.signal_on(eventfd)
        queue.wake()
        assert os.eventfd_read(eventfd) == 1
        queue.release()
    finally:
        os.close(eventfd)


def test_signals_work_on_a_queue_with_entries(make_producer, make_queue, fd):
    """Existing entries of the queue are not mistaken for a broken signal."""
    producer = make_producer()
    producer.produce("t", b"x")
    deadline = time.monotonic() + 5
    queue = make_queue(producer)
    while not queue._library.rd_kafka_queue_length(queue._queue):
        assert time.monotonic() < deadline
        time.sleep(0.001)

    assert queue.signal_on(fd.writer)

    producer.poll(0)
    producer.produce("t", b"x")
    assert readable(fd)


def test_blocking_descriptor_is_refused(make_producer, make_queue, fd):
    """A blocking descriptor could block librdkafka for ever, so it is refused."""
    os.set_blocking(fd.writer, True)
    queue = make_queue(make_producer())

    assert not queue.signal_on(fd.writer)

    queue.wake()
    assert not readable(fd, 0)


def test_wake_ends_a_short_poll():
    """A waiting poll returns when another thread wakes it."""
    run(
        """
        import threading, time
        from confluent_kafka.cimpl import Producer
        from greendrop._librdkafka.bindings import MainQueue

        producer = Producer({"bootstrap.servers": "", "log_level": 0})
        queue = MainQueue.of(producer)
        took = []
        for _ in range(5):
            waker = threading.Timer(0.01, queue.wake)
            waker.start()
            started = time.monotonic()
            producer.poll(0.19)
            took.append(time.monotonic() - started)
            waker.join()
        assert min(took) < 0.15, took
        """,
        "none",
    )


def test_yield_poll_ends_the_poll(make_producer, make_queue, fd):
    """A callback can end its poll; the rest is handled later, in order."""
    producer, seen = make_producer(), []
    queue = make_queue(producer)

    def report(_, message):
        seen.append(message.value())
        queue.yield_poll()

    assert queue.signal_on(fd.writer)
    for number in range(3):
        producer.produce("t", str(number), partition=0, on_delivery=report)
    served = []
    while len(seen) < 3:
        assert readable(fd)
        os.read(fd.reader, 4096)
        before = len(seen)
        producer.poll(0)
        served.append(len(seen) - before)

    assert max(served) == 1
    assert seen == [b"0", b"1", b"2"]


def test_release_ends_the_signals(make_producer, make_queue, fd):
    """After release nothing is written, and the queue can't be used by mistake."""
    producer, seen = make_producer(), []
    queue = make_queue(producer)
    queue.signal_on(fd.writer)
    producer.poll(0)
    queue.release()

    producer.produce("t", b"x", on_delivery=lambda *_: seen.append(1))
    while not seen:
        producer.poll(0.05)

    queue.release()
    queue.wake()
    assert not queue.signal_on(fd.writer)
    assert not readable(fd, 0)


def test_release_after_close_does_not_crash(brokers, fd):
    """Release before close is the right order; the opposite order does not crash."""
    producer = Producer({"bootstrap.servers": brokers})
    queue = MainQueue.of(producer)
    queue.signal_on(fd.writer)

    producer.close()

    queue.release()


# -- fatal errors -------------------------------------------------------------------


def test_fatal_error_is_unwrapped(make_producer):
    """The error that ended a producer is reported with its own code and text."""
    producer = make_producer()
    assert bindings.fatal_error(producer) is None

    assert bindings.trigger_fatal_error(producer, 47, "fenced by a test") == 0

    code, text = bindings.fatal_error(producer)
    assert code == 47
    assert "fenced by a test" in text
    with pytest.raises(KafkaException):
        producer.poll(0)


def test_second_fatal_error_is_ignored(make_producer):
    """The first error is kept."""
    producer = make_producer()
    bindings.trigger_fatal_error(producer, 47, "first")

    assert bindings.trigger_fatal_error(producer, 45, "second") == -177
    assert bindings.fatal_error(producer)[0] == 47
    with pytest.raises(KafkaException):
        producer.poll(0)


def test_fatal_error_needs_a_producer():
    """Other objects have no fatal error and can't be given one."""
    assert bindings.fatal_error(object()) is None
    with pytest.raises(GreendropError):
        bindings.trigger_fatal_error(object(), 47, "x")


def test_error_codes_are_known_by_name():
    """The names of Kafka's and librdkafka's errors have their numbers."""
    codes = bindings.error_codes()

    assert codes["MSG_SIZE_TOO_LARGE"] == 10
    assert codes["_MSG_TIMED_OUT"] == -192


def test_import_loads_nothing():
    """Importing the module loads neither confluent_kafka nor gevent."""
    run(
        """
        import sys, types

        package = types.ModuleType("greendrop")
        package.__path__ = [folder]
        sys.modules["greendrop"] = package
        import greendrop._librdkafka.check
        assert "confluent_kafka" not in sys.modules
        """,
        "none",
        folder=str(Path(bindings.__file__).parents[1]),
    )
