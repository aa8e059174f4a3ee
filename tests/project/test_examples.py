"""The programs in `examples`, run as a user would run them."""

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from greendrop.testing import MockCluster

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [pytest.mark.slow, pytest.mark.patched]

# Runs an example in an interpreter in which gevent can't be imported.
WITHOUT_GEVENT = """
import runpy, sys
sys.modules["gevent"] = None
runpy.run_path(sys.argv[1], run_name="__main__")
"""
# Runs one and says which modules of gevent it brought along.
TELLING_OF_GEVENT = """
import runpy, sys
path, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(path, run_name="__main__")
print("gevent:", sorted(name for name in sys.modules if name.startswith("gevent")))
"""


def run(*arguments, servers=""):
    """Run Python with these arguments; what it wrote to its standard output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        encoding="utf-8",
        env={
            **os.environ,
            "GREENDROP_BOOTSTRAP_SERVERS": servers,
            "PYTHONIOENCODING": "utf-8",
        },
        check=False,
        timeout=45,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def speakers(output):
    """Name who spoke, line by line, in the output of concurrent.py."""
    return re.findall(r"^ *\d+ ms  (\w+)", output, re.MULTILINE)


def changes(names):
    """Count how often another one speaks than in the line before."""
    return sum(one != other for one, other in pairwise(names))


def test_quickstart_shows_that_others_run_only_with_greendrop():
    """The ticker runs all the time beside greendrop, and hardly beside flush()."""
    output = run(EXAMPLES / "quickstart.py")

    row = re.search(r"^ *ticks, of 400 +(\d+) +(\d+)$", output, re.MULTILINE)
    assert row is not None, output
    greendrop, flush = map(int, row.groups())
    assert greendrop > 200
    assert flush < 100
    assert "100%" in output
    assert "█" in output


@pytest.mark.parametrize("options", [[], ["--threads"]], ids=["greenlets", "threads"])
def test_three_tasks_take_turns(options):
    """Greenlets or threads: each of the three works while the others wait."""
    output = run(EXAMPLES / "concurrent.py", *options)

    names = speakers(output)
    assert names.count("orders") == 11
    assert "order 10 is at" in output
    assert "all 100 are delivered" in output
    # One after the other would change twice, and once more for the last line.
    assert changes(names) > 10
    kind = "threads" if options else "greenlets"
    assert f"three {kind} and one producer" in output


def test_threads_leave_gevent_out():
    """With --threads the example, and greendrop in it, never imports gevent."""
    output = run("-c", TELLING_OF_GEVENT, EXAMPLES / "concurrent.py", "--threads")

    assert "polling by thread" in output
    assert output.endswith("gevent: []\n")


def test_threads_stand_in_when_there_is_no_gevent():
    """Where gevent can't be imported the same example runs with threads."""
    output = run("-c", WITHOUT_GEVENT, EXAMPLES / "concurrent.py")

    assert "three threads and one producer" in output
    assert changes(speakers(output)) > 10


def test_a_mistake_and_a_refused_message_keep_no_others_back():
    """A flush sends what it can, and close sends the rest."""
    output = run(EXAMPLES / "buffer.py")

    assert "committed, and 5 messages stored" in output
    assert "not buffered: payload: needs bytes, text or None, not dict" in output
    assert "3 messages stored, and one refused: 1 of 4 messages was" in output
    assert "2 messages wait" in output
    assert output.endswith("closed, 0 messages left\n")


def test_failed_messages_are_told_of_and_the_work_goes_on():
    """Both senders handle a broker's refusal, and the third one is not touched."""
    with MockCluster() as cluster:
        cluster.fail_requests("Produce", "TOPIC_AUTHORIZATION_FAILED", times=100)

        output = run(EXAMPLES / "concurrent.py", servers=cluster.bootstrap_servers)

    assert "order 1 failed: " in output
    assert "order 2" not in output
    assert "100 not delivered, 0 not sent: " in output
    assert "step 18 of 18" in output


def test_ten_tasks_share_the_producers_of_a_pool():
    """All slots of the pool are used, and free at the end."""
    output = run(EXAMPLES / "pool.py")

    assert output.count("sent 5 messages") == 10
    assert {f"slot-{slot}" for slot in (1, 2, 3)} == set(re.findall(r"slot-\d", output))
    assert "available=3, waiting=0" in output


def test_ten_senders_need_one_token():
    """The blocking provider holds nobody up; a server that is down is told of."""
    output = run(EXAMPLES / "oauth.py")

    assert output.count("is asked for a token") == 1
    ticks = re.search(r"another greenlet ran (\d+) times", output)
    assert ticks is not None, output
    assert int(ticks[1]) > 10
    assert "is told: no OAuth token: oauth_token_provider failed with URLErr" in output
    assert "the reason is URLError" in output


def test_requests_do_not_wait_for_the_telemetry():
    """Each request ends with its own messages; one tells that its message failed."""
    output = run(EXAMPLES / "scope.py")

    answers = re.findall(r"answers 200 after (\d+) ms; (\d+) others are", output)
    assert len(answers) == 2, output
    for milliseconds, others in answers:
        assert int(milliseconds) < 900
        assert int(others) > 10
    assert "request 3  answers 503: a message to 'greendrop-scope-closed'" in output


def test_a_users_tests_pass():
    """With the fixtures that come with greendrop; nothing is listened on."""
    output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES / "testing")

    assert "4 passed" in output


