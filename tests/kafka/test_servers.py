"""The servers that the other tests rely on."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, Producer

from tests.servers import _ports
from tests.servers.kafka import KafkaCluster, KafkaStartError
from tests.servers.proxy import TcpProxy

ROOT = Path(__file__).parents[2]


def send(producer, topic, value, timeout=30.0):
    """Send one record and return the error of its report; None: no report in time."""
    reports = []
    producer.produce(topic, value, on_delivery=lambda error, _: reports.append(error))
    producer.flush(timeout)
    return reports


def await_true(condition, timeout=20.0):
    """Poll until a condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def alive(pid):
    """Return whether a process exists, other than as a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            return not Path("/proc/self").exists()
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


# Topics ------------------------------------------------------------------------------


def test_an_independent_client_reads_librdkafkas_records(kafka, topic, read_topic):
    """A record arrives with its key, value and headers."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    producer.produce(topic, b"value", b"key", headers=[("a", b"1"), ("b", None)])
    producer.flush(30)

    (record,) = read_topic(kafka.bootstrap_servers, topic)

    assert (topic, 0) == (record.topic, record.offset)
    assert (record.key, record.value) == (b"key", b"value")
    assert record.headers == [("a", b"1"), ("b", None)]


def test_a_topic_that_was_never_created_has_no_records(kafka, topic, read_topic):
    """Reading a topic doesn't create it, and ends."""
    assert read_topic(kafka.bootstrap_servers, topic) == []


def test_a_topic_has_the_given_partitions_and_settings(kafka, topic):
    """create_topic passes on the number of partitions and the settings."""
    kafka.create_topic(topic, partitions=2, config={"max.message.bytes": "1000"})

    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    (error,) = send(producer, topic, os.urandom(2000))

    assert sorted(producer.list_topics(topic).topics[topic].partitions) == [0, 1]
    assert error.code() == KafkaError.MSG_SIZE_TOO_LARGE


def test_aborted_records_are_hidden_from_read_committed(kafka, topic, read_topic):
    """The two isolation levels differ by the aborted records."""
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic}
    )
    producer.init_transactions(30)
    for value, end in (
        (b"kept", producer.commit_transaction),
        (b"dropped", producer.abort_transaction),
    ):
        producer.begin_transaction()
        producer.produce(topic, value, partition=0)
        producer.flush(30)
        end(30)

    everything = read_topic(kafka.bootstrap_servers, topic)
    committed = read_topic(kafka.bootstrap_servers, topic, "read_committed")

    assert [record.value for record in everything] == [b"kept", b"dropped"]
    assert [record.value for record in committed] == [b"kept"]


# Nodes -------------------------------------------------------------------------------


def test_a_killed_node_comes_back_with_its_data(kafka_secure, topic, read_topic):
    """SIGKILL loses no acknowledged record; address and process id differ."""
    (node,) = kafka_secure.nodes
    address, pid = node.address, node.pid
    producer = Producer({"bootstrap.servers": kafka_secure.bootstrap_servers})
    assert send(producer, topic, b"before") == [None]

    node.kill()
    assert not node.running
    assert not alive(pid)
    node.start()

    assert address == node.address
    assert pid != node.pid
    records = read_topic(kafka_secure.bootstrap_servers, topic)
    assert [record.value for record in records] == [b"before"]


def test_a_paused_node_acknowledges_when_it_resumes(kafka_secure, topic):
    """SIGSTOP holds a record up, SIGCONT lets it through."""
    (node,) = kafka_secure.nodes
    producer = Producer({"bootstrap.servers": kafka_secure.bootstrap_servers})
    assert send(producer, topic, b"first") == [None]

    node.pause()
    reports = send(producer, topic, b"second", timeout=0.3)
    assert reports == []
    node.resume()
    producer.flush(30)

    assert reports == [None]


def test_three_nodes_survive_the_loss_of_any_one(kafka_three, topic, read_topic):
    """With acks=all nothing is lost or doubled when the leader is killed."""
    kafka_three.create_topic(topic)
    producer = Producer(
        {
            "bootstrap.servers": kafka_three.bootstrap_servers,
            "enable.idempotence": True,
        }
    )
    assert send(producer, topic, b"0") == [None]
    leader = producer.list_topics(topic).topics[topic].partitions[0].leader

    kafka_three.nodes[leader - 1].kill()
    assert send(producer, topic, b"1") == [None]
    survivors = [node for node in kafka_three.nodes if node.running]
    records = read_topic(",".join(node.address for node in survivors), topic)

    assert [record.value for record in records] == [b"0", b"1"]


