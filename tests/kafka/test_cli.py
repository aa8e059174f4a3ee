"""The command line on Apache Kafka, checked by a client that is not librdkafka."""

import json

import pytest

from tests.cli.commands import finish, run, start

pytestmark = pytest.mark.slow


def test_lines_are_sent(kafka, topic, read_topic):
    """kafka-python reads the same keys, payloads and headers."""
    options = ("-t", topic, "-K", ":", "-H", "source=test")

    done = run("produce", "-b", kafka.bootstrap_servers, *options, text="a:1\nb:2\n")

    assert done == (0, "", "")
    records = read_topic(kafka.bootstrap_servers, topic)
    assert sorted((each.key, each.value) for each in records) == [
        (b"a", b"1"),
        (b"b", b"2"),
    ]
    assert all(each.headers == [("source", b"test")] for each in records)


def test_many_lines_are_sent_once(kafka, topic, read_topic):
    """Each line is in the topic exactly once."""
    lines = [str(number) for number in range(20_000)]

    done = run(
        "produce", "-b", kafka.bootstrap_servers, "-t", topic, text="\n".join(lines)
    )

    assert done == (0, "", "")
    records = read_topic(kafka.bootstrap_servers, topic)
    assert sorted(int(each.value) for each in records) == list(range(20_000))


def test_verify_loses_nothing_when_it_is_ended(kafka, topic, read_topic):
    """Exactly the acknowledged messages are stored, each at its reported place."""
    kafka.create_topic(topic, partitions=3)
    process = start(
        *("verify", "--topic", topic, "--bootstrap-server", kafka.bootstrap_servers)
    )
    seen = [process.stdout.readline() for _ in range(500)]
    process.terminate()
    seen += process.stdout.readlines()

    assert finish(process).status == 0
    lines = [json.loads(line) for line in seen]
    assert [each["name"] for each in lines[-2:]] == ["shutdown_complete", "tool_data"]
    acknowledged = {
        (each["partition"], each["offset"]): each["value"]
        for each in lines
        if each["name"] == "producer_send_success"
    }
    records = read_topic(kafka.bootstrap_servers, topic)
    assert acknowledged == {
        (each.partition, each.offset): each.value.decode() for each in records
    }
    assert lines[-1]["sent"] == lines[-1]["acked"] == len(records)


def test_doctor_finds_no_problem(kafka, topic):
    """A healthy broker causes no finding; messages are measured, too."""
    done = run("doctor", "-b", kafka.bootstrap_servers, "-t", topic)

    assert done.status == 0, done.stdout
    assert f"10 to '{topic}'" in done.stdout
    assert "FAILED" not in done.stdout


def test_doctor_logs_in(kafka_secure, topic):
    """The login is by password; a wrong password is named as the problem."""
    listeners = kafka_secure.secure_listeners
    login = listeners.plain
    options = (
        *(
            "-b",
            listeners.sasl_bootstrap_servers,
            "-X",
            "security.protocol=SASL_PLAINTEXT",
        ),
        *("-X", "sasl.mechanism=PLAIN", "-X", f"sasl.username={login.user}"),
        *("--timeout", "5"),
    )

    right = run(
        "doctor", *options, "-X", f"sasl.password={login.password}", "-t", topic
    )
    wrong = run("doctor", *options, "-X", "sasl.password=wrong-one")

    assert right.status == 0, right.stdout
    assert "ok      login: by PLAIN over SASL_PLAINTEXT" in right.stdout
    assert wrong.status == 1
    assert "FAILED  metadata: " in wrong.stdout
    assert "uthentication failed" in wrong.stdout
    assert "user, password or mechanism are wrong" in wrong.stdout
    assert login.password not in right.stdout
    assert "wrong-one" not in wrong.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("produce", "-t", "t", "-b"),
        ("bench", "-t", "t", "-b"),
        ("verify", "--topic", "t", "--bootstrap-server"),
    ],
    ids=lambda command: command[0],
)
def test_each_command_prints_at_once_that_the_password_is_wrong(
    kafka_secure, command, tmp_path
):
    """The reason comes long before a message times out, and without the password."""
    listeners = kafka_secure.secure_listeners
    file = tmp_path / "kafka.properties"
    file.write_text(
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\n"
        f"sasl.username={listeners.plain.user}\nsasl.password=wrong-one\n"
    )
    option = "--command-config" if command[0] == "verify" else "-F"
    process = start(*command, listeners.sasl_bootstrap_servers, option, str(file))
    if command[0] == "produce":
        process.stdin.write("x\n")
        process.stdin.flush()

    line = process.stderr.readline()
    process.kill()
    process.communicate()

    assert "uthentication failed" in line
    assert line.endswith("; still trying\n")
    assert "wrong-one" not in line


def test_doctor_recognizes_a_tls_listener(kafka_secure):
    """A client without TLS, or without trust in the certificate, gets the reason."""
    listeners = kafka_secure.secure_listeners
    servers = ("-b", listeners.tls_bootstrap_servers, "--timeout", "4")
    tls = ("-X", "security.protocol=SSL")

    plain = run("doctor", *servers)
    untrusted = run("doctor", *servers, *tls)
    trusted = run(
        "doctor", *servers, *tls, "-X", f"ssl.ca.location={listeners.ca_file}"
    )

    assert (plain.status, untrusted.status) == (1, 1)
    assert "is security.protocol right?" in plain.stdout
    assert "set ssl.ca.location" in untrusted.stdout
    assert trusted.status == 0, trusted.stdout


def test_bench_measures_both(kafka, topic):
    """The table has rates of both clients."""
    done = run(
        *("bench", "-b", kafka.bootstrap_servers, "-t", topic, "--seconds", "0.5"),
        *("-n", "20", "--json"),
    )

    assert done.status == 0, done.stderr
    assert [each["rate"] > 0 for each in json.loads(done.stdout)] == [True] * 4
