"""uWSGI of the system, with gevent, with threads, and without both.

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

import pytest

from tests.kafka.crowd import Crowd
from tests.kafka.running import ROOT
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
    # Its handler of SIGHUP waits in the main thread for the requests of the others. If
    # that holds Python's lock just then they never end, whatever the application, until
    # uWSGI kills the worker: after 60 s, if not told otherwise.
    "threads": (PYTHON, ["--threads=8", "--worker-reload-mercy=5"]),
    "enabled": (PYTHON, ["--enable-threads"]),
    "none": (PYTHON, []),
}


@pytest.fixture
def serve(start):
    """Run uWSGI in a mode; the server tells its `address`."""

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
    """Wait until so many workers were started, all in all."""
    spawned = re.compile(r"spawned uWSGI worker \d+ \(|Respawned uWSGI worker")
    server.wait_for("starts", lambda: len(spawned.findall(server.log)) >= workers)


def post(server, path, body):
    """Ask once."""
    with closing(http.client.HTTPConnection(server.address, timeout=30)) as connection:
        connection.request("POST", path, body)
        return connection.getresponse().status


@pytest.mark.parametrize("mode", ["gevent", "patched", "threads", "enabled"])
def test_what_is_answered_is_stored(serve, stored, mode):
    """Workers that uWSGI has forked are reloaded and ended: what they answered is kept.

    The application is loaded before the fork, and uWSGI tells no hook of Python's.
    """
    with serve(mode) as server:
        wait_until_up(server, 2)
        with Crowd(server.address, "/send") as crowd:
            crowd.await_answers(500)
            server.signal(signal.SIGHUP)
            wait_until_up(server, 4)
            crowd.await_answers(500)
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
        found = stored()

    assert "Traceback" not in server.log
    assert crowd.refused == {}
    assert crowd.answered <= found.keys() <= crowd.sent
    assert set(found.values()) == {1}


@pytest.mark.parametrize("mode", ["threads", "enabled"])
def test_the_end_of_a_worker_sends_what_it_has_buffered(serve, stored, mode):
    """Without gevent uWSGI runs Python's exit handlers, and so greendrop's.

    With gevent it does not: "managing atexit in async mode is a real pain...skip it for
    now", its source says.
    """
    with serve(mode) as server:
        wait_until_up(server, 2)
        assert post(server, "/buffer", "\n".join(map(str, range(100)))) == 202
        # At SIGTERM it doesn't where a request is just about to end.
        server.signal(signal.SIGHUP)
        wait_until_up(server, 4)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0

    assert stored().keys() == set(map(str, range(100)))


def test_without_threads_it_refuses(serve):
    """Nobody would serve reports between requests: the error says what to do."""
    with serve("none") as server:
        wait_until_up(server, 2)
        assert post(server, "/send", "x") == 500
        server.wait_for("tells", lambda: "start it with enable-threads" in server.log)

    assert "ConfigurationInvalidError: uwsgi.enable-threads: " in server.log


def test_used_before_uwsgi_forks_it_says_so(serve, stored):
    """It forks in C; the worker notices, and nothing hangs."""
    with serve("threads", USED_TOO_EARLY="yes") as server:
        wait_until_up(server, 2)
        assert post(server, "/send", "x") == 500
        server.wait_for("tells", lambda: "call reset() here" in server.log)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0

    assert stored() == {"before the fork": 1}
