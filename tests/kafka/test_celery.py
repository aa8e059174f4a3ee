"""Celery workers that end while tasks run."""

from __future__ import annotations

import json
import signal
from collections import Counter

import pytest

pytestmark = pytest.mark.slow

HOSTS = "tests.kafka.hosts"
TASKS = 3000

POOLS = {
    "gevent": ["--pool=gevent", "--concurrency=50"],
    "prefork": ["--pool=prefork", "--concurrency=2"],
    "recycled": ["--pool=prefork", "--concurrency=2", "--max-tasks-per-child=20"],
    "solo": ["--pool=solo"],
    "threads": ["--pool=threads", "--concurrency=8"],
}


# Not SIGQUIT for prefork and gevent: Celery's handler waits for a lock there. The code
# that it interrupts may hold that lock, and then the worker hangs for ever, with any
# producer.
@pytest.mark.parametrize(
    ("pool", "how"),
    [
        *((pool, "SIGTERM") for pool in POOLS),
        *((pool, "SIGQUIT") for pool in ("solo", "threads")),
    ],
)
def test_messages_of_successful_tasks_are_stored(start, stored, tmp_path, pool, how):
    """A worker is ended while tasks run: all messages of successful tasks are stored.

    They are messages that a task waited for, did not wait for, and buffered; recycled
    processes only keep the first kind. After SIGQUIT running tasks are cut short.
    """
    folders = [tmp_path / name for name in ("queue", "control", "results")]
    for folder in folders:
        folder.mkdir()
    results = folders[2]
    quiet = ["--without-mingle", "--without-gossip", "--without-heartbeat"]
    celery = ["-m", "celery", f"--app={HOSTS}.celery_app", "worker", *POOLS[pool]]

    with start(
        "-m", f"{HOSTS}.celery_client", "send_two", f"{TASKS}", log="client"
    ) as c:
        assert c.wait() == 0
    with start(*celery, *quiet) as worker:
        worker.wait_for("has results", lambda: len(list(results.iterdir())) > 100)
        worker.signal(signal.Signals[how])
        worker.wait()
        found = stored()

    # A task that was cut short while it wrote its result has no result.
    texts = [text for file in results.iterdir() if (text := file.read_text())]
    outcomes = [json.loads(text) for text in texts]
    done = {each["result"] for each in outcomes if each["status"] == "SUCCESS"}
    assert 100 < len(done) < TASKS
    # At its end Celery does not wait for a child that has just taken the place of a
    # recycled one, and then the kernel kills it (PR_SET_PDEATHSIG).
    kinds = ("",) if pool == "recycled" else ("", "-later", "-buffered")
    for kind in kinds:
        assert {f"{payload}{kind}" for payload in done} <= found.keys(), kind
    assert Counter(found.values()).keys() == {1}
    for loss in ("greendrop:", "not delivered", "not sent"):
        assert loss not in worker.log
