"""Mock clusters: orders to brokers, and clusters in a process of their own."""

import os
import signal
import subprocess
import time
from contextlib import suppress

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.cimpl import Producer

from greendrop import testing
from greendrop._librdkafka.error_codes import error_code
from greendrop.errors import GreendropError
from greendrop.testing import MockCluster
from tests.interpreter import run, start


@pytest.fixture(params=["here", "elsewhere"])
def cluster(request):
    """Run a cluster of two brokers, in this process and in one of its own."""
    own_process = request.param == "elsewhere"
    with MockCluster(2, own_process=own_process) as cluster:
        yield cluster


@pytest.fixture
def local():
    """Run a cluster of one broker in this process."""
    with MockCluster() as cluster:
        yield cluster


@pytest.fixture
def producer_on():
    """Connect producers of confluent-kafka, closed when the test ends."""
    made = []

    def make(cluster, **kafka):
        config = {
            "bootstrap.servers": cluster.bootstrap_servers,
            "linger.ms": 0,
            "reconnect.backoff.ms": 20,
            "reconnect.backoff.max.ms": 50,
            "log_level": 0,
        }
        more = {key.replace("_", "."): value for key, value in kafka.items()}
        made.append(Producer({**config, **more}))
        return made[-1]

    yield make
    for producer in made:
        producer.purge()
        with suppress(KafkaException):  # a fatal error, the subject of the test
            producer.close()


def send(producer, topic="events", **message):
    """Send a message; return its error's name, or None, and the delivery report."""
    reports = []
    producer.produce(
        topic, b"x", on_delivery=lambda *both: reports.append(both), **message
    )
    assert producer.flush(20) == 0
    error, delivered = reports[0]
    return error and error.name(), delivered


def seconds_to_send(producer) -> float:
    """Send a message and return the seconds until its report."""
    started_at = time.monotonic()
    assert send(producer)[0] is None
    return time.monotonic() - started_at


def test_messages_are_delivered(cluster, producer_on):
    """A plain producer finds the brokers and delivers to them."""
    assert send(producer_on(cluster))[0] is None


def test_each_broker_has_an_address(cluster):
    """Two brokers, two addresses."""
    assert len(cluster.bootstrap_servers.split(",")) == 2


def test_topics_have_as_many_partitions_as_asked(cluster, producer_on):
    """A created topic has its partitions, one at first use has four."""
    cluster.create_topic("narrow", partitions=1)
    producer = producer_on(cluster)
    send(producer, "used")

    topics = producer.list_topics(timeout=10).topics

    assert len(topics["narrow"].partitions) == 1
    assert len(topics["used"].partitions) == 4


def test_creating_a_topic_twice_is_an_error(cluster):
    """The error of a refused order reaches the caller, in either process."""
    cluster.create_topic("events")

    with pytest.raises(GreendropError, match="topic_create"):
        cluster.create_topic("events")


@pytest.mark.slow
def test_round_trip_delays_each_request(cluster, producer_on):
    """A round trip of 0.2 s makes each send take that long, until it is changed."""
    producer = producer_on(cluster)
    send(producer)

    cluster.round_trip(0.2)
    slow = seconds_to_send(producer)
    cluster.round_trip(0)
    fast = seconds_to_send(producer)

    assert 0.2 <= slow < 2
    assert fast < 0.2


@pytest.mark.slow
def test_broker_that_is_down_takes_nothing(cluster, producer_on):
    """While all brokers are down a message expires; when they are up it arrives."""
    producer = producer_on(cluster, message_timeout_ms=700)
    send(producer)

    cluster.broker_down()
    assert send(producer)[0] == "_MSG_TIMED_OUT"

    cluster.broker_up()
    patient = producer_on(cluster)
    assert send(patient)[0] is None


def test_one_broker_can_be_down(cluster, producer_on):
    """The partitions of the other broker still take messages."""
    cluster.create_topic("events", partitions=2)
    cluster.lead_partition("events", 0, 1)
    cluster.lead_partition("events", 1, 2)
    producer = producer_on(cluster, message_timeout_ms=5000)

    cluster.broker_down(1)

    assert send(producer, partition=1)[0] is None


def test_requests_fail_on_request(cluster, producer_on):
    """Only the next request fails with the error given by name."""
    producer = producer_on(cluster)
    cluster.fail_requests("Produce", "MESSAGE_TOO_LARGE")

    assert send(producer)[0] == "MSG_SIZE_TOO_LARGE"
    assert send(producer)[0] is None


@pytest.mark.slow
def test_retriable_errors_are_retried(local, producer_on):
    """A retriable error that occurs three times still ends in a delivery."""
    producer = producer_on(local, retry_backoff_ms=10, retry_backoff_max_ms=10)
    local.watch_requests()
    local.fail_requests("Produce", "NOT_LEADER_OR_FOLLOWER", times=3)

    assert send(producer)[0] is None
    assert local.requests().count("Produce") == 4


