"""Free ports on the loopback interface."""

from __future__ import annotations

import random
import socket

LOOPBACK = "127.0.0.1"

# Below the ports that systems hand out by themselves (Linux from 32768, macOS from
# 49152). A client that tries to reach a killed broker at such a port could be given
# this very port as its own, connect to itself, and keep the broker from coming back.
_FIRST, _LAST = 15_000, 32_000

# Not `random` itself: pytest-randomly seeds it, and then two test sessions at once
# would try the same ports in the same order.
_random = random.SystemRandom()


def listen() -> socket.socket:
    """Return a socket that listens on a free port.

    Raises:
        OSError: None of a hundred ports is free.
    """
    for _ in range(100):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, _random.randint(_FIRST, _LAST)))
            listener.listen(128)
        except OSError:
            listener.close()
        else:
            return listener
    message = f"no free port between {_FIRST} and {_LAST}"
    raise OSError(message)


def is_free(port: int) -> bool:
    """Return whether no program listens on a port."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """Return different ports that are free now, which may change at any time."""
    listeners = [listen() for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
