"""The programs in `examples`, run as users run them."""

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
# Runs an example, and prints which modules of gevent it has imported.
REPORTING_GEVENT = """
import runpy, sys
path, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(path, run_name="__main__")
print("gevent:", sorted(name for name in sys.modules if name.startswith("gevent")))
"""
# Added to a Locust file: gevent's loop reads the clock before Locust starts its timer.
REFRESHING_THE_CLOCK = """
import gevent
from locust import events

events.init.add_listener(lambda **_: gevent.get_hub().loop.update_now())
"""


def run(*arguments, servers="", **environment):
    """Run Python with these arguments, and return its standard output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        encoding="utf-8",
        env={
            **os.environ,
            "GREENDROP_BOOTSTRAP_SERVERS": servers,
            "PYTHONIOENCODING": "utf-8",
            **environment,
        },
        check=False,
        timeout=45,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def tasks_of(output):
    """Return the task of each line in the output of concurrent.py."""
    return re.findall(r"^ *\d+ ms  (\w+)", output, re.MULTILINE)


def changes(names):
    """Count the lines whose task differs from that of the line before."""
    return sum(one != other for one, other in pairwise(names))


def test_quickstart_shows_that_other_greenlets_only_run_beside_greendrop():
    """The ticker runs all the time beside greendrop, and hardly ever beside flush()."""
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
    """Each of the three tasks works while the others wait, as greenlets or threads."""
    output = run(EXAMPLES / "concurrent.py", *options)

    names = tasks_of(output)
    assert names.count("orders") == 11
    assert "order 10 is at" in output
    assert "all 100 are delivered" in output
    # Sequential tasks would change twice, and once more for the last line.
    assert changes(names) > 10
    kind = "threads" if options else "greenlets"
    assert f"three {kind} and one producer" in output


def test_threads_do_not_import_gevent():
    """With `--threads` neither the example nor greendrop imports gevent."""
    output = run("-c", REPORTING_GEVENT, EXAMPLES / "concurrent.py", "--threads")

    assert "polling by thread" in output
    assert output.endswith("gevent: []\n")


def test_threads_are_used_where_gevent_is_missing():
    """The same example runs with threads where gevent can't be imported."""
    output = run("-c", WITHOUT_GEVENT, EXAMPLES / "concurrent.py")

    assert "three threads and one producer" in output
    assert changes(tasks_of(output)) > 10


def test_a_mistake_and_a_refused_message_keep_no_others_back():
    """A flush sends what it can, and close sends the rest."""
    output = run(EXAMPLES / "buffer.py")

    assert "committed, and 5 messages stored" in output
    assert "not buffered: payload: needs bytes, text or None, not dict" in output
    assert "3 messages stored, and one refused: 1 of 4 messages was" in output
    assert "2 messages wait" in output
    assert output.endswith("closed, 0 messages left\n")


def test_failed_messages_do_not_stop_the_other_tasks():
    """Both senders handle the refusal of a broker; the third task is not affected."""
    with MockCluster() as cluster:
        cluster.fail_requests("Produce", "TOPIC_AUTHORIZATION_FAILED", times=100)

        output = run(EXAMPLES / "concurrent.py", servers=cluster.bootstrap_servers)

    assert "order 1 failed: " in output
    assert "order 2" not in output
    assert "100 not delivered, 0 not sent: " in output
    assert "step 18 of 18" in output


def test_ten_tasks_share_the_producers_of_a_pool():
    """All slots of the pool are used, and all are free at the end."""
    output = run(EXAMPLES / "pool.py")

    assert output.count("sent 5 messages") == 10
    assert {f"slot-{slot}" for slot in (1, 2, 3)} == set(re.findall(r"slot-\d", output))
    assert "available=3, waiting=0" in output


