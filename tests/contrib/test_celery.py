"""greendrop's errors in results of Celery, and producers that the parent has used."""

from __future__ import annotations

import pickle

import pytest
from celery.signals import (
    worker_process_init,
    worker_process_shutdown,
    worker_shutdown,
)

from greendrop import (
    DeliveryError,
    MessageInvalidError,
    ProduceManyError,
    ProducerUsedInParentProcessError,
)
from greendrop.contrib import celery as contrib
from tests.kafka.running import ROOT, Program

pytestmark = [pytest.mark.slow, pytest.mark.patched]

APP = """
import os, pathlib
from celery import Celery
from celery.signals import worker_init
from greendrop import DeliveryError, Producer
from greendrop.contrib.celery import connect

folder = pathlib.Path(os.environ["FOLDER"])
app = Celery("errors", broker="filesystem://", backend=f"file://{folder}/results")
app.conf.update(
    broker_transport="tests.contrib.celery_files:Transport",
    result_serializer=os.environ["SERIALIZER"],
    result_accept_content=["json", "pickle"],
    broker_transport_options={
        "data_folder_in": f"{folder}/queue",
        "data_folder_out": f"{folder}/queue",
        "control_folder": f"{folder}/control",
        "polling_interval": 0.01,
    },
)
producer = Producer(
    kafka={"bootstrap.servers": os.environ["SERVERS"]}
)

if os.environ["CONNECT"]:
    connect()

@worker_init.connect
def used_in_the_parent(**_):
    producer.produce_sync(topic="events", payload="the worker starts")

@app.task
def invalid():
    producer.produce_sync(topic="not a topic", payload=b"x")

@app.task
def refused():
    producer.produce_sync(topic="events", payload="x", partition=99)

@app.task
def batch():
    good, bad = ({"topic": "events", "payload": "x", "partition": n} for n in (0, 99))
    producer.produce_many_sync([good, bad])

@app.task(bind=True, max_retries=2, default_retry_delay=0)
def again(task):
    try:
        producer.produce_sync(topic="events", payload="x", partition=99)
    except DeliveryError as error:
        # So that the retry, too, has gone through the serializer.
        raise task.retry(exc=error)

@app.task(autoretry_for=(DeliveryError,), max_retries=2, default_retry_delay=0)
def automatically():
    producer.produce_sync(topic="events", payload="x", partition=99)

@app.task(bind=True, max_retries=3, default_retry_delay=0)
def in_the_end(task):
    partition = 99 if task.request.retries < 2 else 0
    try:
        return producer.produce_sync(
            topic="events", payload="x", partition=partition
        ).offset
    except DeliveryError as error:
        raise task.retry(exc=error)
"""
# One task at a time where they are preempted: Celery starts a retry before it has
# recorded that there will be one, and may record that after the retry's result.
POOLS = {
    "gevent": ["--pool=gevent", "--concurrency=10"],
    "prefork": ["--pool=prefork", "--concurrency=1"],
    "solo": ["--pool=solo"],
    "threads": ["--pool=threads", "--concurrency=1"],
}
# Queues the tasks, and waits for their results.
CLIENT = """
import sys, pickle
import tasks_of_errors as app
outcomes = {}
results = {name: getattr(app, name).delay() for name in sys.argv[2:]}
for name, result in results.items():
    try:
        outcomes[name] = result.get(timeout=20, interval=0.05)
    except Exception as error:
        outcomes[name] = error
with open(sys.argv[1], "wb") as file:
    pickle.dump(outcomes, file)
"""


@pytest.fixture
def outcomes(tmp_path, mock_cluster):
    """Run a worker, and return the tasks' results as their caller gets them."""
    for name in ("queue", "control", "results"):
        (tmp_path / name).mkdir()
    (tmp_path / "tasks_of_errors.py").write_text(APP)
    (tmp_path / "client.py").write_text(CLIENT)

    def outcomes(pool, tasks, serializer="json", connect="yes"):

        environment = {
            "SERVERS": mock_cluster.bootstrap_servers,
            "FOLDER": str(tmp_path),
            "SERIALIZER": serializer,
            "CONNECT": connect,
            "PYTHONPATH": f"{ROOT}:{tmp_path}",
        }
        quiet = ["--without-mingle", "--without-gossip", "--without-heartbeat"]
        worker = ["-m", "celery", "--app=tasks_of_errors", "worker", *POOLS[pool]]
        results, queue = tmp_path / "results.pickle", tmp_path / "queue"
        client = [str(tmp_path / "client.py"), str(results), *tasks]
        with Program(*client, log_file=tmp_path / "client", **environment) as c:
            c.wait_for("asks", lambda: len([*queue.iterdir()]) == len(tasks))
            log = tmp_path / "log"
            with Program(*worker, *quiet, log_file=log, **environment) as w:
                assert c.wait(40) == 0
                w.terminate()
                assert w.wait(10) == 0
        return pickle.loads(results.read_bytes())

    return outcomes


@pytest.mark.parametrize(
    ("pool", "serializer"), [*((pool, "json") for pool in POOLS), ("prefork", "pickle")]
)
def test_errors_reach_the_caller_of_the_task(outcomes, pool, serializer):
    """Class and text are kept; retries end with the last error.

    The worker's main process has used the producer, which was reset in the children.
    """
    tasks = ("invalid", "refused", "batch", "again", "automatically", "in_the_end")

    got = outcomes(pool, tasks, serializer)

    assert isinstance(got["invalid"], MessageInvalidError)
    assert got["invalid"].errors.keys() == {"topic"}
    for name in ("refused", "again", "automatically"):
        assert isinstance(got[name], DeliveryError), got[name]
        assert "_UNKNOWN_PARTITION" in str(got[name])
    assert isinstance(got["batch"], ProduceManyError)
    assert got["batch"].failed_index == 1
    assert isinstance(got["in_the_end"], int)
    if serializer == "pickle":
        assert got["refused"].name == "_UNKNOWN_PARTITION"
        assert got["batch"].dispatched[0].report.topic == "events"


def test_a_producer_used_by_the_parent_raises_in_a_child(outcomes):
    """Without `connect` the error in a prefork child says that a reset is needed."""
    got = outcomes("prefork", ["refused"], connect="")

    assert isinstance(got["refused"], ProducerUsedInParentProcessError)
    assert "reset()" in str(got["refused"])


@pytest.fixture
def ends(monkeypatch):
    """Record the time limit of each close, and disconnect afterwards."""
    limits = []
    monkeypatch.setattr(contrib, "close_in_use", lambda _, limit: limits.append(limit))
    yield limits
    for signal in (worker_process_init, worker_process_shutdown, worker_shutdown):
        signal.disconnect(dispatch_uid="greendrop")


def test_connecting_again_changes_the_timeout(ends):
    """Several modules of tasks may connect.

    Producers are closed once, with the last limit.
    """
    contrib.connect()
    contrib.connect(2.5)

    worker_shutdown.send(None)
    worker_process_shutdown.send(None, pid=1, exitcode=0)

    assert ends == [2.5, 2.5]
    with pytest.raises(ValueError, match="finite seconds"):
        contrib.connect(-1)
