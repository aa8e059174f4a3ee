"""Clients of a web server that record the answers."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time

#: Seconds for one answer, and for a server to come back.
_LONGEST_WAIT = 30.0


class WebClients:
    """Threads that post numbered texts, each on a connection of its own.

    A context manager; the threads stop at its end.

    Args:
        address: The server's, such as "127.0.0.1:8000".
        path: The path of the requests.
        clients: The number of threads.
        rest: Seconds between an answer and the next request of a thread.
    """

    def __init__(
        self, address: str, path: str, clients: int = 64, *, rest: float = 0.0
    ) -> None:
        #: All texts that were posted, answered or not.
        self.sent: set[str] = set()
        #: Texts that were answered with 200.
        self.answered: set[str] = set()
        #: Other answers than 200, by status.
        self.refused: dict[str, int] = {}
        #: Requests without an answer: the connection was closed.
        self.dropped = 0
        #: Seconds until the slowest answer with 200.
        self.slowest = 0.0
        self._rest = rest
        self._address = address
        self._path = path
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._post_all, args=(f"client{number:02}",))
            for number in range(clients)
        ]

    def __enter__(self) -> WebClients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the threads, and wait until each has stopped: none of them hangs."""
        self._stopping = True
        for thread in self._threads:
            thread.join(_LONGEST_WAIT)
        assert not any(thread.is_alive() for thread in self._threads)

    def await_answers(self, number: int) -> None:
        """Wait for a number of further answers."""
        until = len(self.answered) + number
        deadline = time.monotonic() + _LONGEST_WAIT
        while len(self.answered) < until:
            assert time.monotonic() < deadline, f"{len(self.answered)} of {until}"
            time.sleep(0.01)

    def _post_all(self, name: str) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=_LONGEST_WAIT)
        number = 0
        while not self._stopping:
            text = f"{name}-{number}"
            number += 1
            self.sent.add(text)
            time.sleep(self._rest)
            started = time.monotonic()
            try:
                connection.request("POST", self._path, text)
                answer = connection.getresponse()
                answer.read()
            except ConnectionRefusedError:
                # The server is gone, and has never got this text.
                self.sent.discard(text)
                connection.close()
                time.sleep(0.01)
                continue
            except (OSError, http.client.HTTPException):
                self.dropped += 1
                connection.close()
                continue
            if answer.status == http.client.OK:
                self.answered.add(text)
                self.slowest = max(self.slowest, time.monotonic() - started)
            else:
                self.refused[text] = answer.status
        with contextlib.suppress(OSError):
            connection.close()
