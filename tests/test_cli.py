"""The command line on the mock cluster. `tests/kafka` has it on Apache Kafka."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

import greendrop
from greendrop.cli import _surroundings
from tests.commands import finish, run, start
from tests.tasks import await_true

pytestmark = [pytest.mark.slow, pytest.mark.patched]

#: Nobody listens there.
NOWHERE = "127.0.0.1:1"


@pytest.fixture
def servers(mock_cluster):
    """Give the address of a mock cluster."""
    return mock_cluster.bootstrap_servers


def contents(records):
    """Give keys and payloads, sorted."""
    pairs = [(record.key, record.payload) for record in records]
    return sorted(pairs, key=repr)


# --- produce --------------------------------------------------------------------------


def test_lines_are_sent(mock_cluster, servers):
    """One message each, without a word."""
    done = run("produce", "-b", servers, "-t", "t", text="one\ntwo\n\nthree")

    assert done == (0, "", "")
    expected = [(None, b"one"), (None, b"three"), (None, b"two")]
    assert contents(mock_cluster.records("t")) == expected


def test_options_make_keys_headers_and_partitions(mock_cluster, servers):
    """As in kcat; what a line says comes first."""
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
    """Those they leave out come from the options; other JSON is sent as it is."""
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


def test_messages_may_end_otherwise(mock_cluster, servers):
    """Delimiters may be spelled as escapes, and be longer than a character."""
    done = run("produce", "-b", servers, "-t", "t", "-D", r"\t;", text="a\nb\t;c\t;")

    assert done.status == 0
    assert contents(mock_cluster.records("t")) == [(None, b"a\nb"), (None, b"c")]


def test_files_are_read(mock_cluster, servers, tmp_path):
    """One after the other; one that isn't there is told of, and the others are sent."""
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


def test_count_ends_it(mock_cluster, servers):
    """With input left."""
    assert run("produce", "-b", servers, "-t", "t", "-c2", text="1\n2\n3\n").status == 0
    assert len(mock_cluster.records("t")) == 2


def test_count_is_that_of_messages_sent(mock_cluster, servers):
    """A line that is refused is not one of them."""
    command = ("produce", "-b", servers, "-t", "t", "--json", "-c2")
    text = 'no JSON\n{"payload": "1"}\n{"payload": "2"}\n{"payload": "3"}\n'

    assert run(*command, text=text).status == 1
    assert contents(mock_cluster.records("t")) == [(None, b"1"), (None, b"2")]


def test_settings_come_from_a_file_and_the_environment(mock_cluster, servers, tmp_path):
    """Options come before both."""
    file = tmp_path / "kafka.properties"
    file.write_text(f"# ours\nbootstrap.servers = {NOWHERE}\nclient.id=mine\n\n")

    from_file = run("produce", "-F", str(file), "-b", servers, "-t", "t", text="1")
    from_environment = run(
        "produce", "-t", "t", text="2", GREENDROP_BOOTSTRAP_SERVERS=servers
    )

    assert (from_file.status, from_environment.status) == (0, 0)
    assert len(mock_cluster.records("t")) == 2


def test_reports_are_written(servers):
    """A line of JSON for each delivered message."""
    done = run("produce", "-b", servers, "-t", "t", "-p0", "--report", text="1\n\n2\n")

    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["offset"], each["line"]) for each in reports] == [(0, 1), (1, 3)]
    assert {(each["topic"], each["partition"]) for each in reports} == {("t", 0)}
    assert {each["file"] for each in reports} == {"standard input"}


def test_messages_that_fail_are_told_of(mock_cluster, servers):
    """With their line, ten of them; the exit status says it too."""
    mock_cluster.fail_requests("Produce", "TOPIC_AUTHORIZATION_FAILED", times=100)
    text = "".join(f"{number}\n" for number in range(15))

    done = run("produce", "-b", servers, "-t", "t", "-p0", text=text)

    assert done.status == 1
    lines = done.stderr.splitlines()
    assert sum("TOPIC_AUTHORIZATION_FAILED" in line for line in lines) == 10
    assert lines[0].startswith("greendrop: standard input, line 1: a message to 't'")
    assert lines[-1] == "greendrop: not delivered: 15 of 15 messages"


def test_lines_that_are_wrong_are_told_of(mock_cluster, servers):
    """The others are sent."""
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


def test_a_line_that_nests_too_deep_costs_only_itself(mock_cluster, servers):
    """Python can't read it. Those after it are sent."""
    deep = "[" * 2_000 + "1" + "]" * 2_000
    text = "".join(f'{{"payload": {each}}}\n' for each in ("1", deep, "3"))

    done = run("produce", "-b", servers, "-t", "t", "--json", text=text)

    assert done.status == 1
    assert "line 2: no JSON: " in done.stderr
    assert contents(mock_cluster.records("t")) == [(None, b"1"), (None, b"3")]


