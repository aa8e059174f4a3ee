"""gunicorn workers that reload and end while they serve requests."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.kafka.web_clients import WebClients

pytestmark = pytest.mark.slow

HOSTS = Path(__file__).parent / "hosts"

WORKERS = {
    "gevent": ["--worker-class=gevent"],
    "gthread": ["--worker-class=gthread", "--threads=16"],
    "sync": ["--worker-class=sync"],
}

#: gunicorn closes its listener under a connection that it has just accepted. The client
#: gets no answer, and tries again.
CLOSED_LISTENER = re.compile(
    r"[^\n]*Socket error processing request\.\nTraceback [^[]*"
    r"OSError: \[Errno 9\] Bad file descriptor\n"
)


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["late", "preloaded"])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("gevent", "gunicorn_bare"),
        ("gevent", "gunicorn_patched"),
        ("gthread", "gunicorn_bare"),
        ("sync", "gunicorn_bare"),
    ],
)
def test_answered_messages_are_stored(start, stored, kind, config, preload):
    """Messages answered with 200 are in the topic after SIGHUP and SIGTERM.

    64 clients post all the time; those without an answer may try again.
    """
    gunicorn = ["-m", "gunicorn", *WORKERS[kind], "--workers=2", *preload]
    gunicorn += [f"--config={HOSTS / config}.py", "--bind=127.0.0.1:0"]
    gunicorn += ["--no-control-socket", "tests.kafka.hosts.flask_app:app"]

    with start(*gunicorn) as server:
        listening = re.compile("Listening at: http://([0-9.:]+)")
        address = server.wait_for("listens", lambda: listening.search(server.log))[1]
        with WebClients(address, "/send") as clients:
            clients.await_answers(500)
            server.signal(signal.SIGHUP)
            server.wait_for("reloads", lambda: server.log.count("Booting worker") == 4)
            clients.await_answers(500)
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
        found = stored()

    log = CLOSED_LISTENER.sub("", server.log)
    for word in ("Traceback", "ERROR", "CRITICAL", "greendrop"):
        assert word not in log
    assert clients.refused == {}
    assert clients.answered <= found.keys() <= clients.sent
    assert set(found.values()) == {1}
