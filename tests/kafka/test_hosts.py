"""Programs that use greendrop, run as in production."""

from __future__ import annotations

import http.client
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

pytestmark = pytest.mark.slow

#: Seconds for which a hub may be held: one turn of it may answer all 64 requests, and
#: each takes Flask about a millisecond where processors are shared (0.064 was seen).
LONGEST_GAP = 0.15

HOSTS = "tests.kafka.hosts"


def assert_clean(program):
    """Check that the program logged no error."""
    for word in ("Traceback", "ERROR", "CRITICAL", "Error", "greendrop:", "greendrop#"):
        assert word not in program.log


# gunicorn ----------------------------------------------------------------------------


@contextmanager
def connected(address):
    """Connect to a web server, and return a function that makes requests."""
    connection = http.client.HTTPConnection(address, timeout=30)

    def ask(method, path, body=None):
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    with closing(connection):
        yield ask


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["late", "preloaded"])
def test_requests_in_gunicorn_wait_cooperatively(start, stored, preload):
    """64 concurrent clients.

    Answered messages are stored, and the worker's hub is free.
    """
    gunicorn = ["-m", "gunicorn", "--worker-class=gevent", "--workers=1", *preload]
    gunicorn += ["--bind=127.0.0.1:0", "--no-control-socket", f"{HOSTS}.flask_app:app"]
    later = [f"later-{number}" for number in range(100)]

    def use(client):
        payloads = [f"{client}-{number}" for number in range(30)]
        with connected(address) as ask:
            return {each: ask("POST", "/send", each)[0] for each in payloads}

    with start(*gunicorn) as server:
        listening = re.compile("Listening at: http://([0-9.:]+)")
        address = server.wait_for("listens", lambda: listening.search(server.log))[1]
        with connected(address) as ask:
            # Connecting to Kafka is not measured.
            answers = {"first": ask("POST", "/send", "first")[0]}
            ask("POST", "/measure")
        with ThreadPoolExecutor(64) as pool:
            for some in pool.map(use, range(64)):
                answers |= some
        with connected(address) as ask:
            _, measured = ask("GET", "/measured")
            # No request waits for these messages, so the worker's end has to.
            answers["later"], _ = ask("POST", "/send-later", "\n".join(later))
        server.terminate()
        assert server.wait() == 0
        assert_clean(server)

    assert answers.pop("later") == 202
    assert Counter(answers.values()) == {200: 1 + 64 * 30}
    assert stored() == Counter([*answers, *later])
    assert measured["polling"] == "fd"
    assert measured["seconds"] < LONGEST_GAP


# Celery ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "polling"),
    [(["--pool=gevent", "--concurrency=100"], "fd"), (["--concurrency=2"], "thread")],
    ids=["gevent", "prefork"],
)
def test_tasks_in_celery_store_their_results(start, stored, tmp_path, pool, polling):
    """A worker's tasks send and wait; SIGTERM ends it in good order."""
    folders = [tmp_path / name for name in ("queue", "control", "results")]
    for folder in folders:
        folder.mkdir()
    # The queue is written before the worker runs, which might read half a file.
    quiet = ["--without-mingle", "--without-gossip", "--without-heartbeat"]
    celery = ["-m", "celery", f"--app={HOSTS}.celery_app", "worker", *pool, *quiet]

    with start("-m", f"{HOSTS}.celery_client", "send", "200", log="client") as client:
        assert client.wait() == 0
    with start(*celery) as worker:
        worker.wait_for("has results", lambda: len(list(folders[2].iterdir())) == 200)
        worker.terminate()
        assert worker.wait() == 0
        assert_clean(worker)

    outcomes = [json.loads(file.read_text()) for file in folders[2].iterdir()]
    assert Counter(each["status"] for each in outcomes) == {"SUCCESS": 200}
    results = [each["result"] for each in outcomes]
    assert stored() == Counter(f"task-{number}" for number in range(200))
    assert len({tuple(each["place"]) for each in results}) == 200
    assert {each["polling"] for each in results} == {polling}
    processes = {each["process"] for each in results}
    most_waiting = max(each["waiting"] for each in results)
    if polling == "fd":
        assert processes == {worker.pid}
        # While one waits the others go on. No clock here: reading and writing files,
        # Celery itself holds the hub for as long as the disk takes.
        assert most_waiting > 10
    else:
        assert len(processes) == 2
        assert worker.pid not in processes
        assert most_waiting == 1


# Scripts -----------------------------------------------------------------------------


def test_a_plain_script_stores_its_messages(start, stored):
    """Without gevent and threads: sync, batch, and async messages delivered at exit."""
    with start("-m", f"{HOSTS}.plain") as script:
        assert script.wait() == 0
        assert_clean(script)

    expected = {"sync": 100, "many": 1000, "async": 1000}
    assert stored() == Counter(
        f"{verb}-{number}"
        for verb, count in expected.items()
        for number in range(count)
    )
    assert (script.facts["polling"], script.facts["gevent"]) == ("thread", False)


def test_threads_of_a_script_share_a_producer(start, stored):
    """32 threads send and wait, without gevent."""
    with start("-m", f"{HOSTS}.threads") as script:
        assert script.wait() == 0
        assert_clean(script)

    assert stored() == Counter(f"{i}-{k}" for i in range(32) for k in range(100))
    assert (script.facts["polling"], script.facts["gevent"]) == ("thread", False)
    assert script.facts["delivered"] == 3200


def test_a_script_that_forks_after_use_resets_the_producer(start, stored):
    """An unreset child gets an error; after the reset child and parent both send."""
    with start("-m", f"{HOSTS}.forks") as script:
        assert script.wait() == 0
        assert_clean(script)

    for number in range(3):
        assert script.facts[f"status{number}"] == 0
        assert "reset()" in script.facts[f"refusal{number}"]
    each = ("parent-{}", "child-{}", "child-{}-late")
    expected = [text.format(number) for text in each for number in range(3)]
    assert stored() == Counter(["before", "after", *expected])
