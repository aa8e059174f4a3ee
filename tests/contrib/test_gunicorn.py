"""The hook of `greendrop.contrib.gunicorn`, in workers that end."""

from __future__ import annotations

import http.client
import re
import time
from contextlib import closing

import pytest

from tests.kafka.running import ROOT, Program

pytestmark = [pytest.mark.slow, pytest.mark.patched]

APP = """
import os, threading, time
from greendrop import Producer

producer = Producer(
    kafka={"bootstrap.servers": os.environ["SERVERS"]}, exit_timeout=2.0
)

def app(environ, start_response):
    for number in range(100):
        producer.buffer(topic="events", payload=str(number))
    if environ["PATH_INFO"] == "/linger":
        # Python's exit handlers run when it has ended; this one never does.
        threading.Thread(target=time.sleep, args=(3600,)).start()
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""
CONFIG = """
from greendrop.contrib.gunicorn import worker_exit

graceful_timeout = 4
"""


@pytest.fixture
def serve(tmp_path):
    """Run gunicorn with an application that buffers 100 messages until the end."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)

    def serve(servers, *options):
        return Program(
            *("-m", "gunicorn", "--no-control-socket", "--bind=127.0.0.1:0"),
            *(f"--config={tmp_path / 'gunicorn.conf.py'}", *options, "app:app"),
            log_file=tmp_path / "log",
            SERVERS=servers,
            PYTHONPATH=f"{ROOT}:{tmp_path}",
        )

    return serve


def ask(server, path):
    """Make a request, then end the server and wait for it."""
    listening = re.compile("Listening at: http://([0-9.:]+)")
    address = server.wait_for("listens", lambda: listening.search(server.log))[1]
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request("GET", path)
        assert connection.getresponse().status == 200
    server.terminate()
    started_at = time.monotonic()
    status = server.wait()
    return status, time.monotonic() - started_at


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_a_lingering_thread_loses_no_message(serve, kind, mock_cluster, stored):
    """The hook delivers where a thread keeps Python's exit handlers from running.

    gunicorn kills such a worker in the end.
    """
    mock_cluster.create_topic("events")

    with serve(mock_cluster.bootstrap_servers, f"--worker-class={kind}") as server:
        ask(server, "/linger")

    assert stored("events") == 100
    assert "greendrop" not in server.log


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_a_loss_is_in_gunicorns_log(serve, kind):
    """Without brokers the worker ends in time, and logs the number of lost messages."""
    with serve("127.0.0.1:1", f"--worker-class={kind}") as server:
        status, seconds = ask(server, "/")

    assert status == 0
    assert 1.5 < seconds < 6
    assert re.search(
        r"\[ERROR\] greendrop, worker \d+: .* 100 buffered messages", server.log
    )
    assert server.log.count("100 buffered messages") == 1
