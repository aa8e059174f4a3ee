"""Relays TCP connections with a delay; ends with the parent.

A script, standard library only, started by `_child` for `proxy.TcpProxy`. Arguments:
the parent's process id, the file descriptor of the listening socket, the target's host
and port, and the round trip in seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
from typing import Any

#: Seconds between two checks whether the parent still lives, as in `_keeper`.
_LOOK_INTERVAL = 1.0

#: Chunks queued in one direction. Enough for 64 MB at 64 kB each; beyond it the sender
#: sees a full window, as it would in a real network.
_ON_THE_WAY = 1024


class Relay:
    """Connections between clients and one target."""

    def __init__(self, target_host: str, target_port: int, round_trip: float) -> None:
        self._target = (target_host, target_port)
        self._round_trip = round_trip
        # Set while bytes may go to the target, and while they may come back.
        self._requests_flow = asyncio.Event()
        self._answers_flow = asyncio.Event()
        self._requests_flow.set()
        self._answers_flow.set()
        self._down = False
        self._half_open = False
        self._garbage = 0.0
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        # Those whose target is gone, while their client does not know it.
        self._swallowing: set[asyncio.Task[None]] = set()

    def set_round_trip(self, seconds: float) -> None:
        """Delay later chunks by half of this in each direction."""
        self._round_trip = seconds

    def set_garbage(self, share: float) -> None:
        """Replace this share of later chunks with random bytes."""
        # Whole chunks: most are a whole message, whose length and number then make no
        # sense, so that the receiver can notice. Kafka protects only records by a
        # checksum; a single wrong byte in an answer could be another valid answer.
        self._garbage = share

    def pause(self) -> None:
        """Let nothing through; connections stay."""
        self._requests_flow.clear()
        self._answers_flow.clear()

    def hold_answers(self) -> None:
        """Pass requests on, but no answers; connections stay."""
        self._answers_flow.clear()

    def resume(self) -> None:
        """Pass everything on again, and accept new connections."""
        self._down = self._half_open = False
        self._requests_flow.set()
        self._answers_flow.set()

    def half_open(self) -> None:
        """Reset all connections to the target; clients go on sending into nothing.

        New connections, until `resume`, have no target either.
        """
        self._half_open = True
        for task, writers in self._connections.items():
            self._swallowing.add(task)
            for writer in writers[1:]:
                writer.transport.abort()

    def cut(self) -> None:
        """Reset all connections, and each new one until `resume`."""
        # The port stays open meanwhile: another process could take a closed one before
        # `resume`.
        self._down = True
        for task, writers in list(self._connections.items()):
            for writer in writers:
                writer.transport.abort()
            task.cancel()

    async def connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Relay one connection of a client until either side ends it."""
        task = asyncio.current_task()
        assert task is not None
        if self._down:
            writer.transport.abort()
            return
        writers = self._connections[task] = [writer]
        pumps: list[asyncio.Task[None]] = []
        try:
            if self._half_open:
                await _swallow(reader)
                return
            target_reader, target_writer = await asyncio.open_connection(*self._target)
            writers.append(target_writer)
            pumps = [
                asyncio.create_task(
                    self._pump(reader, target_writer, self._requests_flow)
                ),
                asyncio.create_task(
                    self._pump(target_reader, writer, self._answers_flow)
                ),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if task in self._swallowing:
                await _stop(pumps)
                await _swallow(reader)
        except (OSError, asyncio.CancelledError):
            pass  # no such target, or cut: the client's connection is closed
        finally:
            del self._connections[task]
            self._swallowing.discard(task)
            await _stop(pumps)
            for each in writers:
                each.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        flowing: asyncio.Event,
    ) -> None:
        """Move one direction's bytes, each some time after it came."""
        clock = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_ON_THE_WAY)

        async def read() -> None:
            chunk = b"-"
            while chunk:
                try:
                    chunk = await reader.read(65536)
                except OSError:
                    chunk = b""  # reset by the sender: the end, like any other
                if random.random() < self._garbage:
                    chunk = os.urandom(len(chunk))
                await queue.put((clock.time() + self._round_trip / 2, chunk))

        reading = asyncio.create_task(read())
        try:
            while True:
                due, chunk = await queue.get()
                await asyncio.sleep(max(0.0, due - clock.time()))
                await flowing.wait()
                if not chunk:
                    return
                writer.write(chunk)
                await writer.drain()
        except OSError:
            return  # reset by the receiver
        finally:
            # Waited for, so that the reader is free for another reader.
            await _stop([reading])


async def _stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _swallow(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


def answer(relay: Relay, line: bytes) -> bytes:
    """Execute one request and return the line that answers it."""
    request: dict[str, Any] = json.loads(line)
    reply = {"number": request["number"]}
    try:
        reply["result"] = getattr(relay, request["do"])(**request["with"])
    except Exception as error:  # noqa: BLE001 - the answer contains it
        reply["error"] = repr(error)
    return json.dumps(reply).encode() + b"\n"


async def serve() -> None:
    """Relay until the parent is gone or wants an end."""
    parent, listener, host, port, round_trip = sys.argv[1:]
    relay = Relay(host, int(port), float(round_trip))
    await asyncio.start_server(relay.connect, sock=socket.socket(fileno=int(listener)))
    requests, answers = await asyncio.open_connection(sock=socket.socket(fileno=0))
    while os.getppid() == int(parent):
        try:
            line = await asyncio.wait_for(requests.readline(), _LOOK_INTERVAL)
        except asyncio.TimeoutError:
            continue
        if not line:
            return
        answers.write(answer(relay, line))
        await answers.drain()


if __name__ == "__main__":
    # There is nothing to clean up, so a signal may end it where it stands; and
    # leaving `asyncio.run` in good order could wait for a connection's end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        asyncio.run(serve())
    finally:
        os._exit(0)