def test_numbers_may_be_keys(mock_cluster, servers):
    """As in the help's example, where jq makes a key of each object's id."""
    text = '{"key": 7, "payload": {"id": 7}}\n'

    done = run("produce", "-b", servers, "-t", "t", "--json", text=text)

    assert done == (0, "", "")
    assert contents(mock_cluster.records("t")) == [(b"7", b'{"id":7}')]


def test_bytes_that_are_no_text_are_taken_as_they_are(mock_cluster, servers):
    """In delimiters, keys and headers, as by kcat. A header may have no value."""
    odd = os.fsdecode(b"\xff")
    options = ("-t", "t", "-k", odd, "-D", odd, "-H", f"a={odd}", "-H", "null")

    done = run("produce", "-b", servers, *options, text="x")

    assert done == (0, "", "")
    (record,) = mock_cluster.records("t")
    assert (record.key, record.payload) == (b"\xff", b"x")
    assert record.headers == [("a", b"\xff"), ("null", None)]


def test_large_messages_need_librdkafkas_setting_only(mock_cluster, servers):
    """`message.max.bytes` is the limit, by its default and as it is set."""
    text = "x" * 1_100_000
    command = ("produce", "-b", servers, "-t", "t")

    refused = run(*command, text=text)
    done = run(*command, "-X", "message.max.bytes=5000000", text=text)

    assert (refused.status, done.status) == (1, 0)
    assert len(mock_cluster.records("t")) == 1


def test_the_nearest_address_counts(mock_cluster, servers):
    """-b first, then either of librdkafka's names for it, then the environment."""
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
        (("-b", NOWHERE, "-t", "a b"), "topic 'a b' is no legal topic name"),
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
def test_mistakes_are_told_before_anything_is_sent(options, reason):
    """In a line, by exit status 2."""
    done = run("produce", "-t", "t", *options, text="x\n")

    assert done.status == 2
    assert reason in done.stderr
    assert done.stdout == ""


def test_a_topic_is_needed():
    """But for JSON lines, which may name their own."""
    done = run("produce", "-b", NOWHERE, text="x\n")

    assert (done.status, done.stderr) == (2, "greendrop: which topic? use -t TOPIC\n")


def test_a_broker_that_is_not_there_is_told_of():
    """At once, and again as the reason of what fails."""
    options = (
        "-t",
        "t",
        "-X",
        "message.timeout.ms=1000",
        "-X",
        "ssl.key.password=s3cret",
    )
    options += ("-X", "security.protocol=plaintext")

    done = run("produce", "-b", NOWHERE, *options, text="x\n")

    assert done.status == 1
    warned, first, *others, last = done.stderr.splitlines()
    assert "settings=kafka.ssl.key.password" in warned
    assert "Connection refused" in first
    assert first.endswith("trying on")
    # librdkafka may complain once more in between.
    told = [line for line in others if "line 1: a message to 't' was" in line]
    assert len(told) == 1
    assert last == "greendrop: not delivered: 1 of 1 messages"
    assert "s3cret" not in done.stderr


