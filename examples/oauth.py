"""A login with tokens from a slow OAuth server.

Ten senders need a token at the same time. They cause one request to the server, and
other greenlets run meanwhile, although the provider blocks. Then the server is down,
and a send raises the reason.

    python examples/oauth.py

The example starts a small OAuth server of its own; its tokens are unsecured, which is
for development only. With `GREENDROP_OAUTH_SERVERS=host:9092` in the environment the
example sends to that listener (SASL_PLAINTEXT, OAUTHBEARER with Kafka's own unsecured
tokens). Without it there is no broker, and the example only shows how tokens are
requested: the mock cluster supports no logins.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import gevent

# Python searches the folder of a script first. There concurrent.py would hide the
# standard library's `concurrent`.
if (here := str(Path(__file__).resolve().parent)) in sys.path:
    sys.path.remove(here)

from greendrop import OAuthToken, OAuthTokenError, Producer

if TYPE_CHECKING:
    from collections.abc import Iterator

TOPIC = "greendrop-oauth"
#: Seconds that the OAuth server takes to answer, and that its tokens are valid.
DELAY, LIFETIME = 0.5, 300


def say(actor: str, text: str) -> None:
    """Write a line."""
    sys.stdout.write(f"{actor:<10}{text}\n")
    sys.stdout.flush()


class OAuthServer(BaseHTTPRequestHandler):
    """Answers each POST with a token."""

    def do_POST(self) -> None:
        """Issue a token."""
        say("server", "issues a token")
        time.sleep(DELAY)
        claims = {"sub": "example", "exp": time.time() + LIFETIME}
        parts = ({"alg": "none"}, claims)
        token = ".".join(
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
            for part in parts
        )
        body = json.dumps({"access_token": f"{token}.", "expires_in": LIFETIME})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def oauth_server() -> Iterator[str]:
    """Run the server in a thread, and return its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), OAuthServer)
    threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/token"
    finally:
        server.shutdown()
        server.server_close()


def provider_of(url: str) -> OAuthToken:
    """Request a token; this blocks the calling thread."""
    with urllib.request.urlopen(url, data=b"grant_type=client_credentials") as answer:  # noqa: S310 - the server above
        fields = json.load(answer)
    return OAuthToken(fields["access_token"], time.time() + fields["expires_in"])


def send_from_ten(producer: Producer) -> None:
    """Send from ten greenlets, and count how often another one runs meanwhile."""
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            gevent.sleep(0.01)

    ticker = gevent.spawn(tick)
    senders = [
        gevent.spawn(producer.produce_async, topic=TOPIC, payload=f"{number}")
        for number in range(10)
    ]
    handles = [sender.get() for sender in senders]
    ticker.kill()
    say("senders", f"have their token; another greenlet ran {ticks} times meanwhile")
    if os.environ.get("GREENDROP_OAUTH_SERVERS"):
        reports = [handle.wait(30) for handle in handles]
        say("senders", f"have sent {len(reports)} messages")


def main() -> None:
    """Run both parts."""
    kafka = {
        "bootstrap.servers": os.environ.get("GREENDROP_OAUTH_SERVERS", "127.0.0.1:1"),
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanisms": "OAUTHBEARER",
        "log_level": 0,
    }
    with oauth_server() as url:
        producer = Producer(kafka, oauth_token_provider=lambda: provider_of(url))
        send_from_ten(producer)
        producer.close(force=True)

    producer = Producer(kafka, oauth_token_provider=lambda: provider_of(url))
    try:
        producer.produce_sync(topic=TOPIC, payload="x")
    except OAuthTokenError as error:
        say("main", f"gets an error: {error}")
        say("main", f"the reason is {error.__cause__!r}")
    producer.close()


if __name__ == "__main__":
    main()
