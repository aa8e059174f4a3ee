"""The command line on the mock cluster; `tests/kafka` runs it on Apache Kafka."""

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

import greendrop
from greendrop.cli import _surroundings
from tests.cli.commands import finish, run, start
from tests.tasks import await_true

pytestmark = [pytest.mark.slow, pytest.mark.patched]

#: A port without a listener.
NOWHERE = "127.0.0.1:1"
#: Runs a command, and interrupts it where it begins to close its producer.
INTERRUPTED = """
import sys

from greendrop._producer import registry
from greendrop.cli import main
from greendrop.producer import Producer
from tests.interrupting import at_entry, interrupt

with at_entry(Producer.close, interrupt):
    status = main(sys.argv[1:])
print(f"exit status {status}, producers: {len(registry._in_use)}")
"""


@pytest.fixture
def servers(mock_cluster):
    """Return the address of a mock cluster."""
    return mock_cluster.bootstrap_servers


def contents(records):
    """Return keys and payloads, sorted."""
    pairs = [(record.key, record.payload) for record in records]
    return sorted(pairs, key=repr)


# --- produce --------------------------------------------------------------------------


def test_lines_are_sent(mock_cluster, servers):
    """Each line is one message, and nothing is printed."""
    done = run("produce", "-b", servers, "-t", "t", text="one\ntwo\n\nthree")

    assert done == (0, "", "")
    expected = [(None, b"one"), (None, b"three"), (None, b"two")]
    assert contents(mock_cluster.records("t")) == expected


def test_options_make_keys_headers_and_partitions(mock_cluster, servers):
    """Options have kcat's meaning; the key of a line wins over `-k`."""
    options = ("-t", "t", "-k", "all", "-K", "::", "-H", "a=1", "-H", "b=", "-Z")

    done = run("produce", "-b", servers, *options, "-p", "3", text="k::v\nw\ngone::\n")

    assert done.status == 0, done.stderr
    records = mock_cluster.records("t")
    assert [(each.key, each.payload) for each in records] == [
        (b"k", b"v"),
        (b"all", b"w"),
        (b"gone", None),
    ]
    assert {each.partition for each in records} == {3}
    assert records[0].headers == [("a", b"1"), ("b", b"")]


def test_json_lines_have_fields(mock_cluster, servers):
    """Missing fields come from the options; a payload of other JSON is sent as JSON."""
    lines = [
        {"payload": "text", "key": "ä", "partition": 0, "timestamp": 5},
        {"payload": {"a": [1, "ü"]}, "headers": {"h": ["1", "2"]}, "partition": 0},
        {"payload": None, "topic": "other", "partition": 1},
    ]
    text = "\n".join(json.dumps(line) for line in lines)

    done = run("produce", "-b", servers, "-t", "t", "-k", "key", "--json", text=text)

    assert done.status == 0, done.stderr
    first, second = mock_cluster.records("t")
    (other,) = mock_cluster.records("other")
    assert (first.key, first.payload, first.timestamp) == ("ä".encode(), b"text", 5)
    assert second.payload == '{"a":[1,"ü"]}'.encode()
    assert second.headers == [("h", b"1"), ("h", b"2")]
    assert (other.key, other.payload, other.partition) == (b"key", None, 1)


def test_delimiters_may_have_escapes_and_several_characters(mock_cluster, servers):
    """`-D` decodes escapes as kcat does."""
    done = run("produce", "-b", servers, "-t", "t", "-D", r"\t;", text="a\nb\t;c\t;")

    assert done.status == 0
    assert contents(mock_cluster.records("t")) == [(None, b"a\nb"), (None, b"c")]


def test_files_are_read(mock_cluster, servers, tmp_path):
    """A file that is missing is reported, and the others are sent."""
    (tmp_path / "a").write_text("1\n2\n")
    files = (str(tmp_path / "a"), str(tmp_path / "none"), "-")

    done = run("produce", "-b", servers, "-t", "t", *files, text="3")

    assert done.status == 1
    assert "can't read" in done.stderr
    assert "none: No such file or directory" in done.stderr
    assert [each[1] for each in contents(mock_cluster.records("t"))] == [
        b"1",
        b"2",
        b"3",
    ]


def test_count_stops_the_command(mock_cluster, servers):
    """The rest of the input is not sent."""
    assert run("produce", "-b", servers, "-t", "t", "-c2", text="1\n2\n3\n").status == 0
    assert len(mock_cluster.records("t")) == 2


def test_count_ignores_refused_lines(mock_cluster, servers):
    """`-c` counts messages that were sent."""
    command = ("produce", "-b", servers, "-t", "t", "--json", "-c2")
    text = 'no JSON\n{"payload": "1"}\n{"payload": "2"}\n{"payload": "3"}\n'

    assert run(*command, text=text).status == 1
    assert contents(mock_cluster.records("t")) == [(None, b"1"), (None, b"2")]