def test_a_node_that_does_not_start_raises_with_its_log():
    """The error has the end of the broker's log, and nothing stays behind."""
    cluster = KafkaCluster(broker_config={"num.network.threads": "many"})

    with pytest.raises(KafkaStartError, match=r"num\.network\.threads"):
        cluster.start()

    assert cluster.nodes == []


# Listeners ---------------------------------------------------------------------------


def plain(secure, password=None):
    """Log in with a password, by PLAIN."""
    return {
        "bootstrap.servers": secure.sasl_bootstrap_servers,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": secure.plain.user,
        "sasl.password": password or secure.plain.password,
    }


def scram(secure, password=None):
    """Log in with a password, by SCRAM."""
    return {
        "bootstrap.servers": secure.sasl_bootstrap_servers,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": secure.scram.user,
        "sasl.password": password or secure.scram.password,
    }


def oauth(secure):
    """Log in with a token."""
    return {
        "bootstrap.servers": secure.sasl_bootstrap_servers,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "OAUTHBEARER",
        "oauth_cb": lambda _: secure.oauth_token(),
    }


def tls(secure):
    """Check the server's certificate."""
    return {
        "bootstrap.servers": secure.tls_bootstrap_servers,
        "security.protocol": "SSL",
        "ssl.ca.location": str(secure.ca_file),
    }


def mtls(secure):
    """Check the server's certificate and show one."""
    return tls(secure) | {
        "bootstrap.servers": secure.mtls_bootstrap_servers,
        "ssl.certificate.location": str(secure.client_cert_file),
        "ssl.key.location": str(secure.client_key_file),
    }


@pytest.mark.parametrize("way_in", [plain, scram, oauth, tls, mtls])
def test_a_secure_listener_accepts_valid_credentials(kafka_secure, topic, way_in):
    """A producer with the right credentials delivers."""
    producer = Producer(way_in(kafka_secure.secure_listeners))

    assert send(producer, topic, b"x") == [None]


def test_a_secure_listener_refuses_invalid_credentials(kafka_secure):
    """A wrong password, no client certificate, an unknown authority raise errors."""
    secure = kafka_secure.secure_listeners
    ways = {
        "password": (plain(secure, "wrong"), KafkaError._AUTHENTICATION),
        "scram": (scram(secure, "wrong"), KafkaError._AUTHENTICATION),
        "client": (
            tls(secure) | {"bootstrap.servers": secure.mtls_bootstrap_servers},
            KafkaError._TRANSPORT,
        ),
        "authority": (
            tls(secure) | {"ssl.ca.location": str(secure.client_cert_file)},
            KafkaError._SSL,
        ),
    }
    codes = {name: [] for name in ways}
    producers = {
        name: Producer(
            config
            | {
                "error_cb": lambda error, name=name: codes[name].append(error.code()),
                "log_level": 0,
            }
        )
        for name, (config, _) in ways.items()
    }

    for name, producer in producers.items():
        expected = ways[name][1]

        def refused(name=name, producer=producer, expected=expected):
            producer.poll(0.05)
            return expected in codes[name]

        await_true(refused)


# Ends of processes -------------------------------------------------------------------


