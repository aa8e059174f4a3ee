"""Keeps the processes of one cluster and their folder; ends both with the parent.

A script, standard library only, started by `_child`. The processes are children of this
script alone, so that their ids are valid until they are waited for here: a signal never
reaches a foreign process with a recycled id.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

#: Seconds between two checks whether the parent still lives. The end of file shows its
#: end at once, unless a fork of the parent holds a copy of the parent's socket.
_LOOK_INTERVAL = 1.0

#: Seconds until a killed process must be gone.
_KILL_TIMEOUT = 10.0


class Keeper:
    """The processes, by id, and the folder they share."""

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="greendrop-servers-")
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def directory(self) -> str:
        """Return the folder, which is removed at the end."""
        return self._directory

    def start(self, arguments: list[str], output: str) -> int:
        """Start a process whose output is appended to a file; return its id."""
        with Path(output).open("ab") as file:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
            )
        self._processes[process.pid] = process
        return process.pid

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a process, unless it has ended."""
        self._processes[pid].send_signal(number)

    def wait(self, pid: int, seconds: float) -> int | None:
        """Wait for a process to end; return its exit code, None if it still runs."""
        try:
            return self._processes[pid].wait(min(seconds, _LOOK_INTERVAL))
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """Kill all processes and remove the folder."""
        for process in self._processes.values():
            # SIGKILL and nothing gentler: it also ends a process that is stopped.
            process.kill()
        for process in self._processes.values():
            try:
                process.wait(_KILL_TIMEOUT)
            except subprocess.TimeoutExpired:
                print(f"process {process.pid} survives SIGKILL", file=sys.stderr)
        shutil.rmtree(self._directory, ignore_errors=True)


def answer(keeper: Keeper, line: bytes) -> bytes:
    """Execute one request and return the line that answers it."""
    request: dict[str, Any] = json.loads(line)
    reply = {"number": request["number"]}
    try:
        reply["result"] = getattr(keeper, request["do"])(**request["with"])
    except Exception as error:  # noqa: BLE001 - the answer contains it
        reply["error"] = repr(error)
    return json.dumps(reply).encode() + b"\n"


def main() -> None:
    """Serve requests until the parent is gone or ends the script."""
    parent = int(sys.argv[1])
    ending = False

    def end(*_: object) -> None:
        nonlocal ending
        ending = True

    # Only a flag, no exception: one raised between the start of a process and its entry
    # in the table would leave that process running.
    wake_read, wake_write = socket.socketpair()
    wake_write.setblocking(False)  # noqa: FBT003 - its only argument
    signal.set_wakeup_fd(wake_write.fileno())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)

    keeper = Keeper()
    unread = b""
    try:
        with socket.socket(fileno=0) as requests:
            while not ending and os.getppid() == parent:
                readable, _, _ = select.select(
                    [requests, wake_read], [], [], _LOOK_INTERVAL
                )
                if requests not in readable:
                    continue
                chunk = requests.recv(65536)
                if not chunk:
                    break
                *lines, unread = (unread + chunk).split(b"\n")
                for line in lines:
                    requests.sendall(answer(keeper, line))
    except ConnectionError:
        pass  # the parent is gone, in the middle of a request
    finally:
        keeper.close()


if __name__ == "__main__":
    main()
