"""The exit of programs, and the outcome of messages in flight."""

import re
import signal
import time

import pytest

from tests import interpreter

pytestmark = [pytest.mark.slow, pytest.mark.patched]

every_mode = pytest.mark.parametrize("mode", interpreter.MODES)
three_modes = pytest.mark.parametrize("mode", ["none", "unpatched", "patched"])

BEGIN = """
    import gc, os, signal, sys, threading, time
    from greendrop import MessagesAbandonedError, Producer
    from tests.tasks import Task, sleep

    producer = Producer({"bootstrap.servers": servers})
    sleep(0)
"""


# --- programs without an explicit close -----------------------------------------------


@every_mode
def test_close_delivers_what_was_sent(mode, mock_cluster, run_script, stored):
    """A short program sends without waiting and closes: all messages arrive."""
    program = """
    handles = [producer.produce_async(topic="events", payload=b"x") for _ in range(100)]
    producer.close()
    assert all(each.report for each in handles)
    """
    mock_cluster.round_trip(0.05)

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)

    assert stored("events") == 100


ENDINGS = {
    "sys.exit": "sys.exit()",
    "sys.exit in a task": "Task(sys.exit).join()",
    "an error": "raise ValueError('an error')",
}


@every_mode
def test_exit_delivers_what_was_sent(mode, mock_cluster, run_script, stored):
    """A program that never closes its producer delivers its messages at exit."""
    program = """
    for _ in range(100):
        producer.produce_async(topic="events", payload=b"x")
    """
    mock_cluster.round_trip(0.05)

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)

    assert stored("events") == 100


@pytest.mark.parametrize("mode", ["none", "patched"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_an_early_exit_delivers_what_was_sent(
    mode, ending, mock_cluster, run_script, stored
):
    """The same holds for a program that exits before its last line."""
    program = f"""
    handles = [producer.produce_async(topic="events", payload=b"x") for _ in range(100)]
    {ENDINGS[ending]}
    """
    mock_cluster.round_trip(0.05)

    ended = run_script(
        BEGIN + program,
        mode,
        servers=mock_cluster.bootstrap_servers,
        fails=True,
    )

    assert ended.returncode == (ending == "an error")
    assert ("ValueError: an error" in ended.stderr) == (ending == "an error")
    assert "greendrop" not in ended.stderr
    assert stored("events") == 100


@pytest.mark.parametrize("mode", ["unpatched", "patched"])
def test_sys_exit_in_a_greenlet_delivers_what_was_sent(
    mode, mock_cluster, run_script, stored
):
    """A greenlet ends the program while others wait: all messages arrive."""
    program = """
    import gevent

    def send():
        producer.produce_sync(topic="events", payload=b"x")

    def end():
        gevent.sleep(0.01)
        sys.exit(3)

    gevent.joinall([gevent.spawn(send) for _ in range(20)] + [gevent.spawn(end)])
    print("unreached")
    """
    mock_cluster.round_trip(0.05)

    ended = run_script(
        BEGIN + program, mode, servers=mock_cluster.bootstrap_servers, fails=True
    )

    assert (ended.returncode, ended.stdout) == (3, "")
    assert stored("events") == 20


@three_modes
def test_an_unreachable_broker_does_not_delay_other_producers(
    mode, mock_cluster, run_script, stored
):
    """Each producer has its share of `exit_timeout`, in whatever order they close."""
    program = """
    nowhere = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
    away = [Producer(nowhere, exit_timeout=1.0) for _ in range(2)]
    for each in away:
        each.produce_async(topic="events", payload=b"x")
    producer.buffer_many({"topic": "events", "payload": b"x"} for _ in range(5))
    """
    servers = mock_cluster.bootstrap_servers

    run_script(BEGIN + program, mode, servers=servers, fails=True)

    assert stored("events") == 5


@three_modes
def test_an_interrupted_exit_reports_what_was_lost(mode, run_script):
    """Ctrl-C while producers close at exit ends the wait, without a traceback."""
    program = """
    nowhere = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
    away = [Producer(nowhere, id=f"away-{number}") for number in range(2)]
    for each in away:
        each.produce_async(topic="events", payload=b"x")
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    print(time.monotonic())
    """

    ended = run_script(BEGIN + program, mode, servers="-", fails=True)

    assert time.monotonic() - float(ended.stdout) < 3.0
    assert "_shutdown" not in ended.stderr
    for name in ("away-0", "away-1"):
        assert f"greendrop: producer '{name}'" in ended.stderr or (
            f"greendrop: closing producer '{name}' was interrupted" in ended.stderr
        )


@three_modes
def test_an_unreachable_broker_delays_exit_by_the_exit_timeout_only(mode, run_script):
    """All producers together take `exit_timeout`, and report the loss."""
    program = """
    producers = [
        Producer(
            {"bootstrap.servers": "127.0.0.1:1", "log_level": 0},
            id=f"lost-{number}",
            exit_timeout=0.5,
        )
        for number in range(3)
    ]
    for each in producers:
        for _ in range(10):
            each.produce_async(topic="events", payload=b"x")
    print(time.monotonic())
    """

    ended = run_script(BEGIN + program, mode, servers="-", fails=True)

    took = time.monotonic() - float(ended.stdout)
    assert ended.returncode == 0
    assert 0.4 < took < 2.5
    observed = re.findall(r"greendrop: producer '(.*)' .* 10 messages", ended.stderr)
    assert sorted(observed) == ["lost-0", "lost-1", "lost-2"]


@three_modes
def test_a_collected_producer_delivers_what_was_sent(
    mode, mock_cluster, run_script, stored
):
    """A collected producer delivers its messages, and warns that it was not closed."""
    program = """
    import warnings

    handles = [producer.produce_async(topic="events", payload=b"x") for _ in range(100)]
    with warnings.catch_warnings(record=True) as warned:
        del producer
        gc.collect()
    print([each.category.__name__ for each in warned])
    print(len([each.wait(10) for each in handles]))
    """
    mock_cluster.round_trip(0.05)

    ended = run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)

    assert ended.stdout.splitlines() == ["['ResourceWarning']", "100"]
    assert stored("events") == 100


@pytest.mark.parametrize("mode", ["none", "unpatched"])
def test_warnings_that_are_errors_change_nothing(
    mode, mock_cluster, run_script, stored
):
    """Where warnings are errors, a collected producer closes all the same."""
    program = """
    import warnings

    handle = producer.produce_async(topic="events", payload=b"x")
    from greendrop._producer import registry
    sys.unraisablehook = lambda _: None
    warnings.simplefilter("error")
    del producer
    gc.collect()
    handle.wait(10)
    deadline = time.monotonic() + 5
    while registry._in_use:
        assert time.monotonic() < deadline
        sleep(0.01)
    """
    mock_cluster.round_trip(0.02)

    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)

    assert stored("events") == 1


