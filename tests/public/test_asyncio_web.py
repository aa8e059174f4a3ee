"""A Starlette application under uvicorn, whose handlers await hundreds of handles."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from greendrop.testing import MockCluster

HANDLES = 200
ROOT = Path(__file__).parents[2]

APP = """
import asyncio, contextlib, sys, time
import uvicorn
from greendrop import Producer
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

late = []

async def tick():
    while True:
        due = time.monotonic() + 0.005
        used = time.process_time()
        await asyncio.sleep(0.005)
        # Other programs of the machine may make it late by more than what this process
        # has used: that much would not happen without them.
        late.append(min(time.monotonic() - due, time.process_time() - used))

_, servers, handles = sys.argv
producer = Producer(kafka={"bootstrap.servers": servers})

async def send(request):
    sent = [
        producer.produce_async(topic="events", payload=b"x")
        for _ in range(int(handles))
    ]
    return JSONResponse(len(await asyncio.gather(*sent)))

async def lateness(request):
    found = sorted(late)[len(late) * 99 // 100] if late else 0.0
    late.clear()
    return JSONResponse(found)

@contextlib.asynccontextmanager
async def lifespan(app):
    ticker = asyncio.create_task(tick())
    yield
    ticker.cancel()
    await asyncio.to_thread(producer.close)

routes = [Route("/", send, methods=["POST"]), Route("/lateness", lateness)]
config = uvicorn.Config(
    Starlette(routes=routes, lifespan=lifespan), port=0, log_level="warning"
)

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)

with contextlib.suppress(KeyboardInterrupt):  # as uvicorn.run does
    Server(config).run()
"""


class Web:
    """A client of the running application.

    Args:
        process: The application, which prints its port.
    """

    def __init__(self, process):
        self.process = process
        self.port = int(process.stdout.readline())

    def request(self, method, path):
        """Make a request with a connection of its own, and return the JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            return json.loads(response.read())
        finally:
            connection.close()

    def end(self):
        """Press Ctrl-C, and return standard error and the exit code."""
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=40)
        return errors, self.process.returncode


def python(source, *arguments):
    """Start a program."""
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def cluster():
    """Run a cluster in a process of its own, which takes no turns from the tests."""
    with MockCluster.spawn() as cluster:
        yield cluster


@pytest.fixture
def web(cluster):
    """Run the application."""
    with python(APP, cluster.bootstrap_servers, HANDLES) as process:
        try:
            yield Web(process)
        finally:
            process.kill()


def load(web, stop):
    """Send requests until told to stop; return the number of stored messages."""
    stored = 0
    while not stop.is_set():
        try:
            stored += web.request("POST", "/")
        except (OSError, http.client.HTTPException):
            if not stop.is_set():
                raise
    return stored


@pytest.mark.slow
def test_a_ticker_goes_on_while_handlers_await_200_handles(web):
    """The event loop is late by less than 20 ms (p99) while requests follow each other.

    A busy machine slows the process down, so one good round of several decides.
    """
    web.request("POST", "/")
    rounds = []
    deadline = time.monotonic() + 30
    while not rounds or (rounds[-1] >= 0.02 and time.monotonic() < deadline):
        web.request("GET", "/lateness")
        for _ in range(20):
            assert web.request("POST", "/") == HANDLES
        rounds.append(web.request("GET", "/lateness"))

    assert 0 < min(rounds) < 0.02, rounds


@pytest.mark.slow
def test_ctrl_c_under_load_stores_what_was_answered(web, cluster):
    """Requests in progress are answered, and their messages are stored."""
    stop = threading.Event()
    stored = []
    clients = [
        threading.Thread(target=lambda: stored.append(load(web, stop)))
        for _ in range(4)
    ]
    for client in clients:
        client.start()
    time.sleep(1)

    stop.set()
    errors, code = web.end()
    for client in clients:
        client.join(30)

    assert "Traceback" not in errors, errors
    assert code in (0, -signal.SIGINT)
    assert len(cluster.records("events")) >= sum(stored) > 0


ENDLESS = """
import asyncio, sys
from greendrop import Producer

producer = Producer(kafka={"bootstrap.servers": sys.argv[1]})

async def send():
    while True:
        handles = [
            producer.produce_async(topic="events", payload=b"x") for _ in range(200)
        ]
        stored = len(await asyncio.gather(*handles))
        print(stored, flush=True)

async def main():
    await asyncio.gather(*(send() for _ in range(4)))

try:
    asyncio.run(main())
except KeyboardInterrupt:
    producer.close()
    print("interrupted", producer.in_flight, flush=True)
"""


@pytest.mark.slow
def test_ctrl_c_ends_a_program_that_awaits_handles(cluster):
    """`asyncio.run` raises KeyboardInterrupt, and `close` delivers what was sent."""
    with python(ENDLESS, cluster.bootstrap_servers) as process:
        try:
            lines = [process.stdout.readline() for _ in range(8)]
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=40)
        finally:
            process.kill()

    lines = [*"".join(lines).split(), *rest.split()]
    assert (process.returncode, errors) == (0, "")
    assert lines[-2:] == ["interrupted", "0"]
    assert len(cluster.records("events")) >= sum(map(int, lines[:-2]))