def test_lines_are_sent_as_they_come(mock_cluster, servers):
    """A slow source is no reason to wait."""
    process = start("produce", "-b", servers, "-t", "t", "--report")
    process.stdin.write("one\n")
    process.stdin.flush()

    assert json.loads(process.stdout.readline())["line"] == 1
    process.stdin.write("two\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["line"] == 2
    assert finish(process).status == 0


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_an_interrupted_command_delivers_what_it_has(
    mock_cluster, servers, number, status
):
    """And says so; nothing is lost."""
    process = start("produce", "-b", servers, "-t", "t", "--report")
    process.stdin.write("first\n")
    process.stdin.flush()
    assert process.stdout.readline()
    mock_cluster.round_trip(1)
    mock_cluster.watch_requests()
    process.stdin.write("second\n")
    process.stdin.flush()
    await_true(lambda: "Produce" in mock_cluster.requests())

    process.send_signal(number)
    done = finish(process)

    assert done.status == status, done.stderr
    assert "interrupted; 1 messages are on their way" in done.stderr
    mock_cluster.round_trip(0)
    assert len(mock_cluster.records("t")) == 2


def test_a_second_ctrl_c_waits_for_nothing(mock_cluster, servers):
    """What is on its way is dropped, and told."""
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
    said = process.stderr.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    said += process.stderr.read()

    assert finish(process).status == 130
    assert time.monotonic() - began < 8
    assert "interrupted; 1 messages are on their way" in said
    assert "line 2: a message to 't' was dropped" in said


def test_a_reader_that_leaves_ends_it(servers):
    """As it ends other programs: at once, without a complaint."""
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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")  # noqa: PTH110
@pytest.mark.parametrize(
    "arguments",
    [
        ("produce", "-t", "t", "--report", "-b"),
        ("doctor", "-b"),
        ("verify", "--topic", "t", "--max-messages", "9", "--bootstrap-server"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_full_disk_is_told_of(servers, arguments):
    """In a line."""
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


def test_closed_streams_are_no_reason_to_break(mock_cluster, servers):
    """As cron and daemons may have them."""
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
    """One line, which is written over, and the sums at the end."""
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
    """Threads do."""
    program = (
        "import sys; from greendrop.cli import main\n"
        f"assert main(['produce', '-b', {servers!r}, '-t', 't']) == 0\n"
        "assert 'gevent' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=b"x\n", capture_output=True, check=False)

    assert (done.returncode, done.stderr) == (0, b"")


# --- doctor ---------------------------------------------------------------------------


def found(done):
    """Give the findings of `doctor --json` by section and name."""
    return {(each["section"], each["name"]): each for each in json.loads(done.stdout)}


def test_doctor_finds_all_well(mock_cluster, servers):
    """And sends only where it is told to."""
    mock_cluster.watch_requests()

    done = run("doctor", "-b", servers)

    assert done.status == 0, done.stdout
    assert f"ok      greendrop: {greendrop.__version__}" in done.stdout
    assert "ok      login: none is needed (PLAINTEXT)" in done.stdout
    assert "none was sent" in done.stdout
    assert done.stdout.endswith("\n0 failed, 0 to be looked at\n")
    assert "Produce" not in mock_cluster.requests()


@pytest.mark.parametrize(
    ("options", "driver"),
    [((), "thread"), (("--gevent",), "fd")],
    ids=["plain", "gevent"],
)
def test_doctor_times_messages(mock_cluster, servers, options, driver):
    """Served as it has said before."""
    done = run("doctor", "-b", servers, "-t", "t", "--json", *options)

    assert done.status == 0, done.stdout
    findings = found(done)
    assert findings["waiting", "driver"]["text"].startswith(f"{driver}: ")
    assert findings["round trip", "served by"]["text"] == driver
    assert "10 to 't'" in findings["round trip", "messages"]["text"]
    assert len(mock_cluster.records("t")) == 10


def test_doctor_sees_a_program_that_is_patched_from_outside(servers):
    """By gevent's own way to do that."""
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


def test_doctor_says_why_brokers_are_not_reached():
    """By address, with advice."""
    addresses = f"{NOWHERE},nowhere.invalid:9092"

    done = run("doctor", "-b", addresses)

    assert done.status == 1
    assert f"FAILED  broker: {NOWHERE}: Connection refused" in done.stdout
    assert "is the broker up, the port right" in done.stdout
    assert "FAILED  broker: nowhere.invalid:9092: " in done.stdout
    assert "no such host is known here" in done.stdout


def test_one_address_that_answers_is_enough(servers):
    """The other one is worth a look."""
    done = run("doctor", "-b", f"{NOWHERE},{servers}")

    assert done.status == 0, done.stdout
    assert f"note    broker: {NOWHERE}" in done.stdout


def test_doctor_says_why_there_are_no_messages(mock_cluster, servers):
    """By the broker's own error."""
    mock_cluster.fail_requests("Produce", "TOPIC_AUTHORIZATION_FAILED", times=100)

    done = run("doctor", "-b", servers, "-t", "t", "--timeout", "5")

    assert done.status == 1
    assert "FAILED  messages: a message to 't' was not delivered" in done.stdout


def test_doctor_shows_no_secrets(tmp_path):
    """Whether they are in options or in files."""
    file = tmp_path / "secret"
    file.write_text("sasl.password=hunter2\nsecurity.protocol=plaintext\n")

    done = run(
        "doctor", "-b", NOWHERE, "-F", str(file), "-X", "sasl.username=me", "--json"
    )

    assert "hunter2" not in done.stdout + done.stderr
    assert found(done)["settings", "sasl.password"]["text"] == "[hidden]"


def test_doctor_tells_each_wrong_setting():
    """After what it has found without them."""
    done = run("doctor", "-b", NOWHERE, "-X", "bogus=1", "-X", "acks=some")

    assert done.status == 1
    assert "FAILED  bogus: librdkafka has no such property" in done.stdout
    assert "FAILED  acks: Invalid value" in done.stdout
    assert "FAILED  kafka: no brokers are named" in run("doctor").stdout


def test_doctor_advises(servers):
    """Where a setting costs something."""
    done = run("doctor", "-b", servers, "-X", "linger.ms=20", "-X", "acks=1")

    assert done.status == 0
    assert "note    linger.ms: " in done.stdout
    assert "note    acks: " in done.stdout
    assert done.stdout.endswith("\n0 failed, 2 to be looked at\n")


@pytest.mark.parametrize(
    ("options", "state"), [({"enable-threads": True}, "ok"), ({}, "failed")]
)
def test_doctor_knows_uwsgi(monkeypatch, options, state):
    """Which starts no threads unless it is told to."""
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt=options))

    findings = {each.name: each for each in _surroundings.process()}

    assert findings["uWSGI"].state == state


# --- verify ---------------------------------------------------------------------------


def lines_of(done):
    """Give the JSON lines of `verify`."""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_verify_tells_of_each_message(mock_cluster, servers):
    """By the names and in the form of Kafka's own tool."""
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


def test_verify_ends_in_good_order(mock_cluster, servers):
    """By SIGTERM: each message that was sent is told of, and is there."""
    process = start(
        *("verify", "--topic", "t", "--bootstrap-server", servers),
        *("--throughput", "50"),
    )
    seen = [process.stdout.readline() for _ in range(10)]
    process.terminate()
    seen += process.stdout.readlines()

    assert finish(process).status == 0
    *sends, end, sums = [json.loads(line) for line in seen]
    assert (end["name"], sums["name"]) == ("shutdown_complete", "tool_data")
    assert sums["sent"] == sums["acked"] == len(sends) - 1
    assert len(mock_cluster.records("t")) == sums["acked"]


def test_verify_keeps_to_a_throughput(servers):
    """About."""
    began = time.monotonic()
    done = run(
        *("verify", "--topic", "t", "--broker-list", servers),
        *("--throughput", "20", "--max-messages", "20"),
    )

    assert time.monotonic() - began > 0.9
    assert lines_of(done)[-1]["sent"] == 20


def test_verify_tells_of_failures(mock_cluster, servers):
    """They don't end it."""
    mock_cluster.fail_requests("Produce", "TOPIC_AUTHORIZATION_FAILED", times=100)

    done = run(
        *("verify", "--topic", "t", "--bootstrap-server", servers),
        *("--max-messages", "3"),
    )

    _, *failures, _, sums = lines_of(done)
    assert {each["name"] for each in failures} == {"producer_send_error"}
    assert {each["exception"] for each in failures} == {
        "class greendrop.errors.DeliveryError"
    }
    assert all("TOPIC_AUTHORIZATION_FAILED" in each["message"] for each in failures)
    assert sorted(each["value"] for each in failures) == ["0", "1", "2"]
    assert (sums["sent"], sums["acked"]) == (3, 0)


def test_verify_reads_files_for_kafkas_java_client(mock_cluster, servers, tmp_path):
    """What means nothing here is left out, and told."""
    file = tmp_path / "producer.properties"
    file.write_text("key.serializer=x\nenable.idempotence=true\nclient.id=java\n")

    done = run(
        *("verify", "--topic", "t", "--bootstrap-server", servers),
        *("--max-messages", "2", "--producer.config", str(file)),
        *("--message-create-time", "1000000000000"),
    )

    assert done.status == 0, done.stderr
    assert "key.serializer means something to Kafka's Java client only" in done.stderr
    assert lines_of(done)[-1]["acked"] == 2
    for record in mock_cluster.records("t"):
        assert 0 <= record.timestamp - 1_000_000_000_000 < 60_000


def test_verify_needs_brokers_and_topic():
    """By argparse's own words."""
    done = run("verify", "--topic", "t")

    assert done.status == 2
    assert "--bootstrap-server" in done.stderr


# --- bench and the rest ---------------------------------------------------------------


def test_bench_measures_both(servers):
    """Each load, with both clients."""
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
    """A line for each row, and one above them."""
    done = run(
        "bench", "-b", servers, "-t", "t", "--seconds", "0.1", "-n", "1", "-s", "10"
    )

    head, *rows = done.stdout.splitlines()
    assert head.split()[:3] == ["msg/s", "p50", "ms"]
    assert len(rows) == 4
    assert len({len(row) for row in rows}) == 1


@pytest.mark.parametrize("command", ["", "produce", "doctor", "verify", "bench"])
def test_help_fits_a_terminal(command):
    """And says what there is."""
    done = run(*filter(None, [command]), "--help", COLUMNS="80")

    assert done.status == 0
    assert "usage: greendrop" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 88


def test_version_is_told():
    """The library's."""
    assert run("--version").stdout == f"greendrop {greendrop.__version__}\n"


def test_the_console_script_is_installed(servers):
    """Beside Python."""
    script = os.path.join(os.path.dirname(sys.executable), "greendrop")  # noqa: PTH118, PTH120
    done = subprocess.run([script, "--version"], capture_output=True, check=False)

    assert done.returncode == 0