NO_MORE_THREADS = """
    # Python 3.12 does so when the main thread has ended, before any exit handler.
    from greendrop import _concurrency

    def refuse(*_):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    _concurrency.start_new_thread = refuse
"""


@three_modes
def test_exit_needs_no_new_thread(mode, mock_cluster, run_script, stored):
    """Where no thread can be started any more, the main thread sends by itself.

    This includes messages that wait for partition counts, or for space in the queue.
    """
    program = """
    small = Producer(
        {"bootstrap.servers": servers, "queue.buffering.max.messages": 10}, id="small"
    )
    acknowledged = []
    for each in producer, small:
        each.monitor.subscribe("message.acknowledged", acknowledged.append)
        each.buffer_many(
            {"topic": "events", "payload": b"x", "partition_key": str(number)}
            for number in range(100)
        )
    import atexit
    atexit._run_exitfuncs()
    print(len(acknowledged), producer.status, small.status)
    """
    mock_cluster.create_topic("events", partitions=3)
    mock_cluster.round_trip(0.01)
    servers = mock_cluster.bootstrap_servers

    ended = run_script(BEGIN + NO_MORE_THREADS + program, mode, servers=servers)

    assert ended.stdout == "200 closed closed\n"
    assert stored("events") == 200


@three_modes
def test_exit_without_threads_ends_in_time(mode, run_script):
    """With an unreachable broker exit takes `exit_timeout`, and reports the loss."""
    program = """
    lost = Producer(
        {"bootstrap.servers": "127.0.0.1:1", "log_level": 0},
        id="lost",
        exit_timeout=0.5,
    )
    lost.buffer_many({"topic": "events", "payload": b"x"} for _ in range(10))
    print(time.monotonic())
    """

    source = BEGIN + NO_MORE_THREADS + program
    ended = run_script(source, mode, servers="-", fails=True)

    took = time.monotonic() - float(ended.stdout)
    assert ended.returncode == 0
    assert 0.4 < took < 2.5
    assert "greendrop: producer 'lost' is closed; 10 buffered messages" in ended.stderr