def test_settings_come_from_a_file_and_the_environment(mock_cluster, servers, tmp_path):
    """Options win over the file and the environment."""
    file = tmp_path / "kafka.properties"
    file.write_text(f"# ours\nbootstrap.servers = {NOWHERE}\nclient.id=mine\n\n")

    from_file = run("produce", "-F", str(file), "-b", servers, "-t", "t", text="1")
    from_environment = run(
        "produce", "-t", "t", text="2", GREENDROP_BOOTSTRAP_SERVERS=servers
    )

    assert (from_file.status, from_environment.status) == (0, 0)
    assert len(mock_cluster.records("t")) == 2


def test_reports_are_written(servers):
    """`--report` writes a JSON line for each delivered message."""
    done = run("produce", "-b", servers, "-t", "t", "-p0", "--report", text="1\n\n2\n")

    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["offset"], each["line"]) for each in reports] == [(0, 1), (1, 3)]
    assert {(each["topic"], each["partition"]) for each in reports} == {("t", 0)}
    assert {each["file"] for each in reports} == {"standard input"}


def test_failed_messages_are_printed(mock_cluster, servers):
    """The first ten are printed with their line, and the exit status is 1."""
    mock_cluster.fail_requests("Produce", "TOPIC_AUTHORIZATION_FAILED", times=100)
    text = "".join(f"{number}\n" for number in range(15))

    done = run("produce", "-b", servers, "-t", "t", "-p0", text=text)

    assert done.status == 1
    lines = done.stderr.splitlines()
    assert sum("TOPIC_AUTHORIZATION_FAILED" in line for line in lines) == 10
    assert lines[0].startswith("greendrop: standard input, line 1: a message to 't'")
    assert lines[-1] == "greendrop: not delivered: 15 of 15 messages"


def test_wrong_lines_are_printed(mock_cluster, servers):
    """The other lines are sent."""
    text = '{"payload": "good"}\nnope\n[]\n{"payload": 1, "bogus": 2}\n{"key": "k"}\n'

    done = run("produce", "-b", servers, "-t", "t", "--json", text=text)

    assert done.status == 1
    for number, reason in enumerate(
        (
            "no JSON: ",
            "no JSON object, but list",
            "no such fields: bogus",
            "no payload",
        ),
        2,
    ):
        assert f"line {number}: {reason}" in done.stderr
    assert contents(mock_cluster.records("t")) == [(None, b"good")]


def test_a_line_that_nests_too_deep_does_not_stop_the_others(mock_cluster, servers):
    """Python can't parse the line; the lines after it are sent."""
    deep = "[" * 100_000 + "1" + "]" * 100_000
    text = "".join(f'{{"payload": {each}}}\n' for each in ("1", deep, "3"))

    done = run("produce", "-b", servers, "-t", "t", "--json", text=text)

    assert done.status == 1
    assert "line 2: no JSON: " in done.stderr
    assert contents(mock_cluster.records("t")) == [(None, b"1"), (None, b"3")]


def test_numbers_may_be_keys(mock_cluster, servers):
    """In the example of the help text jq makes a key of each object's id."""
    text = '{"key": 7, "payload": {"id": 7}}\n'

    done = run("produce", "-b", servers, "-t", "t", "--json", text=text)

    assert done == (0, "", "")
    assert contents(mock_cluster.records("t")) == [(b"7", b'{"id":7}')]


def test_bytes_that_are_no_text_are_sent_unchanged(mock_cluster, servers):
    """Delimiters, keys and headers may have any bytes; a header may have no value."""
    odd = os.fsdecode(b"\xff")
    options = ("-t", "t", "-k", odd, "-D", odd, "-H", f"a={odd}", "-H", "null")

    done = run("produce", "-b", servers, *options, text="x")

    assert done == (0, "", "")
    (record,) = mock_cluster.records("t")
    assert (record.key, record.payload) == (b"\xff", b"x")
    assert record.headers == [("a", b"\xff"), ("null", None)]


def test_large_messages_only_need_message_max_bytes(mock_cluster, servers):
    """Messages may be as large as `message.max.bytes`, set or by default."""
    text = "x" * 1_100_000
    command = ("produce", "-b", servers, "-t", "t")

    refused = run(*command, text=text)
    done = run(*command, "-X", "message.max.bytes=5000000", text=text)

    assert (refused.status, done.status) == (1, 0)
    assert len(mock_cluster.records("t")) == 1