def run(program, *arguments):
    """Run a Python program that can import the tests, as a child process."""
    return subprocess.Popen(
        [sys.executable, *(["-c", textwrap.dedent(program)] if program else arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


# A cheap process replaces the broker: this test is about the parent's end.
KEEPS = """
    import os, signal, sys, time
    from tests.servers._child import Child

    keeper = Child("_keeper.py")
    directory = keeper.ask("directory")
    pid = keeper.ask("start", arguments=["sleep", "60"], output=directory + "/log")
    keeper.ask("signal", pid=pid, number=signal.SIGSTOP)
    print(pid, directory, flush=True)
"""
ENDS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "terminated": "os.kill(os.getpid(), signal.SIGTERM)",
    "interrupted": "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
    "failed": "raise SystemExit('sorry')",
    "finished": "",
    "gone": "os._exit(0)",
    # The copy holds the connection to the keeper open for a while.
    "forked": "os.fork() or time.sleep(5); os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("end", ENDS)
def test_processes_end_with_their_parent_however_it_ends(end):
    """Even a stopped process and its folder go when the parent goes."""
    program = textwrap.dedent(KEEPS) + ENDS[end]
    with run(program) as parent:
        pid, directory = parent.stdout.readline().split()

        await_true(lambda: not alive(int(pid)), timeout=4)
        await_true(lambda: not Path(directory).exists())


def test_a_fork_leaves_the_servers_to_its_parent():
    """A forked copy of a test's process that ends in order doesn't end the broker."""
    # Not here: since Python 3.12 a fork warns about threads, librdkafka's too.
    program = """
        import os
        from tests.servers._child import Child, ChildError

        keeper = Child("_keeper.py")
        if not (fork := os.fork()):
            keeper.close()
            os._exit(0)
        os.waitpid(fork, 0)
        print("after the fork:", os.path.isdir(keeper.ask("directory")))
        keeper.close()
        try:
            keeper.ask("directory")
        except ChildError:
            print("after the end: gone")
    """
    with run(program) as parent:
        output, _ = parent.communicate(timeout=20)

    assert output == "after the fork: True\nafter the end: gone\n"


def test_no_java_survives_a_killed_parent():
    """Killing the process that started a broker ends the broker, paused or not."""
    program = """
        import time
        from tests.servers.kafka import KafkaCluster

        with KafkaCluster() as cluster:
            (node,) = cluster.nodes
            node.pause()
            print(node.pid, cluster.directory, flush=True)
            time.sleep(60)
    """
    with run(program) as parent:
        pid, directory = parent.stdout.readline().split()
        assert alive(int(pid))

        parent.kill()

        await_true(lambda: not alive(int(pid)))
        await_true(lambda: not Path(directory).exists())


def test_the_program_stops_on_request():
    """`make kafka` uses the port, prints the address, and leaves nothing behind."""
    (port,) = _ports.free_ports(1)
    arguments = ("-m", "tests.servers.kafka", "--secure", "--port", str(port))
    with run(None, *arguments) as program:
        lines = [program.stdout.readline()]
        while "GREENDROP_BOOTSTRAP_SERVERS=" not in lines[-1]:
            lines.append(program.stdout.readline())
            assert lines[-1]
        assert f"127.0.0.1:{port}," in lines[0]
        directory = Path(lines[1].split()[-1])
        assert directory.is_dir()

        program.terminate()

        assert program.wait(20) == 0
        assert not directory.exists()


# The network -------------------------------------------------------------------------


@pytest.fixture
def echo():
    """Listen on a port and send back all received bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection):
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=answer, args=[connection], daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


def connect(proxy):
    """Open a connection to the proxy."""
    return socket.create_connection((proxy.host, proxy.port), timeout=10)


def exchange(connection, data=b"x"):
    """Send some bytes, wait until all are back, and return the seconds it took."""
    started_at = time.monotonic()
    connection.sendall(data)
    left = len(data)
    while left:
        received = len(connection.recv(65536))
        assert received, "hung up on"
        left -= received
    return time.monotonic() - started_at


def test_a_proxy_adds_latency(echo):
    """A round trip takes the given time, which can be changed."""
    with TcpProxy(*echo, round_trip=0.4) as proxy, connect(proxy) as connection:
        slow = exchange(connection)
        proxy.round_trip = 0.0
        fast = exchange(connection)

    # The machine may stand still for a tenth of a second.
    assert 0.4 <= slow < 0.8
    assert fast < 0.4


def test_a_proxy_adds_latency_and_not_a_limit(echo):
    """Many chunks share one delay instead of paying one each."""
    with TcpProxy(*echo, round_trip=0.1) as proxy, connect(proxy) as connection:
        assert exchange(connection, b"x" * 100_000) < 0.5


def test_a_paused_proxy_holds_everything_up(echo):
    """Nothing comes through until resume, then all of it."""
    with TcpProxy(*echo) as proxy, connect(proxy) as connection:
        exchange(connection)
        proxy.pause()
        connection.sendall(b"x")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)

        proxy.resume()
        connection.settimeout(10)

        assert connection.recv(1) == b"x"


def test_a_cut_proxy_drops_old_and_new_connections(echo):
    """Both sides of a connection notice, and connections work again after resume."""
    with TcpProxy(*echo) as proxy:
        with connect(proxy) as connection:
            exchange(connection)
            proxy.cut()
            with pytest.raises((AssertionError, OSError)):
                exchange(connection)
        with pytest.raises((AssertionError, OSError)), connect(proxy) as connection:
            exchange(connection)

        proxy.resume()

        with connect(proxy) as connection:
            exchange(connection)


def test_a_half_open_connection_stays_silent(echo):
    """Its client gets neither an answer nor an end, also after resume."""
    with TcpProxy(*echo) as proxy, connect(proxy) as connection:
        exchange(connection)
        proxy.half_open()
        proxy.resume()
        connection.sendall(b"x")
        connection.settimeout(0.2)

        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_new_connections_are_half_open_until_resume(echo):
    """A new connection is accepted and silent; after resume, new ones work."""
    with TcpProxy(*echo) as proxy:
        proxy.half_open()
        with connect(proxy) as connection:
            connection.sendall(b"x")
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(1)

        proxy.resume()

        with connect(proxy) as connection:
            exchange(connection)


def test_garbage_replaces_bytes_and_keeps_their_number(echo):
    """As many bytes come back as were sent, but not the same."""
    with TcpProxy(*echo) as proxy, connect(proxy) as connection:
        proxy.set_garbage(1.0)
        connection.sendall(bytes(100))
        received = b""
        while len(received) < 100:
            received += connection.recv(100)

        assert received != bytes(100)

        proxy.set_garbage(0.0)
        connection.sendall(b"x")

        assert connection.recv(1) == b"x"


def test_a_proxy_without_a_target_hangs_up(echo):
    """Without a listening target the client's connection is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = listener.getsockname()
    with TcpProxy(*target) as proxy, connect(proxy) as connection:
        try:
            received = connection.recv(1)
        except ConnectionResetError:
            received = b""

    assert received == b""


def test_a_proxied_broker_is_always_slow(kafka_proxied, topic):
    """The broker advertises the proxy, so each round trip is a slow one."""
    kafka_proxied.create_topic(topic)
    producer = Producer({"bootstrap.servers": kafka_proxied.proxied_bootstrap_servers})
    assert send(producer, topic, b"warm") == [None]

    kafka_proxied.proxy.round_trip = 0.2
    started_at = time.monotonic()
    assert send(producer, topic, b"slow") == [None]

    assert 0.2 <= time.monotonic() - started_at < 1.0


def test_a_cut_broker_is_reached_again_after_resume(kafka_proxied, topic, read_topic):
    """Cutting the connections holds a record up until resume."""
    kafka_proxied.create_topic(topic)
    producer = Producer(
        {
            "bootstrap.servers": kafka_proxied.proxied_bootstrap_servers,
            "enable.idempotence": True,
            "log_level": 0,
        }
    )
    assert send(producer, topic, b"first") == [None]

    kafka_proxied.proxy.cut()
    reports = send(producer, topic, b"second", timeout=0.3)
    assert reports == []
    kafka_proxied.proxy.resume()
    producer.flush(30)

    assert reports == [None]
    records = read_topic(kafka_proxied.bootstrap_servers, topic)
    assert [record.value for record in records] == [b"first", b"second"]


# The jars ----------------------------------------------------------------------------

FAKE_MAVEN = """\
#!/bin/sh
echo x >> {calls}
sleep 0.3
for argument; do
    case $argument in -DoutputDirectory=*) jars=${{argument#*=}};; esac
done
mkdir "$jars"
touch "$jars/kafka_2.13-4.jar"
"""


@pytest.fixture
def maven(tmp_path, monkeypatch):
    """Return a program that fetches the jars, instead of Maven."""
    program = tmp_path / "bin" / "mvn"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("GREENDROP_CACHE", str(tmp_path / "cache"))
    return program


def test_jars_are_fetched_once_by_concurrent_processes(maven, tmp_path):
    """One process calls Maven, and all get complete jars."""
    calls = tmp_path / "calls"
    maven.write_text(FAKE_MAVEN.format(calls=calls))
    fetch = """
        from tests.servers._jars import kafka_jars
        print(*(each.name for each in kafka_jars().iterdir()))
    """
    outputs = [process.communicate()[0] for process in [run(fetch) for _ in range(3)]]

    assert outputs == ["kafka_2.13-4.jar\n"] * 3
    assert calls.read_text() == "x\n"
    assert not list((tmp_path / "cache").glob("fetch-*"))


def test_a_failing_maven_is_quoted(maven):
    """Maven's output is in the error, and the cache is as empty as before."""
    maven.write_text("#!/bin/sh\necho no network here\nexit 1\n")

    with pytest.raises(Exception, match="no network here"):
        KafkaCluster().start()