@three_modes
def test_exit_reports_what_an_open_transaction_keeps_from_being_sent(
    mode, mock_cluster, run_script, stored
):
    """A block that is never left is never committed, so nothing is sent in it."""
    program = """
    own = Producer(
        {"bootstrap.servers": servers, "transactional.id": "t", "log_level": 0},
        id="own",
        exit_timeout=2.0,
    )
    own.buffer(topic="events", payload=b"x")
    block = own.transaction()
    block.__enter__()
    """

    servers = mock_cluster.bootstrap_servers
    ended = run_script(BEGIN + program, mode, servers=servers, fails=True)

    assert ended.returncode == 0
    text = "greendrop: producer 'own' is closed; 1 buffered message was not delivered"
    (line,) = (each for each in ended.stderr.splitlines() if "greendrop: " in each)
    assert line.startswith(text)
    assert "a transaction is open" in line


@three_modes
def test_exit_reports_what_fails_before_its_timeout(mode, run_script):
    """A message that was sent without waiting times out while the program exits."""
    program = """
    lost = Producer(
        {
            "bootstrap.servers": "127.0.0.1:1",
            "message.timeout.ms": 300,
            "log_level": 0,
        },
        id="lost",
    )
    lost.produce_async(topic="events", payload=b"x")
    """

    ended = run_script(BEGIN + program, mode, servers="-", fails=True)

    assert ended.returncode == 0
    text = "greendrop: producer 'lost' is closed; 1 message was not delivered;"
    (line,) = (each for each in ended.stderr.splitlines() if "greendrop: " in each)
    assert line.startswith(text)
    assert "_MSG_TIMED_OUT" in line


# --- signals --------------------------------------------------------------------------


def send_when_ready(number, process):
    """Send a signal to a program that is ready; return the result of the program."""
    assert process.stdout.readline() == "ready\n", interpreter.finish(process)
    process.send_signal(number)
    return interpreter.finish(process)


@pytest.mark.parametrize("mode", ["none", "unpatched", "patched"])
def test_ctrl_c_while_reports_are_handled_loses_none(mode, mock_cluster, run_script):
    """Each handle gets its report wherever Ctrl-C arrives, in callbacks too.

    Python also runs a signal's handler at the first line of a callback of librdkafka,
    where its exception can't be caught. One round in ten hits a callback.
    """
    program = """
    import random
    from greendrop import ReportLostError

    if "gevent" in sys.modules:
        sys.modules["gevent"].get_hub().print_exception = lambda *_: None
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    # It may also arrive in the callback of a weak reference, where Python drops it.
    sys.unraisablehook = lambda _: None
    for _ in range(40):
        producer = Producer({"bootstrap.servers": servers})
        producer.produce_sync(topic="events", payload=b"x")
        handles = []
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.02))
        dropped = time.monotonic() + 0.5
        try:
            while time.monotonic() < dropped:
                for _ in range(200):
                    handles.append(producer.produce_async(topic="events", payload=b"x"))
                for handle in handles[-200:]:
                    handle.wait(10)
        except KeyboardInterrupt:
            pass
        try:
            producer.close(timeout=10)
        except MessagesAbandonedError as error:
            assert isinstance(error.__cause__, ReportLostError), error
        assert all(handle.done for handle in handles)
        assert {type(handle.error) for handle in handles} <= {
            type(None), ReportLostError
        }
    """
    run_script(BEGIN + program, mode, servers=mock_cluster.bootstrap_servers)


@every_mode
def test_ctrl_c_interrupts_a_wait(mode, mock_cluster, stored):
    """Ctrl-C raises in the waiting main thread; earlier and later messages arrive."""
    program = """
    handle = producer.produce_async(topic="events", payload=b"x")
    try:
        print("ready", flush=True)
        handle.wait(10)
    except KeyboardInterrupt:
        print("interrupted", handle.done)
    producer.produce_sync(topic="events", payload=b"later")
    producer.close()
    """
    mock_cluster.delay_requests("Produce", 2)
    servers = mock_cluster.bootstrap_servers

    process = interpreter.start(BEGIN + program, mode, servers=servers)
    ended = send_when_ready(signal.SIGINT, process)

    # gevent prints on stderr which greenlet was interrupted.
    assert (ended.returncode, ended.stdout) == (0, "interrupted False\n")
    assert stored("events") == 2


