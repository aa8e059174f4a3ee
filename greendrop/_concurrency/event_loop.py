"""asyncio's event loop: whether the calling thread runs one."""

from __future__ import annotations

import sys
from typing import Any


def in_event_loop() -> bool:
    """Return whether a wait in the calling thread would block a running event loop.

    asyncio is looked up and never imported here (confluent-kafka imports it): a program
    without it runs no event loop.
    """
    asyncio: Any = sys.modules.get("asyncio")
    # The attribute is missing while another thread is importing asyncio.
    running_loop = getattr(asyncio, "_get_running_loop", None)
    return running_loop is not None and running_loop() is not None
