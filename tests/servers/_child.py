"""A child process that executes requests and never outlives its parent.

Starts one of the scripts beside this module, sends requests to it and ends it. Both
sides hold one end of a socket pair: however this process ends, even by SIGKILL, the
child reads an end of file and cleans up. (Linux's PR_SET_PDEATHSIG would not do: it is
tied to the *thread* that forked, and a shutdown in stages needs more than a signal.)
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

#: Seconds until an unanswered request is an error. Every answer comes within about a
#: second; the rest is for a machine that is busy with something else.
_ANSWER_TIMEOUT = 30.0


class ChildError(Exception):
    """The child process could not execute a request, or is gone."""


class Child:
    """A running script of this package, and the connection to it.

    Args:
        script: File name of the script, beside this module. It gets our process id
            as its first argument and its end of the socket pair as standard input.
        arguments: More arguments.
        pass_fds: File descriptors that it inherits.
    """

    def __init__(
        self, script: str, *arguments: str, pass_fds: tuple[int, ...] = ()
    ) -> None:
        path = Path(__file__).with_name(script)
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._unread = b""
        self._requests = itertools.count()
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_ANSWER_TIMEOUT)
        with theirs:
            # A session of its own: Ctrl-C in the terminal reaches us only, and we
            # decide in which order things end.
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                # -I -S: starts in a third of the time, and nothing of the tested
                # environment (a sitecustomize that patches sockets, say) gets in.
                [sys.executable, "-I", "-S", str(path), str(self._owner), *arguments],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        atexit.register(self.close)

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._process.pid

    def ask(self, do: str, **arguments: Json) -> Json:
        """Send a request to the child, and return its answer.

        Raises:
            ChildError: The child could not execute it, or is gone.

        Blocking:
            Until the answer is there, at most 30 s.
        """
        try:
            with self._lock:
                number = next(self._requests)
                request = {"do": do, "with": arguments, "number": number}
                self._socket.sendall(json.dumps(request).encode() + b"\n")
                answer = json.loads(self._read_line())
                # A request that was abandoned (Ctrl-C, a test's time limit) has left
                # its answer behind.
                while answer["number"] != number:
                    answer = json.loads(self._read_line())
        except OSError as error:
            message = f"{self._process.args!r} does not answer {do!r}: {error!r}"
            raise ChildError(message) from error
        if "error" in answer:
            raise ChildError(answer["error"])
        result: Json = answer["result"]
        return result

    def close(self) -> None:
        """End the child, with everything that it keeps. Repeated calls do nothing.

        Blocking:
            Until it is gone, at most 30 s; then it is killed.
        """
        atexit.unregister(self.close)
        self._socket.close()
        # A forked copy of this process only closes its end: the child belongs to the
        # parent, and a fork in a test must not cost the session its broker.
        if os.getpid() != self._owner:
            return
        # The copy of our end in a fork that is still running would keep the end of
        # file from the child, so say it with a signal as well.
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_ANSWER_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_ANSWER_TIMEOUT)

    def _read_line(self) -> bytes:
        deadline = time.monotonic() + _ANSWER_TIMEOUT
        while b"\n" not in self._unread:
            if time.monotonic() > deadline:
                raise TimeoutError
            chunk = self._socket.recv(65536)
            if not chunk:
                raise ConnectionResetError
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line
