"""A server that issues tokens by HTTP, as OAuth defines it; Kafka believes them."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class TokenServer:
    """Answers each POST with a new token. A context manager.

    Args:
        make: Returns a token and its expiry, in seconds since 1970.
        delay: Seconds that each answer takes.
    """

    def __init__(
        self, make: Callable[[], tuple[str, float]], *, delay: float = 0.0
    ) -> None:
        #: The number of issued tokens.
        self.issued = 0
        self.delay = delay
        self._make = make

    def __enter__(self) -> TokenServer:
        issue = self._issue

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = issue()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """The address for requests."""
        return f"http://127.0.0.1:{self._server.server_port}/token"

    def _issue(self) -> bytes:
        time.sleep(self.delay)
        self.issued += 1
        value, expires_at = self._make()
        answer = {
            "access_token": value,
            "token_type": "Bearer",
            "expires_in": expires_at - time.time(),
        }
        return json.dumps(answer).encode()