@three_modes
def test_ctrl_c_ends_a_program_that_does_not_catch_it(mode, mock_cluster, stored):
    """A program that is interrupted while it waits ends, and delivers its messages."""
    program = """
    handle = producer.produce_async(topic="events", payload=b"x")
    print("ready", flush=True)
    handle.wait(10)
    """
    mock_cluster.delay_requests("Produce", 2)
    servers = mock_cluster.bootstrap_servers

    process = interpreter.start(BEGIN + program, mode, servers=servers)
    ended = send_when_ready(signal.SIGINT, process)

    assert ended.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in ended.stderr
    assert "not delivered" not in ended.stderr
    assert stored("events") == 1


@three_modes
def test_ctrl_c_in_a_listener_ends_the_program(mode, mock_cluster, run_script, stored):
    """Ctrl-C while a listener runs ends the main thread's wait; nothing is lost."""
    program = """
    def interrupt(event):
        if event["label"] == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
            # Python runs signal handlers between two of its instructions.
            sum(range(100_000))

    producer.monitor.subscribe("message.acknowledged", interrupt)
    try:
        producer.produce_sync(topic="events", payload=b"x", label="interrupt")
        sleep(25)
    except KeyboardInterrupt:
        print("interrupted")
    producer.produce_sync(topic="events", payload=b"later")
    producer.close()
    """

    ended = run_script(
        BEGIN + program, mode, servers=mock_cluster.bootstrap_servers, fails=True
    )

    assert (ended.returncode, ended.stdout) == (0, "interrupted\n")
    assert ended.seconds < 20
    assert stored("events") == 2


CLOSES_WHEN_TERMINATED = """
    def close(*_):
        try:
            producer.close()
            print("closing", flush=True)
        except BaseException as error:
            print(repr(error), flush=True)

    {install}
    producer.produce_sync(topic="events", payload=b"first")
    handles = [producer.produce_async(topic="events", payload=b"x") for _ in range(20)]
    print("ready", flush=True)
    {meanwhile}
    deadline = time.monotonic() + 10
    while producer.status != "closed":
        assert time.monotonic() < deadline, producer
        sleep(0.01)
    assert all(each.report for each in handles)
    print("closed")
"""
INSTALL = "signal.signal(signal.SIGTERM, close)"
MEANWHILE = {
    "sleeps": "sleep(0.5)",
    "waits": "handles[0].wait(10)",
    "works": "until = time.monotonic() + 0.5\n"
    "    while time.monotonic() < until: sum(range(1000))",
}


def terminate_when_ready(source, mode, mock_cluster):
    """Send SIGTERM to a program that is ready; return its later output."""
    mock_cluster.delay_requests("Produce", 0.2, times=2)
    servers = mock_cluster.bootstrap_servers
    process = interpreter.start(source, mode, servers=servers)
    ended = send_when_ready(signal.SIGTERM, process)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout


@three_modes
@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_a_signal_handler_may_close(mode, meanwhile, mock_cluster, stored):
    """close() in a handler of SIGTERM never raises, ends closed, and delivers."""
    source = BEGIN + CLOSES_WHEN_TERMINATED.format(
        install=INSTALL, meanwhile=MEANWHILE[meanwhile]
    )

    observed = terminate_when_ready(source, mode, mock_cluster)

    assert observed == "closing\nclosed\n"
    assert stored("events") == 21


@pytest.mark.parametrize("mode", ["unpatched", "patched"])
def test_a_signal_handler_of_gevent_may_close(mode, mock_cluster, stored):
    """The same holds for a handler that gevent runs in a greenlet, with an idle hub."""
    source = BEGIN + CLOSES_WHEN_TERMINATED.format(
        install="import gevent; gevent.signal_handler(signal.SIGTERM, close)",
        meanwhile="sleep(0.5)",
    )

    observed = terminate_when_ready(source, mode, mock_cluster)

    assert observed == "closing\nclosed\n"
    assert stored("events") == 21


@three_modes
def test_a_signal_handler_may_end_the_program(mode, mock_cluster, stored):
    """A handler that raises SystemExit ends the program; its messages are delivered."""
    program = """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for _ in range(20):
        producer.produce_async(topic="events", payload=b"x")
    print("ready", flush=True)
    while True:
        sleep(1)
    """

    assert not terminate_when_ready(BEGIN + program, mode, mock_cluster)

    assert stored("events") == 20