def test_slow_broker_and_slow_handler_are_told_apart():
    """The stall alarm names the handler; the broker that went is told of once."""
    output = run(EXAMPLES / "telling.py")

    lines = output.splitlines()
    slow = [
        float(each) for each in re.findall(r"produced_sync +duration=(\S+)", output)
    ]
    assert len(slow) == 3
    assert slow[1] > 0.4
    (stall,) = (line for line in lines if "hub.stalled" in line)
    assert lines.index(stall) > lines.index(next(x for x in lines if "request=3" in x))
    assert "in bad_request\n    time.sleep(HELD)" in output
    assert 1 <= output.count("kind=connection") <= 2
    assert re.search(r"slowest round trip +broker=\S+ ms=4\d\d", output)


def test_metrics_are_scraped():
    """The page has what was sent, and what statistics say of the broker."""
    output = run(EXAMPLES / "metrics.py")

    acknowledged = 'greendrop_messages_acknowledged_total{topic="greendrop-%s"} %d.0'
    assert acknowledged % ("orders", 100) in output
    assert acknowledged % ("clicks", 1_000) in output
    assert "greendrop_broker_round_trip_seconds{" in output


def test_spans_are_below_their_requests():
    """Each request has its messages' spans; one failed, one was traced before."""
    output = run(EXAMPLES / "tracing.py")

    requests = re.split(r"^request \d", output, flags=re.MULTILINE)[1:]
    assert [request.count("  send greendrop-tracing") for request in requests] == [
        5,
        2,
        2,
    ]
    assert "3 messages  3 links" in output
    assert re.search("CLIENT .* at .*  1 links", output)
    assert "TOPIC_AUTHORIZATION_FAILED" in output


def test_records_go_from_topic_to_topic():
    """The worker of exactly_once.py works until nothing is left, and ends."""
    output = run(EXAMPLES / "exactly_once.py")

    assert "1000 records are in greendrop-in-" in output
    assert "nothing was left to do" in output


# --- hosts: each in a folder of its own ----------------------------------------------


def test_gunicorns_answers_say_that_messages_are_stored():
    """Two workers of gunicorn answer a thousand requests, and end well."""
    output = run(EXAMPLES / "gunicorn" / "run_gunicorn.py")

    assert "1000 of 1000 answers say: stored" in output
    assert output.endswith("told to end, gunicorn ends with 0\n")


def test_flask_serves_all_at_once():
    """A hundred orders wait for a slow broker together."""
    output = run(EXAMPLES / "flask" / "run_flask.py")

    took = re.search(r"100 of 100 orders are stored, all of them in (\d+) ms", output)
    assert took is not None, output
    assert int(took[1]) < 2000
    assert "the producer of 'greendrop' is closed" in output
    assert "the producer of 'audit' is closed" in output


def test_celery_sends_in_each_pool():
    """A hundred tasks succeed in each pool, and its worker ends well."""
    output = run(EXAMPLES / "celery" / "run_celery.py")

    for pool in ("gevent", "prefork"):
        assert f"{pool}: 100 tasks, the first one's invoice: partition" in output
        assert f"{pool}: the worker ends with 0" in output


def test_django_orders_in_two_ways():
    """What rolls back is not told; what is in the outbox is sent."""
    output = run(EXAMPLES / "django" / "run_django.py")

    assert "no issues" in output
    assert "/order: answers {200: 27, 400: 3}" in output
    assert "/order-surely: answers {200: 30}" in output
    assert output.endswith("the relay has sent 30 messages\n")


def test_locusts_table_has_the_messages():
    """Users' messages are in Locust's table, none of them failed."""
    output = run(EXAMPLES / "locust" / "run_locust.py")

    rows = re.findall(r"^KAFKA +(\S+) +(\d+) +0\(0.00%\)", output, re.MULTILINE)
    counts = {name: int(count) for name, count in rows}
    assert counts.keys() == {"clicks", "greendrop-locust-orders"}
    assert counts["greendrop-locust-orders"] > 500


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_deliver_what_they_find(method):
    """Nothing is lost when a pool's processes end; the end tells of a loss."""
    output = run(EXAMPLES / "multiprocessing" / "run_multiprocessing.py", method)

    assert re.fullmatch(rf"{method}: \d+ files, \d+ words sent and delivered\n", output)


@pytest.mark.skipif(
    not Path(
        f"/usr/lib/uwsgi/plugins/gevent_python{sys.version_info[0]}"
        f"{sys.version_info[1]}_plugin.so"
    ).exists(),
    reason="needs Debian's uWSGI with gevent, for this Python",
)
def test_uwsgis_workers_store():
    """Two workers of uWSGI answer, and end well."""
    output = run(EXAMPLES / "uwsgi" / "run_uwsgi.py")

    counts = re.findall(r"^worker \d+ has stored (\d+) messages", output, re.MULTILINE)
    assert sum(map(int, counts)) == 300
    assert "reports come by 'fd'" in output
    assert output.endswith("told to end, uWSGI ends with 0\n")


@pytest.mark.parametrize(
    "folder", sorted(path.parent.name for path in EXAMPLES.glob("*/run_*.py"))
)
def test_each_host_is_listed(folder):
    """The list of examples has it, and its README says how to run it."""
    assert f"]({folder}/README.md)" in (EXAMPLES / "README.md").read_text()
    readme = (EXAMPLES / folder / "README.md").read_text()
    assert f"python examples/{folder}/run_{folder}.py" in readme
    assert "GREENDROP_BOOTSTRAP_SERVERS" in readme