def test_ten_senders_need_one_token():
    """The blocking provider stops no other greenlet; a server that is down is named."""
    output = run(EXAMPLES / "oauth.py")

    assert output.count("issues a token") == 1
    ticks = re.search(r"another greenlet ran (\d+) times", output)
    assert ticks is not None, output
    assert int(ticks[1]) > 10
    assert (
        "gets an error: no OAuth token: oauth_token_provider failed with URLErr"
        in output
    )
    assert "the reason is URLError" in output


def test_requests_do_not_wait_for_the_telemetry():
    """Each request ends with its own messages; one answers that its message failed."""
    output = run(EXAMPLES / "scope.py")

    answers = re.findall(r"answers 200 after (\d+) ms; (\d+) others are", output)
    assert len(answers) == 2, output
    for milliseconds, others in answers:
        assert int(milliseconds) < 900
        assert int(others) > 10
    assert "request 3  answers 503: a message to 'greendrop-scope-closed'" in output


def test_a_users_tests_pass():
    """The user's tests use greendrop's fixtures, and open no port."""
    output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES / "testing")

    assert "4 passed" in output


def test_a_slow_broker_and_a_slow_handler_can_be_distinguished():
    """The stall alarm names the handler; the broker that is away is logged once."""
    output = run(EXAMPLES / "observing.py")

    lines = output.splitlines()
    slow = [
        float(each) for each in re.findall(r"produced_sync +duration=(\S+)", output)
    ]
    assert len(slow) == 3
    assert slow[1] > 0.4
    (stall,) = (line for line in lines if "hub.stalled" in line)
    assert lines.index(stall) > lines.index(next(x for x in lines if "request=3" in x))
    assert "in bad_request\n    time.sleep(BLOCKED)" in output
    assert 1 <= output.count("kind=connection") <= 2
    assert re.search(r"slowest round trip +broker=\S+ ms=4\d\d", output)


def test_metrics_are_scraped():
    """The page has the counts of messages, and the statistics of the broker."""
    output = run(EXAMPLES / "metrics.py")

    acknowledged = 'greendrop_messages_acknowledged_total{topic="greendrop-%s"} %d.0'
    assert acknowledged % ("orders", 100) in output
    assert acknowledged % ("clicks", 1_000) in output
    assert "greendrop_broker_round_trip_seconds{" in output


def test_spans_are_children_of_their_requests():
    """Each request has the spans of its messages, also of failed and traced ones."""
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
    """The worker of exactly_once.py processes all records, and ends."""
    output = run(EXAMPLES / "exactly_once.py")

    assert "1000 records are in greendrop-in-" in output
    assert "nothing was left to do" in output


# --- hosts, each in a folder of its own ----------------------------------------------


def test_gunicorn_answers_when_messages_are_stored():
    """Two workers of gunicorn answer a thousand requests, and exit with status 0."""
    output = run(EXAMPLES / "gunicorn" / "run_gunicorn.py")

    assert "1000 of 1000 answers say: stored" in output
    assert output.endswith("after SIGTERM gunicorn ends with 0\n")


def test_flask_serves_concurrent_orders():
    """A hundred orders wait for a slow broker at the same time."""
    output = run(EXAMPLES / "flask" / "run_flask.py")

    match = re.search(r"100 of 100 orders are stored, all of them in (\d+) ms", output)
    assert match is not None, output
    assert int(match[1]) < 2000
    assert "the producer of 'greendrop' is closed" in output
    assert "the producer of 'audit' is closed" in output


def test_celery_sends_in_each_pool():
    """A hundred tasks succeed in each pool, and its worker exits with status 0."""
    output = run(EXAMPLES / "celery" / "run_celery.py")

    for pool in ("gevent", "prefork"):
        assert f"{pool}: 100 tasks, the first one's invoice: partition" in output
        assert f"{pool}: the worker ends with 0" in output


def test_django_sends_after_commits_and_from_an_outbox():
    """Orders that roll back send nothing; the relay sends the outbox."""
    output = run(EXAMPLES / "django" / "run_django.py")

    assert "no issues" in output
    assert "/order: answers {200: 27, 400: 3}" in output
    assert "/order-surely: answers {200: 30}" in output
    assert output.endswith("the relay has sent 30 messages\n")


