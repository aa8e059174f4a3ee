"""The system's uWSGI, with gevent, with threads, and without both.

It brings the system's Python. That has to be of the same version as the one that runs
the tests, whose packages it gets.
"""

from __future__ import annotations

import http.client
import re
import signal
import sys
import sysconfig
from contextlib import closing
from pathlib import Path
from shutil import which
from time import sleep

import pytest

from tests.kafka.running import ROOT
from tests.kafka.web_clients import WebClients
from tests.servers._ports import free_ports

PYTHON = f"python{sys.version_info[0]}{sys.version_info[1]}"
PLUGINS = Path("/usr/lib/uwsgi/plugins")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        which("uwsgi") is None
        or not (PLUGINS / f"{PYTHON}_plugin.so").exists()
        or not (PLUGINS / f"gevent_{PYTHON}_plugin.so").exists(),
        reason=f"needs Debian's uWSGI with gevent, for {PYTHON}",
    ),
]

MODES = {
    "gevent": (f"{PYTHON},gevent_{PYTHON}", ["--gevent=100"]),
    "patched": (
        f"{PYTHON},gevent_{PYTHON}",
        ["--gevent=100", "--gevent-monkey-patch"],
    ),
    # uWSGI's handler of SIGHUP waits in the main thread for the requests of the other
    # threads. If that holds Python's lock just then they never end, whatever the
    # application, until uWSGI kills the worker: after 60 s by default.
    "threads": (PYTHON, ["--threads=8", "--worker-reload-mercy=5"]),
    "enabled": (PYTHON, ["--enable-threads"]),
    "none": (PYTHON, []),
}


@pytest.fixture
def serve(start):
    """Run uWSGI in a mode; the server has its `address`."""

    def serve(mode, *more, **environment):
        plugins, options = MODES[mode]
        (port,) = free_ports(1)
        uwsgi = [f"--plugin={plugins}", f"--http-socket=127.0.0.1:{port}"]
        uwsgi += ["--module=tests.kafka.hosts.flask_app:app", "--need-app", "--master"]
        uwsgi += ["--die-on-term", "--workers=2", *options, *more]
        packages = sysconfig.get_path("platlib")
        server = start(
            *uwsgi,
            executable="uwsgi",
            PYTHONPATH=f"{ROOT}:{packages}",
            **environment,
        )
        server.address = f"127.0.0.1:{port}"
        return server

    return serve


def wait_until_up(server, workers):
    """Wait until a number of workers were started in total."""
    spawned = re.compile(r"spawned uWSGI worker \d+ \(|Respawned uWSGI worker")
    server.wait_for("starts", lambda: len(spawned.findall(server.log)) >= workers)


def post(server, path, body):
    """Make one request."""
    with closing(http.client.HTTPConnection(server.address, timeout=30)) as connection:
        connection.request("POST", path, body)
        return connection.getresponse().status


@pytest.mark.parametrize("mode", ["gevent", "patched", "threads", "enabled"])
def test_answered_messages_are_stored(serve, stored, mode):
    """Messages of forked workers that are reloaded and ended are stored.

    The application is loaded before the fork, and uWSGI calls none of Python's fork
    hooks.
    """
    with serve(mode) as server:
        wait_until_up(server, 2)
        with WebClients(server.address, "/send") as clients:
            clients.await_answers(500)
            server.signal(signal.SIGHUP)
            wait_until_up(server, 4)
            clients.await_answers(500)
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
        found = stored()

    assert "Traceback" not in server.log
    assert clients.refused == {}
    assert clients.answered <= found.keys() <= clients.sent
    assert set(found.values()) == {1}


@pytest.mark.parametrize("mode", ["threads", "enabled"])
def test_the_end_of_a_worker_sends_buffered_messages(serve, stored, mode):
    """Without gevent uWSGI runs Python's exit handlers, and so greendrop's.

    With gevent it does not: "managing atexit in async mode is a real pain...skip it for
    now", its source says.
    """
    with serve(mode) as server:
        wait_until_up(server, 2)
        assert post(server, "/buffer", "\n".join(map(str, range(100)))) == 202
        # At SIGTERM it doesn't if a request is just about to end.
        server.signal(signal.SIGHUP)
        wait_until_up(server, 4)
        sleep(1)  # uWSGI loses a signal while it starts its workers
        server.signal(signal.SIGTERM)
        assert server.wait() == 0

    assert stored().keys() == set(map(str, range(100)))


def test_without_threads_the_producer_refuses(serve):
    """Reports would not be served between requests: the error names the option."""
    with serve("none") as server:
        wait_until_up(server, 2)
        assert post(server, "/send", "x") == 500
        server.wait_for(
            "logs the advice", lambda: "start it with enable-threads" in server.log
        )

    assert "ConfigurationInvalidError: uwsgi.enable-threads: " in server.log


def test_a_producer_used_before_uwsgi_forks_raises(serve, stored):
    """A fork by uWSGI happens in C; the worker notices, and nothing hangs."""
    with serve("threads", USED_TOO_EARLY="yes") as server:
        wait_until_up(server, 2)
        assert post(server, "/send", "x") == 500
        server.wait_for("logs the advice", lambda: "call reset() here" in server.log)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0

    assert stored() == {"before the fork": 1}