def test_pending_failures_can_be_cancelled(local, producer_on):
    """Failures that have not happened yet are cancelled."""
    local.fail_requests("Produce", 10, times=5)

    local.forgive_requests("Produce")

    assert send(producer_on(local))[0] is None


@pytest.mark.slow
def test_one_kind_of_request_can_be_late(cluster, producer_on):
    """Only the given number of requests, of that kind and broker, is late."""
    cluster.create_topic("events", partitions=1)
    cluster.lead_partition("events", 0, 2)
    producer = producer_on(cluster)
    send(producer)

    cluster.delay_requests("Produce", 0.3, broker=2)

    assert seconds_to_send(producer) >= 0.3
    assert seconds_to_send(producer) < 0.3


def test_topics_fail_on_request(local, producer_on):
    """A topic without permission fails its messages, until that is cancelled."""
    local.fail_topic("secret", "TOPIC_AUTHORIZATION_FAILED")
    producer = producer_on(local, topic_metadata_refresh_interval_ms=50)
    assert send(producer, "secret")[0] == "TOPIC_AUTHORIZATION_FAILED"

    local.fail_topic("secret", "NONE")

    assert send(producer_on(local), "secret")[0] is None


@pytest.mark.slow
def test_partition_without_leader_takes_nothing(local, producer_on):
    """Messages to a partition without a leader wait until they expire."""
    local.create_topic("events", partitions=1)
    local.lead_partition("events", 0, None)

    assert send(producer_on(local, message_timeout_ms=500))[0] == "_MSG_TIMED_OUT"


def test_partitions_move(cluster, producer_on):
    """A partition is led by the broker that was chosen."""
    cluster.create_topic("events", partitions=1)
    cluster.lead_partition("events", 0, 2)

    metadata = producer_on(cluster).list_topics("events", timeout=10)

    assert metadata.topics["events"].partitions[0].leader == 2


def test_transactions_find_their_coordinator(cluster, producer_on):
    """A transactional producer works with the coordinator that was chosen."""
    cluster.coordinate_transactions("t", 2)
    producer = producer_on(cluster, transactional_id="t")

    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce("events", b"x")
    producer.commit_transaction(20)


def test_transactions_fail_on_request(local, producer_on):
    """An error of EndTxn reaches the caller of commit; error 47 fences for good."""
    producer = producer_on(local, transactional_id="t")
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce("events", b"x")
    local.fail_requests("EndTxn", "INVALID_PRODUCER_EPOCH")

    with pytest.raises(KafkaException) as raised:
        producer.commit_transaction(20)

    assert raised.value.args[0].fatal()


def test_requests_are_listed_in_order(cluster, producer_on):
    """Requests since the beginning are listed, except those of the cluster itself."""
    cluster.watch_requests()
    assert cluster.requests() == []

    send(producer_on(cluster))

    seen = cluster.requests()
    assert seen[0] == "ApiVersions"
    assert seen.index("Metadata") < seen.index("Produce")
    assert not [each for each in seen if each.isdigit()]


def test_watching_again_forgets(local, producer_on):
    """A second watch starts from nothing."""
    local.watch_requests()
    send(producer_on(local, enable_metrics_push=False))

    local.watch_requests()

    assert "Produce" not in local.requests()


def test_unwatched_cluster_remembers_nothing(local, producer_on):
    """Without watching, requests are not kept."""
    send(producer_on(local))

    assert local.requests() == []


@pytest.mark.parametrize(
    ("order", "hint"),
    [
        (lambda it: it.fail_requests("Produse", 10), "'Produce'"),
        (lambda it: it.fail_requests("Produce", "MSG_SIZE_TO_LARGE"), "'MSG_SIZE_TOO"),
        (lambda it: it.fail_topic("t", "nonsense-of-a-kind"), "no error is named"),
        (lambda it: it.round_trip(-0.1), "between 0 and 3600"),
        (lambda it: it.round_trip(20_000), "between 0 and 3600"),
    ],
)
def test_invalid_orders_are_refused(local, order, hint):
    """An unknown name or an invalid duration raises a helpful error."""
    with pytest.raises(ValueError, match=hint):
        order(local)


@pytest.mark.parametrize(
    ("code", "kafkas", "librdkafkas"),
    [
        (-1, "UNKNOWN_SERVER_ERROR", "UNKNOWN"),
        (0, "NONE", "NO_ERROR"),
        (2, "CORRUPT_MESSAGE", "INVALID_MSG"),
        (3, "UNKNOWN_TOPIC_OR_PARTITION", "UNKNOWN_TOPIC_OR_PART"),
        (4, "INVALID_FETCH_SIZE", "INVALID_MSG_SIZE"),
        (6, "NOT_LEADER_OR_FOLLOWER", "NOT_LEADER_FOR_PARTITION"),
        (10, "MESSAGE_TOO_LARGE", "MSG_SIZE_TOO_LARGE"),
        (11, "STALE_CONTROLLER_EPOCH", "STALE_CTRL_EPOCH"),
        (17, "INVALID_TOPIC_EXCEPTION", "TOPIC_EXCEPTION"),
    ],
)
def test_names_of_kafka_and_librdkafka_are_known(code, kafkas, librdkafkas):
    """Errors can be given by either name."""
    assert error_code(kafkas) == error_code(librdkafkas) == code


