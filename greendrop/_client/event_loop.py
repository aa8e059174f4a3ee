"""The warning about waits that block an asyncio event loop."""

from __future__ import annotations

from greendrop import _concurrency
from greendrop._logging.log import WARNING, Log

_log = Log("greendrop")

_has_warned = False


def warn_if_in_event_loop() -> None:
    """Warn once in a process that a coroutine waits by blocking its event loop."""
    global _has_warned  # noqa: PLW0603 - once in a process
    if _has_warned or not _concurrency.in_event_loop():
        return
    _has_warned = True
    _log.write(
        WARNING,
        "event_loop.blocked",
        text="a coroutine waits for Kafka and blocks its asyncio event loop meanwhile;"
        " use await producer.produce_async(...), or call sync verbs in a thread: await"
        " asyncio.to_thread(producer.produce_sync, ...)",
    )
