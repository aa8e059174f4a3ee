"""The calls into librdkafka that begin, commit and abort transactions; their retries.

Each call blocks inside librdkafka, so it runs on a native thread, in slices of a
second. A call, such as a commit, is retried after a retriable error. `coordinator`
decides what a failed call means for the transaction.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from greendrop import _concurrency
from greendrop._librdkafka import error_codes
from greendrop.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from greendrop._connections.connections import Connections

#: Seconds that a call stays inside librdkafka at a time. After that the call is
#: repeated and continues where it was. An interrupted caller, and `close`, wait no
#: longer than this for the thread.
_SLICE = 1.0
#: Seconds before a call is repeated that timed out before its slice was over: the first
#: pause, and the longest one, which doubling the pause leads to.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0
#: Seconds that a native thread may need beyond its slice until it returns.
_LATE = 10.0


class TransactionCalls:
    """The transaction calls of one client, one at a time.

    Args:
        connections: The connections of the producer.
    """

    def __init__(self, connections: Connections) -> None:
        self._settings = connections.settings
        self._connections = connections
        # A call that is still inside librdkafka after its caller was interrupted.
        self._interrupted: _concurrency.ThreadCall[object] | None = None

    def begin(self, call: Callable[[], object]) -> None:
        """Make the call that begins a transaction.

        That call asks no broker, so it runs on the thread of the caller.

        Raises:
            BrokerError: The last attempt failed, or the error is not retriable.
        """
        self._retry("begin", _concurrency.Deadline(_LATE), call)

    def run(
        self,
        name: str,
        call: Callable[..., object],
        deadline: _concurrency.Deadline,
        *args: object,
    ) -> None:
        """Make a call on a native thread.

        Args:
            name: The name of the call in `error.occurred`.
            call: Takes the seconds that it may stay inside librdkafka, then `args`.
            deadline: When to give up.
            args: Further arguments of the call.

        Raises:
            BrokerError: The last attempt failed, the error is not retriable, or the
                call did not end before the deadline.
            ProducerClosedError: The client is closed.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread. An exception from outside, such as Ctrl-C, ends the wait, and the
            call goes on for 1 s at most.
        """
        self._retry(name, deadline, self._in_slices, deadline, call, args)

    def _retry(
        self,
        name: str,
        deadline: _concurrency.Deadline,
        step: Callable[..., object],
        *args: object,
    ) -> None:
        attempts = self._settings.max_attempts_on_transaction_command
        backoff = self._settings.wait_backoff_on_transaction_command
        attempt = 0
        while True:
            attempt += 1
            try:
                step(*args)
            except BrokerError as error:
                remaining = deadline.remaining()
                in_time = error.code != error_codes.TIMED_OUT and remaining > 0
                retry = in_time and error.retriable and attempt < attempts
                payload: dict[str, object] = {"retry": retry, "attempt": attempt}
                self._connections.emit_error(f"transaction.{name}", error, payload)
                if not retry:
                    raise
                _concurrency.new_waiter().wait(min(backoff * attempt, remaining))
            else:
                return

    def _in_slices(
        self,
        deadline: _concurrency.Deadline,
        call: Callable[..., object],
        args: tuple[object, ...],
    ) -> None:
        pause = _FIRST_PAUSE
        while True:
            started = _concurrency.monotonic()
            remaining = deadline.remaining()
            try:
                self._off_hub(call, min(remaining, _SLICE), *args)
            except BrokerError as error:
                if error.code != error_codes.TIMED_OUT or remaining <= _SLICE:
                    raise
            else:
                return
            if _concurrency.monotonic() - started < _SLICE / 2:
                # In some states librdkafka times out at once: without a pause,
                # thousands of times a second.
                _concurrency.new_waiter().wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _off_hub(self, call: Callable[..., object], *args: object) -> None:
        if self._interrupted is not None:
            self._wait_for_interrupted(self._interrupted)
        running = _concurrency.ThreadCall(call, *args)
        try:
            running.wait(_SLICE + _LATE)
        finally:
            self._interrupted = None if running.ended else running

    def _wait_for_interrupted(self, call: _concurrency.ThreadCall[object]) -> None:
        """Wait until an interrupted call has left librdkafka; ignore its result."""
        with contextlib.suppress(BrokerError):
            call.wait(_SLICE + _LATE)