def test_closing_twice_does_no_harm(cluster):
    """A second close does nothing."""
    cluster.close()
    cluster.close()


def test_closed_cluster_raises_errors(cluster):
    """Orders to a closed cluster raise an error, and don't crash."""
    cluster.close()

    with pytest.raises(GreendropError, match="closed"):
        cluster.round_trip(0.1)


@pytest.mark.slow
def test_brokers_stop_when_closed(cluster, producer_on):
    """After close nothing listens on the ports."""
    producer = producer_on(cluster, message_timeout_ms=300)
    cluster.close()

    assert send(producer)[0] == "_MSG_TIMED_OUT"


def test_impossible_cluster_is_refused():
    """A cluster without brokers can't be made."""
    with pytest.raises(ValueError, match="at least one broker"):
        MockCluster(0)


# -- clusters in a process of their own ---------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_spawned_cluster_ends_with_its_parent(end):
    """The brokers don't outlive their parent, however it ends."""
    parent = start(
        """
        import time
        from greendrop.testing import MockCluster

        cluster = MockCluster.spawn()
        print(cluster._driver._child.pid, flush=True)
        time.sleep(60)
        """,
        "none",
    )
    with parent:
        child = int(parent.stdout.readline())
        os.kill(child, 0)

        parent.send_signal(end)
        parent.wait(20)

    deadline = time.monotonic() + 20
    while lives(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lives(pid) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    ps = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], stdout=subprocess.PIPE, check=False
    )
    return not ps.stdout.startswith(b"Z") and bool(ps.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the order", "after it"])
def test_spawned_cluster_that_died_raises_an_error(when):
    """A cluster whose process was killed raises an error, and doesn't hang."""
    with MockCluster.spawn() as cluster:
        cluster._driver._child.kill()
        if when == "before the order":
            cluster._driver._child.wait()

        with pytest.raises(GreendropError, match="process ended"):
            cluster.round_trip(0.1)


@pytest.mark.slow
def test_forked_child_does_not_stop_the_cluster():
    """A child that closes its copy neither hangs nor stops the parent's brokers."""
    run(
        """
        import os
        from greendrop.testing import MockCluster

        with MockCluster() as cluster:
            child = os.fork()
        # The child leaves the block too; the parent then waits for it.
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
        "none",
    )


# -- fatal errors -------------------------------------------------------------------


def test_fatal_error_can_be_triggered(make_producer):
    """A test makes a producer's client fail for good, with a chosen code."""
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"x")
    assert testing.fatal_error(producer) is None

    testing.trigger_fatal_error(producer, 47, "fenced by a test")

    code, text = testing.fatal_error(producer)
    assert code == 47
    assert "fenced by a test" in text


def test_fatal_error_needs_a_client(make_producer):
    """A producer that has sent nothing has no client that could fail."""
    with pytest.raises(GreendropError, match="no client yet"):
        testing.trigger_fatal_error(make_producer())


@pytest.mark.slow
@pytest.mark.patched
def test_spawned_cluster_works_in_a_patched_program():
    """Orders go to the other process under monkey-patching too."""
    run(
        """
        import time
        from greendrop import Producer
        from greendrop.testing import MockCluster

        with MockCluster.spawn(2) as cluster:
            cluster.round_trip(0.05)
            servers = {"bootstrap.servers": cluster.bootstrap_servers}
            with Producer(kafka=servers) as producer:
                producer.produce_sync(topic="events", payload=b"x")
                started_at = time.monotonic()
                producer.produce_sync(topic="events", payload=b"x")
                assert time.monotonic() - started_at > 0.045
        """,
        "patched",
    )


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("mode", ["unpatched", "patched", "late"])
def test_spawned_cluster_answers_many_at_once(mode):
    """Each caller gets its own answer, even if other callers are interrupted."""
    run(
        """
        import gevent
        from greendrop import _concurrency
        from greendrop.testing import MockCluster

        answers, ended = [], []

        def ask(times=50):
            for _ in range(times):
                answers.append(cluster.bootstrap_servers)
                cluster.round_trip(0)
            ended.append(True)

        def ask_in_a_hurry():
            for _ in range(50):
                with gevent.Timeout(0.0002, False):
                    cluster.requests()

        with MockCluster.spawn() as cluster:
            expected = cluster.bootstrap_servers
            for _ in range(2):
                assert _concurrency.start_thread(ask)
            tasks = [gevent.spawn(each) for each in (ask, ask, ask_in_a_hurry)]
            gevent.joinall(tasks, timeout=20, raise_error=True)
            with gevent.Timeout(20):
                while len(ended) < 4:
                    gevent.sleep(0.01)

        assert answers == [expected] * 200
        """,
        mode,
    )