def test_messages_are_in_locusts_table(tmp_path):
    """The table shows the messages of the users, without failures."""
    # Locust's run time counts from the time that gevent's loop has cached. On a busy
    # machine that is seconds ago, and ends the run at once.
    clock = tmp_path / "clock.py"
    clock.write_text(REFRESHING_THE_CLOCK)

    output = run(
        EXAMPLES / "locust" / "run_locust.py",
        LOCUST_LOCUSTFILE=f"locustfile.py,{clock}",
    )

    rows = re.findall(r"^KAFKA +(\S+) +(\d+) +0\(0.00%\)", output, re.MULTILINE)
    counts = {name: int(count) for name, count in rows}
    assert counts.keys() == {"clicks", "greendrop-locust-orders"}
    assert counts["greendrop-locust-orders"] > 500


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_child_processes_deliver_their_messages(method):
    """No message is lost when the processes of a pool end."""
    output = run(EXAMPLES / "multiprocessing" / "run_multiprocessing.py", method)

    assert re.fullmatch(rf"{method}: \d+ files, \d+ words sent and delivered\n", output)


@pytest.mark.skipif(
    not Path(
        f"/usr/lib/uwsgi/plugins/gevent_python{sys.version_info[0]}"
        f"{sys.version_info[1]}_plugin.so"
    ).exists(),
    reason="needs Debian's uWSGI with gevent, for this Python",
)
def test_uwsgi_workers_store_messages():
    """Two workers of uWSGI answer, and exit with status 0."""
    output = run(EXAMPLES / "uwsgi" / "run_uwsgi.py")

    counts = re.findall(r"^worker \d+ has stored (\d+) messages", output, re.MULTILINE)
    assert sum(map(int, counts)) == 300
    assert "delivery reports arrive by 'fd'" in output
    assert output.endswith("after SIGTERM uWSGI ends with 0\n")


# --- brokers that can't be reached ---------------------------------------------------

#: A port without a listener.
NOWHERE = "127.0.0.1:1"
SENDING = [path for path in EXAMPLES.glob("*.py") if path.stem != "oauth"]
HOSTS = ["celery", "django", "flask", "gunicorn", "locust"]


@pytest.mark.parametrize("path", sorted(SENDING), ids=lambda path: path.stem)
def test_each_example_prints_at_once_that_no_broker_answers(path):
    """The reason comes long before a message times out."""
    process = subprocess.Popen(
        [sys.executable, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env={**os.environ, "GREENDROP_BOOTSTRAP_SERVERS": NOWHERE},
    )
    lines = []
    while not lines or (lines[-1] and "Connection refused" not in lines[-1]):
        lines.append(process.stdout.readline())
    process.kill()
    process.communicate()

    assert "Connection refused" in lines[-1], lines
    assert "Traceback" not in "".join(lines)


@pytest.mark.parametrize("folder", HOSTS)
def test_each_host_ends_with_advice_when_no_broker_answers(folder):
    """The findings of `greendrop doctor` are printed, and nothing is started."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / folder / f"run_{folder}.py"],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "GREENDROP_BOOTSTRAP_SERVERS": NOWHERE},
        check=False,
        timeout=45,
    )

    assert done.returncode == 1
    assert f"FAILED  broker: {NOWHERE}: Connection refused" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "folder", sorted(path.parent.name for path in EXAMPLES.glob("*/run_*.py"))
)
def test_each_host_is_listed(folder):
    """The list of examples names it, and its README says how to run it."""
    assert f"]({folder}/README.md)" in (EXAMPLES / "README.md").read_text()
    readme = (EXAMPLES / folder / "README.md").read_text()
    assert f"python examples/{folder}/run_{folder}.py" in readme
    assert "GREENDROP_BOOTSTRAP_SERVERS" in readme
