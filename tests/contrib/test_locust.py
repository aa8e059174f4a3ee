"""`greendrop.contrib.locust`, in headless runs of Locust."""

from __future__ import annotations

import pytest

from tests.kafka.running import ROOT, Program

pytestmark = [pytest.mark.slow, pytest.mark.patched]

#: Seconds that other greenlets may have to wait. A quiet machine needs less than 0.02;
#: the promise is 0.05; the rest is for a busy machine.
LONGEST_GAP = 0.1

# Locust's own `--run-time` counts from the time that gevent's loop has cached. On a
# busy machine that is seconds ago, and ends the run at once.
ENDING = """
import gevent
from locust import events

@events.init.add_listener
def end_some_time_after_spawning(runner, **_):
    def end(**_):
        gevent.spawn_later({seconds}, runner.quit)

    events.spawning_complete.add_listener(end)
"""
MANY_USERS = """
import locust
from locust import events, task
from greendrop.contrib.locust import GreendropUser
from tests.kafka.running import write_facts
from tests.tasks import LongestGap

gap = LongestGap()
used = set()

class Shop(GreendropUser):
    wait_time = locust.between(0.1, 0.5)

    @task
    def order(self):
        used.add(self.client.producer)
        assert self.client.produce_sync(topic="orders", payload=b"x" * 100).offset >= 0

# Once all are there: starting 500 users is Locust's own work.
events.spawning_complete.add_listener(lambda **_: gap.__enter__())

@events.test_stopping.add_listener
def stopping(environment, **_):
    gap.__exit__()
    users = environment.runner.user_count
    write_facts(seconds=gap.seconds, ticks=gap.ticks, users=users)
    write_facts(producers=len(used), polling=[each.polling for each in used])
"""
KINDS = """
from locust import constant, events, task
from greendrop.contrib.locust import GreendropUser
from tests.kafka.running import write_facts

class One(GreendropUser):
    fixed_count = 2
    settings = {"max_payload_size": 500_000}
    wait_time = constant(0.05)

    def context(self):
        return {"who": "one"}

    @task
    def all_kinds(self):
        client = self.client
        assert client.produce_sync(topic="orders", payload=b"123").topic == "orders"
        many = [{"topic": "orders", "payload": b"12345"}] * 2
        assert len(client.produce_many_sync(many)) == 2
        assert client.produce_async(topic="orders", payload="12", name="later")
        # Failures don't raise. They are in the statistics.
        refused = {"topic": "orders", "payload": "x", "partition": 99}
        assert client.produce_sync(**refused, name="refused") is None
        client.produce_async(**refused, name="refused, later")
        assert client.produce_many_sync([refused], name="refused, many") is None

class Two(One):
    fixed_count = 1
    request_type = "KAFKA 2"

requests = []
events.request.add_listener(lambda **facts: requests.append(facts))

@events.quitting.add_listener
def quitting(environment, **_):
    from greendrop.contrib import locust
    shared = locust._all_shared.items()
    producers = {kind.__name__: one.producer for kind, one in shared}
    write_facts(
        producers=len(set(map(id, producers.values()))),
        left=[each.queue_size for each in producers.values()],
        contexts=sorted({facts["context"].get("who", "") for facts in requests}),
        requests=[
            [facts["request_type"], facts["name"], facts["response_length"],
             facts["response_time"], type(facts["exception"]).__name__]
            for facts in requests
        ],
    )
"""


@pytest.fixture
def run(tmp_path):
    """Run Locust without its web page."""

    def run(source, *options, servers=None):
        file = tmp_path / "locustfile.py"
        file.write_text(source)
        arguments = ["-m", "locust", "-f", str(file), "--headless", "--only-summary"]
        arguments += ["--host", servers] if servers else []
        log = tmp_path / "log"
        with Program(
            *arguments, *options, log_file=log, PYTHONPATH=str(ROOT)
        ) as locust:
            locust.wait()
        return locust

    return run


def test_five_hundred_users_leave_the_hub_free(run, mock_cluster):
    """Other greenlets run on time while 500 users wait for 50 ms round trips.

    All of them share one producer.
    """
    mock_cluster.round_trip(0.05)

    locust = run(
        MANY_USERS + ENDING.format(seconds=4),
        "-u500",
        "-r250",
        servers=mock_cluster.bootstrap_servers,
    )

    facts = locust.facts
    assert locust.status == 0, locust.log
    assert (facts["users"], facts["producers"]) == (500, 1)
    assert facts["polling"] == ["fd"]
    assert facts["ticks"] > 500
    assert facts["seconds"] < LONGEST_GAP


def test_each_message_is_a_request(run, mock_cluster):
    """Sync, batch and async messages are in the statistics with their real latencies.

    Failures are there as well, and so are messages still in flight at the end.
    """
    mock_cluster.round_trip(0.05)

    locust = run(
        KINDS + ENDING.format(seconds=2),
        "-u3",
        "-r3",
        servers=mock_cluster.bootstrap_servers,
    )

    facts = locust.facts
    assert locust.status == 1, locust.log  # Locust's exit status for failed requests
    assert "AssertionError" not in locust.log
    assert facts["contexts"] == ["one"]
    assert facts["left"] == [0] * facts["producers"]
    assert facts["producers"] == 2
    assert {kind for kind, *_ in facts["requests"]} == {"KAFKA", "KAFKA 2"}
    lengths = {name: rest for _, name, *rest in facts["requests"]}
    assert lengths["orders"][0] == 3
    assert lengths["batch"][0] == 10
    assert lengths["later"][0] == 2
    assert "refused" in lengths
    for _, name, _, milliseconds, error in facts["requests"]:
        if name.startswith("refused"):
            assert error.endswith("Error"), name
        else:
            assert error == "NoneType"
            assert milliseconds >= 50, name


def test_a_user_without_an_address_stops_the_run(run):
    """Without a host and bootstrap servers Locust's log names what is missing."""
    locust = run(MANY_USERS + ENDING.format(seconds=2), "-u1")

    assert "set kafka['bootstrap.servers'], or the host (--host)" in locust.log
    assert locust.status != 0