def test_the_option_wins_over_properties_and_environment(mock_cluster, servers):
    """The order is `-b`, either of librdkafka's names for it, the environment."""
    elsewhere = {"GREENDROP_BOOTSTRAP_SERVERS": NOWHERE}
    named = ("-X", f"metadata.broker.list={servers}")
    other = ("-X", f"bootstrap.servers={NOWHERE}")

    by_name = run("produce", "-t", "t", *named, text="x", **elsewhere)
    by_option = run("produce", "-t", "t", *other, "-b", servers, text="x", **elsewhere)

    assert (by_name.status, by_option.status) == (0, 0)
    assert len(mock_cluster.records("t")) == 2
    assert run("doctor", *named, **elsewhere).status == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), "no brokers are named: use -b"),
        (("-b", NOWHERE, "-X", "acks"), "-X takes NAME=VALUE, and 'acks' is none"),
        (("-b", NOWHERE, "-X", "bogus=1"), "bogus: librdkafka has no such property"),
        (("-b", NOWHERE, "-X", "acks=some"), "acks: Invalid value"),
        (("-b", NOWHERE, "-t", "a b"), "topic 'a b' is not a valid topic name"),
        (("-b", NOWHERE, "-H", "=h"), "-H takes NAME[=VALUE]"),
        (("-b", NOWHERE, "-H", ""), "-H takes NAME[=VALUE]"),
        (("-b", "me:secret@a:1"), "an address has no user or password"),
        (("-b", NOWHERE, "-K", ""), "-K takes at least one character"),
        (("-b", NOWHERE, "-F", "/none"), "can't read /none: No such file"),
        (("-b", NOWHERE, "-c", "0"), "argument -c/--count: invalid positive value"),
        (("-b", NOWHERE, "--bogus"), "unrecognized arguments: --bogus"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_options_are_refused_before_anything_is_sent(options, reason):
    """One line names the mistake, and the exit status is 2."""
    done = run("produce", "-t", "t", *options, text="x\n")

    assert done.status == 2
    assert reason in done.stderr
    assert done.stdout == ""


def test_a_topic_is_needed():
    """Only JSON lines may do without `-t`: they can name their own."""
    done = run("produce", "-b", NOWHERE, text="x\n")

    assert (done.status, done.stderr) == (2, "greendrop: which topic? use -t TOPIC\n")


def test_a_refused_connection_is_printed():
    """The reason is printed at once, and again when a message fails."""
    options = ("-t", "t", "-X", "message.timeout.ms=1000")
    options += ("-X", "ssl.key.password=s3cret", "-X", "security.protocol=plaintext")

    done = run("produce", "-b", NOWHERE, *options, text="x\n")

    assert done.status == 1
    warned, first, *others, last = done.stderr.splitlines()
    assert "settings=kafka.ssl.key.password" in warned
    assert "Connection refused" in first
    assert first.endswith("; still trying")
    failures = [line for line in others if "line 1: a message to 't' was" in line]
    assert len(failures) == 1
    assert last == "greendrop: not delivered: 1 of 1 message"
    assert "s3cret" not in done.stderr


def test_lines_are_sent_as_soon_as_they_are_read(mock_cluster, servers):
    """The command does not wait for more input before it sends."""
    process = start("produce", "-b", servers, "-t", "t", "--report")
    process.stdin.write("one\n")
    process.stdin.flush()

    assert json.loads(process.stdout.readline())["line"] == 1
    process.stdin.write("two\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["line"] == 2
    assert finish(process).status == 0


def start_with_slow_answers(mock_cluster, servers):
    """Start `greendrop produce`, and slow the brokers once a message is delivered."""
    process = start("produce", "-b", servers, "-t", "t", "--report")
    process.stdin.write("first\n")
    process.stdin.flush()
    assert process.stdout.readline()
    mock_cluster.round_trip(1)
    mock_cluster.watch_requests()
    return process


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_an_interrupted_command_delivers_its_messages(
    mock_cluster, servers, number, status
):
    """The command prints how many messages it waits for, and none is lost."""
    process = start_with_slow_answers(mock_cluster, servers)
    process.stdin.write("second\n")
    process.stdin.flush()
    await_true(lambda: "Produce" in mock_cluster.requests())

    process.send_signal(number)
    done = finish(process)

    assert done.status == status, done.stderr
    assert "waiting up to 10 s for 1 message in flight" in done.stderr
    mock_cluster.round_trip(0)
    assert len(mock_cluster.records("t")) == 2


def test_a_second_ctrl_c_waits_for_nothing(mock_cluster, servers):
    """Messages in flight are dropped and printed."""
    process = start("produce", "-b", servers, "-t", "t")
    process.stdin.write("first\n")
    process.stdin.flush()
    await_true(lambda: mock_cluster.records("t"))
    mock_cluster.round_trip(60)
    mock_cluster.watch_requests()
    process.stdin.write("second\n")
    process.stdin.flush()
    await_true(lambda: "Produce" in mock_cluster.requests())

    process.send_signal(signal.SIGINT)
    printed = process.stderr.readline()
    interrupted = time.monotonic()
    process.send_signal(signal.SIGINT)
    printed += process.stderr.read()

    assert finish(process).status == 130
    assert time.monotonic() - interrupted < 8
    assert "waiting up to 10 s for 1 message in flight" in printed
    assert "line 2: a message to 't' was dropped" in printed


def test_a_closed_output_ends_the_command(servers):
    """The command ends at once and silently, as other programs do."""
    process = start("produce", "-b", servers, "-t", "t", "--report")
    with process.stderr:
        process.stdin.write("first\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError), process.stdin:
            for _ in range(1000):
                process.stdin.write("next\n")
                process.stdin.flush()
                time.sleep(0.005)

        assert process.wait(20) == 141
        assert process.stderr.read() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
@pytest.mark.parametrize(
    "arguments",
    [
        ("produce", "-t", "t", "--report", "-b"),
        ("doctor", "-b"),
        ("verify", "--topic", "t", "--max-messages", "9", "--bootstrap-server"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_full_disk_is_reported(servers, arguments):
    """The reason is printed in one line."""
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "greendrop", *arguments, servers],
            input="x\n",
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=40,
        )

    assert done.returncode == 1
    expected = "greendrop: can't read or write: No space left on device\n"
    assert done.stderr == expected


def test_closed_streams_do_no_harm(mock_cluster, servers):
    """Daemons and cron jobs may run without standard input or output."""
    command = f"{sys.executable} -m greendrop produce -b {servers} -t t"
    for streams, status in (("<&- 2>&1", 2), (">&- 2>&-", 0)):
        done = subprocess.run(
            ["sh", "-c", f"{command} {streams}"],
            input="x\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=40,
        )
        assert done.returncode == status, done
        assert "Traceback" not in done.stdout
    assert len(mock_cluster.records("t")) == 1


def test_progress_is_shown_on_a_terminal(servers):
    """One line is overwritten again and again; the totals follow at the end."""
    leader, follower = pty.openpty()
    process = start("produce", "-b", servers, "-t", "t", "--report", stderr=follower)
    os.close(follower)
    for number in range(1, 4):
        process.stdin.write("line\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["line"] == number
        time.sleep(0.3)
    finish(process)
    shown = os.read(leader, 100_000).decode()
    os.close(leader)

    assert "\r\x1b[K" in shown
    assert "3 sent, 3 delivered, " in shown.splitlines()[-1]


def test_producing_imports_no_gevent(servers):
    """The command uses threads."""
    program = (
        "import sys; from greendrop.cli import main\n"
        f"assert main(['produce', '-b', {servers!r}, '-t', 't']) == 0\n"
        "assert 'gevent' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=b"x\n", capture_output=True, check=False)

    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_after_the_end_of_input_delivers_messages_in_flight(
    mock_cluster, servers, number
):
    """The ten seconds for messages in flight apply after the end of the input, too."""
    process = start_with_slow_answers(mock_cluster, servers)
    process.stdin.write("last\n")
    process.stdin.close()
    await_true(lambda: "Produce" in mock_cluster.requests())

    process.send_signal(number)
    process.stdin = None
    done = finish(process)

    assert done.status == 128 + number, done.stderr
    assert "waiting up to 10 s for 1 message in flight" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    mock_cluster.round_trip(0)
    assert len(mock_cluster.records("t")) == 2


def test_a_line_without_a_key_delimiter_is_refused(mock_cluster, servers):
    """Such a line would be a payload without a key; `-k` names a key for all lines."""
    done = run("produce", "-b", servers, "-t", "t", "-K", ":", text="k:v\nwhole\n")

    assert done.status == 1
    assert "line 2: the line has no key delimiter ':'" in done.stderr
    assert contents(mock_cluster.records("t")) == [(b"k", b"v")]


@pytest.mark.parametrize("options", [(), ("--json",), ("-D", ";")], ids=str)
def test_a_huge_line_is_refused_without_being_kept_in_memory(
    mock_cluster, servers, options, tmp_path
):
    """The peak of memory stays far below the length of the line."""
    end = options[-1] if "-D" in options else "\n"
    message = '{"payload": "x"}' if "--json" in options else "x"
    small, huge = tmp_path / "small", tmp_path / "huge"
    small.write_text(message + end)
    with huge.open("w") as file:
        for _ in range(100):
            file.write("x" * 1_000_000)
        file.write(end + message + end)
    program = (
        "import resource, sys; from greendrop.cli import main\n"
        f"status = main(['produce', '-b', {servers!r}, '-t', 't', *sys.argv[1:]])\n"
        "print(status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for file, expected in ((small, 0), (huge, 1)):
        done = subprocess.run(
            [sys.executable, "-c", program, *options, file],
            capture_output=True,
            text=True,
            check=True,
            timeout=40,
        )
        status, peak = map(int, done.stdout.split())
        assert status == expected, done.stderr
        peaks.append(peak)

    assert "line 1: the line is longer than the largest message" in done.stderr
    assert len(mock_cluster.records("t")) == 2
    # Kilobytes on Linux; bytes, so far more of them, elsewhere.
    assert peaks[1] - peaks[0] < 50_000 * (1 if sys.platform == "linux" else 1024)


def test_reading_from_a_terminal_is_announced(mock_cluster, servers):
    """Without the announcement the command would seem to hang."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "greendrop", "produce", "-b", servers, "-t", "t"],
        stdin=follower,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(follower)
    with process.stderr:
        assert "reading lines from the terminal; Ctrl-D" in process.stderr.readline()
        os.write(leader, b"typed\n\x04")
        assert process.wait(40) == 0
    os.close(leader)
    assert contents(mock_cluster.records("t")) == [(None, b"typed")]


# --- brokers that can't be reached ----------------------------------------------------

#: A way to run each command that sends, but for the address.
SENDING = [
    ("produce", "-t", "t", "-b"),
    ("bench", "-t", "t", "-b"),
    ("verify", "--topic", "t", "--bootstrap-server"),
]


@contextlib.contextmanager
def listening(answer):
    """Run a server that is not Kafka: it answers each connection with these bytes.

    None: it never answers. An empty answer closes the connection.
    """

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection = server.accept()[0]
                connections.append(connection)
                if answer is not None:
                    connection.recv(1000)
                    connection.sendall(answer)
                    connection.close()

    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()


def first_error(process):
    """Return the first line on standard error, and end the command."""
    line = process.stderr.readline()
    process.kill()
    process.communicate()
    return line


@pytest.mark.parametrize("command", SENDING, ids=lambda command: command[0])
def test_each_command_prints_at_once_that_a_connection_is_refused(command):
    """The reason is on standard error long before a message times out."""
    started = time.monotonic()
    process = start(*command, NOWHERE)
    if command[0] == "produce":
        process.stdin.write("x\n")
        process.stdin.flush()

    line = first_error(process)

    assert "Connection refused" in line
    assert line.endswith("; still trying\n")
    assert time.monotonic() - started < 30


def test_a_port_that_closes_each_connection_is_a_case_for_the_doctor():
    """A broker that expects TLS does so, and librdkafka gives no reason."""
    with listening(b"") as address:
        process = start("produce", "-t", "t", "-b", address)
        process.stdin.write("x\n")
        process.stdin.flush()

        line = first_error(process)

    assert "greendrop: 1/1 brokers are down" in line
    assert line.endswith("; still trying (`greendrop doctor` finds out why)\n")


@pytest.mark.parametrize("command", SENDING, ids=lambda command: command[0])
def test_each_command_prints_that_a_port_stays_silent(command):
    """Without the library's own check there would be silence for ten seconds."""
    with listening(None) as address:
        process = start(*command, address)
        if command[0] == "produce":
            process.stdin.write("x\n")
            process.stdin.flush()

        line = first_error(process)

    assert f"greendrop: {address}: no answer within 1.5 s; still trying" in line
    assert f"greendrop doctor -b {address}" in line


def test_bench_gives_up_when_there_is_no_broker():
    """The command ends by itself within some seconds, and writes no table."""
    done = run("bench", "-t", "t", "-b", NOWHERE)

    assert (done.status, done.stdout) == (1, "")
    assert "Connection refused" in done.stderr.splitlines()[0]
    assert done.stderr.splitlines()[-1].startswith("greendrop: stopped: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_verify_announces_its_waits(number):
    """The first signal ends the sending, and the second one the waiting."""
    options = ("--topic", "t", "--max-messages", "3", "--throughput", "1")
    process = start("verify", *options, "--bootstrap-server", NOWHERE)
    assert "Connection refused" in process.stderr.readline()

    process.send_signal(number)
    line = process.stderr.readline()
    process.send_signal(number)

    assert "interrupted; waiting for " in line
    assert "in flight (a second Ctrl-C drops what is left)" in line
    assert finish(process).status == 128 + number


@pytest.mark.parametrize("command", ["produce", "verify"])
def test_a_command_that_is_interrupted_before_it_closes_leaves_no_producer(
    command, servers
):
    """At exit there is nothing left to wait for."""
    options = ["-b", servers, "-t", "t"]
    if command == "verify":
        options = ["--bootstrap-server", servers, "--topic", "t", "--max-messages", "1"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, command, *options],
        input="x\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.splitlines()[-1] == "exit status 130, producers: 0"


def test_ctrl_c_ends_bench_silently():
    """The hub prints no traceback."""
    process = start("bench", "-t", "t", "-b", NOWHERE)
    process.stderr.readline()
    process.send_signal(signal.SIGINT)

    done = finish(process)

    assert done.status == 130
    assert "KeyboardInterrupt" not in done.stderr


# --- doctor ---------------------------------------------------------------------------


def found(done):
    """Return the findings of `doctor --json` by section and name."""
    return {(each["section"], each["name"]): each for each in json.loads(done.stdout)}


def test_doctor_finds_nothing_wrong(mock_cluster, servers):
    """Without a topic it sends nothing."""
    mock_cluster.watch_requests()

    done = run("doctor", "-b", servers)

    assert done.status == 0, done.stdout
    assert f"ok      greendrop: {greendrop.__version__}" in done.stdout
    assert "ok      login: none is needed (PLAINTEXT)" in done.stdout
    assert "none were sent" in done.stdout
    assert done.stdout.endswith("\n0 failed, 0 notes\n")
    assert "Produce" not in mock_cluster.requests()


@pytest.mark.parametrize(
    ("options", "poller"),
    [((), "thread"), (("--gevent",), "fd")],
    ids=["plain", "gevent"],
)
def test_doctor_measures_messages(mock_cluster, servers, options, poller):
    """Delivery reports are polled in the way that was printed before."""
    done = run("doctor", "-b", servers, "-t", "t", "--json", *options)

    assert done.status == 0, done.stdout
    findings = found(done)
    assert findings["waiting", "poller"]["text"].startswith(f"{poller}: ")
    assert findings["round trip", "polled by"]["text"] == poller
    assert "10 to 't'" in findings["round trip", "messages"]["text"]
    assert len(mock_cluster.records("t")) == 10


def test_doctor_checks_a_program_that_is_patched_from_outside(servers):
    """`python -m gevent.monkey` runs it as a patched program."""
    command = [sys.executable, "-m", "gevent.monkey", "--module", "greendrop"]
    done = subprocess.run(
        [*command, "doctor", "-b", servers, "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
    )

    assert done.returncode == 0, done.stderr
    findings = found(done)
    assert findings["waiting", "gevent"]["text"].startswith("patched: ")
    assert "in this thread; loop gevent." in findings["waiting", "hub"]["text"]


def test_doctor_explains_why_brokers_can_not_be_reached():
    """Each address gets its reason and advice."""
    addresses = f"{NOWHERE},nowhere.invalid:9092"

    done = run("doctor", "-b", addresses)

    assert done.status == 1
    assert f"FAILED  broker: {NOWHERE}: Connection refused" in done.stdout
    assert "is the broker up, the port right" in done.stdout
    assert "FAILED  broker: nowhere.invalid:9092: " in done.stdout
    assert "this host name is unknown here" in done.stdout


def test_doctor_needs_one_address_that_answers(servers):
    """The other addresses become notes."""
    done = run("doctor", "-b", f"{NOWHERE},{servers}")

    assert done.status == 0, done.stdout
    assert f"note    broker: {NOWHERE}" in done.stdout


def test_doctor_explains_why_messages_fail(mock_cluster, servers):
    """The broker's own error is printed, with advice."""
    mock_cluster.fail_requests("Produce", "TOPIC_AUTHORIZATION_FAILED", times=100)

    done = run("doctor", "-b", servers, "-t", "t", "--timeout", "5")

    assert done.status == 1
    assert "FAILED  messages: a message to 't' was not delivered" in done.stdout
    assert "the user may not write to the topic" in done.stdout


def test_doctor_shows_no_secrets(tmp_path):
    """Secrets may come from options or from files."""
    file = tmp_path / "secret"
    file.write_text("sasl.password=hunter2\nsecurity.protocol=plaintext\n")

    done = run(
        "doctor", "-b", NOWHERE, "-F", str(file), "-X", "sasl.username=me", "--json"
    )

    assert "hunter2" not in done.stdout + done.stderr
    assert found(done)["settings", "sasl.password"]["text"] == "[hidden]"


def test_doctor_reports_each_wrong_setting():
    """Wrong settings are reported after checks that need none; the status is 2."""
    done = run("doctor", "-b", NOWHERE, "-X", "bogus=1", "-X", "acks=some")

    assert done.status == 2
    assert "FAILED  bogus: librdkafka has no such property" in done.stdout
    assert "FAILED  acks: Invalid value" in done.stdout

    without_brokers = run("doctor")
    assert without_brokers.status == 2
    assert "FAILED  kafka: no brokers are named" in without_brokers.stdout


def test_doctor_comments_on_costly_settings(servers):
    """Costly settings become notes, and the status stays 0."""
    done = run("doctor", "-b", servers, "-X", "linger.ms=20", "-X", "acks=1")

    assert done.status == 0
    assert "note    linger.ms: " in done.stdout
    assert "note    acks: " in done.stdout
    assert done.stdout.endswith("\n0 failed, 2 notes\n")


@pytest.mark.parametrize(
    ("options", "state"), [({"enable-threads": True}, "ok"), ({}, "failed")]
)
def test_doctor_knows_uwsgi(monkeypatch, options, state):
    """Without `--enable-threads` uWSGI runs no threads of Python."""
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt=options))

    findings = {each.name: each for each in _surroundings.process()}

    assert findings["uWSGI"].state == state


@pytest.mark.parametrize(
    ("answer", "options", "text"),
    [
        (None, (), "accepts connections, but did not answer"),
        (b"", (), "closes the connection without an answer"),
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", (), "is an HTTP server"),
        (b"\x15\x03\x03\x00\x02\x02\x46", (), "expects TLS"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", (), "answers, but not as Kafka does"),
        (b"SSH-2.0-x\r\n", ("-X", "security.protocol=SSL"), "does not speak TLS"),
        (None, ("-X", "security.protocol=SSL"), "does not speak TLS (no answer"),
    ],
    ids=["silent", "closing", "http", "tls", "ssh", "no-tls", "silent-tls"],
)
def test_doctor_recognizes_ports_that_are_not_kafka(answer, options, text):
    """The finding names the protocol of the port, and comes before the time limit."""
    with listening(answer) as address:
        done = run("doctor", "-b", address, "-t", "t", *options, "--timeout", "100")

    assert done.status == 1
    assert f"FAILED  protocol of broker: {address} {text}" in done.stdout
    assert "-> " in done.stdout


@pytest.mark.parametrize(
    "properties",
    [
        ("security.protocol=SASL_PLAINTEXT",),
        ("security.protocol=SASL_PLAINTEXT", "sasl.mechanism=GSSAPI"),
        ("security.protocol=SSL", "ssl.ca.location=/none"),
        ("security.protocol=SSL", "ssl.key.location=/none"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    "command", [("doctor", "-b"), *SENDING], ids=lambda command: command[0]
)
def test_settings_that_make_no_client_are_reported(
    servers, properties, command, tmp_path
):
    """Some settings are only checked when librdkafka creates a client."""
    file = tmp_path / "kafka.properties"
    file.write_text("\n".join(properties))
    option = "--command-config" if command[0] == "verify" else "-F"

    done = run(*command, servers, option, str(file), text="x\n")

    assert done.status == 2, done
    if command[0] == "doctor":
        assert "FAILED" in done.stdout.partition("\nsettings\n")[2]
    else:
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_doctor_refuses_addresses_that_are_urls():
    """Kafka's addresses have no scheme."""
    done = run("doctor", "-b", "http://localhost:9092")

    assert done.status == 2
    assert "FAILED  bootstrap.servers: " in done.stdout


def test_doctor_is_not_confused_by_an_agent_that_replaces_the_producer():
    """New Relic's agent puts a subclass in the place of confluent-kafka's class."""
    program = (
        "import sys, confluent_kafka.cimpl as cimpl\n"
        "class Producer(cimpl.Producer): __module__ = 'newrelic.hooks'\n"
        "cimpl.Producer = Producer\n"
        "from greendrop.cli import main\n"
        f"sys.exit(main(['doctor', '--gevent', '-b', '{NOWHERE}']))\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=40
    )

    assert done.stderr == ""
    assert "ok      poller: fd: librdkafka signals a file descriptor" in done.stdout


# --- verify ---------------------------------------------------------------------------


def lines_of(done):
    """Return the JSON lines of `verify`."""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_verify_writes_a_line_for_each_message(mock_cluster, servers):
    """Names and form are those of Kafka's own tool."""
    options = ("--max-messages", "5", "--value-prefix", "7", "--repeating-keys", "2")

    done = run("verify", "--topic", "t", "--bootstrap-server", servers, *options)

    assert (done.status, done.stderr) == (0, "")
    first, *sends, last_but_one, last = lines_of(done)
    assert first.keys() == {"timestamp", "name"}
    assert (first["name"], last_but_one["name"]) == (
        "startup_complete",
        "shutdown_complete",
    )
    assert {each["name"] for each in sends} == {"producer_send_success"}
    assert sorted((each["value"], each["key"]) for each in sends) == [
        (f"7.{number}", str(number % 2)) for number in range(5)
    ]
    places = {(each["partition"], each["offset"]): each["value"] for each in sends}
    stored = {
        (each.partition, each.offset): each.payload.decode()
        for each in mock_cluster.records("t")
    }
    assert places == stored
    assert last["name"] == "tool_data"
    assert (last["sent"], last["acked"], last["target_throughput"]) == (5, 5, -1)
    assert last["avg_throughput"] > 0


def test_verify_loses_nothing_at_sigterm(mock_cluster, servers):
    """Each message that was sent has a line, and is stored."""
    process = start(
        *("verify", "--topic", "t", "--bootstrap-server", servers),
        *("--throughput", "50"),
    )
    seen = [process.stdout.readline() for _ in range(10)]
    process.terminate()
    seen += process.stdout.readlines()

    assert finish(process).status == 0
    *sends, end, totals = [json.loads(line) for line in seen]
    assert (end["name"], totals["name"]) == ("shutdown_complete", "tool_data")
    assert totals["sent"] == totals["acked"] == len(sends) - 1
    assert len(mock_cluster.records("t")) == totals["acked"]


def test_verify_limits_the_throughput(servers):
    """Twenty messages at twenty a second take about a second."""
    started = time.monotonic()
    done = run(
        *("verify", "--topic", "t", "--broker-list", servers),
        *("--throughput", "20", "--max-messages", "20"),
    )

    assert time.monotonic() - started > 0.9
    assert lines_of(done)[-1]["sent"] == 20


def test_verify_writes_a_line_for_each_failure(mock_cluster, servers):
    """Failures do not end the command."""
    mock_cluster.fail_requests("Produce", "TOPIC_AUTHORIZATION_FAILED", times=100)

    done = run(
        *("verify", "--topic", "t", "--bootstrap-server", servers),
        *("--max-messages", "3"),
    )

    _, *failures, _, totals = lines_of(done)
    assert {each["name"] for each in failures} == {"producer_send_error"}
    assert {each["exception"] for each in failures} == {
        "class greendrop.errors.DeliveryError"
    }
    assert all("TOPIC_AUTHORIZATION_FAILED" in each["message"] for each in failures)
    assert sorted(each["value"] for each in failures) == ["0", "1", "2"]
    assert (totals["sent"], totals["acked"]) == (3, 0)


def test_verify_reads_files_for_kafkas_java_client(mock_cluster, servers, tmp_path):
    """Settings that only the Java client has are ignored, and named."""
    file = tmp_path / "producer.properties"
    file.write_text("key.serializer=x\nenable.idempotence=true\nclient.id=java\n")

    done = run(
        *("verify", "--topic", "t", "--bootstrap-server", servers),
        *("--max-messages", "2", "--producer.config", str(file)),
        *("--message-create-time", "1000000000000"),
    )

    assert done.status == 0, done.stderr
    assert "key.serializer is a setting of Kafka's Java client only" in done.stderr
    assert lines_of(done)[-1]["acked"] == 2
    for record in mock_cluster.records("t"):
        assert 0 <= record.timestamp - 1_000_000_000_000 < 60_000


def test_verify_needs_brokers_and_topic():
    """The message is that of argparse."""
    done = run("verify", "--topic", "t")

    assert done.status == 2
    assert "--bootstrap-server" in done.stderr


# --- bench and the rest ---------------------------------------------------------------


def test_bench_measures_both(servers):
    """Each load is measured with both clients."""
    done = run(
        *("bench", "-b", servers, "-t", "t", "--seconds", "0.2", "-n", "1,5"),
        "--json",
    )

    assert done.status == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(each["client"], each["load"]) for each in rows] == [
        (client, load)
        for load in ("1 greenlet, waiting", "5 greenlets, waiting", "bulk")
        for client in ("greendrop", "confluent-kafka")
    ]
    for row in rows:
        assert row["rate"] > 0
        assert row["gap"] > 0
        assert (row["median"] is None) == (row["load"] == "bulk")


def test_bench_writes_a_table(servers):
    """Columns are aligned, and lines fit 80 columns."""
    options = ("--seconds", "0.1", "-n", "1,1000", "-s", "10")

    done = run("bench", "-b", servers, "-t", "t", *options)

    lines = done.stdout.splitlines()
    assert lines[0].split("  ")[-4:] == ["msg/s", " p50 ms", " p99 ms", " gap ms"]
    assert len(lines) == 1 + 6
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 80


@pytest.mark.parametrize("command", ["", "produce", "doctor", "verify", "bench"])
def test_help_fits_a_terminal(command):
    """Each help text starts with the usage."""
    done = run(*filter(None, [command]), "--help", COLUMNS="80")

    assert done.status == 0
    assert "usage: greendrop" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 88


def test_version_is_printed():
    """The version is that of the library."""
    assert run("--version").stdout == f"greendrop {greendrop.__version__}\n"


def test_the_console_script_is_installed(servers):
    """The installer puts `greendrop` beside Python."""
    script = os.path.join(os.path.dirname(sys.executable), "greendrop")  # noqa: PTH118, PTH120
    done = subprocess.run([script, "--version"], capture_output=True, check=False)

    assert done.returncode == 0


# --- shell completion -----------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completion_scripts_know_commands_and_options(shell):
    """`--print-completion` prints a script for each of the shells."""
    done = run("--print-completion", shell)

    assert (done.status, done.stderr) == (0, "")
    for word in ("produce", "doctor", "verify", "bench", "key-delimiter"):
        assert word in done.stdout


def test_bash_completes_commands(tmp_path):
    """The script for bash works in bash."""
    script = tmp_path / "completion"
    script.write_text(run("--print-completion", "bash").stdout)
    program = f"""
        source {script}
        function=$(complete -p greendrop | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        COMP_WORDS=(greendrop do) COMP_CWORD=1
        $function greendrop do greendrop
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, check=False
    )

    assert done.stdout.strip() == "doctor", done.stderr


def test_completion_without_shtab_says_what_to_install():
    """The extra is optional."""
    program = (
        "import sys; sys.modules['shtab'] = None\n"
        "from greendrop.cli import main; main(['--print-completion', 'bash'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "needs shtab: python -m pip install shtab" in done.stderr
