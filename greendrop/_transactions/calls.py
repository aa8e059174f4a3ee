"""How a transactional client is told to begin, commit and abort.

Each command blocks inside librdkafka, so it runs on a native thread, in pieces, and is
tried again where that helps. What a failed one means for a transaction is for
`coordinator` to say.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from greendrop import _concurrency
from greendrop._librdkafka import error_codes
from greendrop.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from greendrop.config.settings import Settings

#: Seconds that a command stays inside librdkafka in one go; then it is called again,
#: and goes on where it was. Who is interrupted, or closes, waits no longer than that.
_PIECE = 1.0
#: Seconds before a command is called again that came back before its time was over:
#: at first, and as the pause has doubled several times.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0
#: Seconds that a native thread may take beyond that to come back.
_LATE = 10.0


class EmitError(Protocol):
    """Tells `error.occurred`."""

    def __call__(
        self, kind: str, error: BaseException, facts: dict[str, object], /
    ) -> None: ...


class TransactionCalls:
    """The commands of one client, one at a time.

    Args:
        settings: How often a command is tried.
        emit_error: Told of each try that failed.
    """

    def __init__(self, settings: Settings, emit_error: EmitError) -> None:
        self._settings = settings
        self._emit_error = emit_error
        # One whose caller was interrupted, while it is inside librdkafka.
        self._left: _concurrency.ThreadCall | None = None

    def begin(self, call: Callable[[], object]) -> None:
        """Run the one that asks no broker, and so need not leave the hub.

        Raises:
            BrokerError: librdkafka refused it, for good or too often.
        """
        self._try("begin", call, _concurrency.Deadline(_LATE))

    def run(
        self,
        name: str,
        call: Callable[[float], object],
        deadline: _concurrency.Deadline,
    ) -> None:
        """Run a command.

        Args:
            name: Its name in `error.occurred`.
            call: Takes how many seconds it may stay inside librdkafka.
            deadline: When to give up.

        Raises:
            BrokerError: It failed, for good or too often, or did not end in time.
            ProducerClosedError: The client is closed.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread. Ctrl-C and the like end the wait, not the command: at most 1 s.
        """
        self._try(name, lambda: self._in_pieces(call, deadline), deadline)

    def _try(
        self, name: str, step: Callable[[], object], deadline: _concurrency.Deadline
    ) -> None:
        attempts = self._settings.max_attempts_on_transaction_command
        backoff = self._settings.wait_backoff_on_transaction_command
        attempt = 0
        while True:
            attempt += 1
            try:
                step()
            except BrokerError as error:
                left = deadline.remaining()
                in_time = error.code != error_codes.TIMED_OUT and left > 0
                again = in_time and error.retriable and attempt < attempts
                facts: dict[str, object] = {"retry": again, "attempt": attempt}
                self._emit_error(f"transaction.{name}", error, facts)
                if not again:
                    raise
                _concurrency.new_waiter().wait(min(backoff * attempt, left))
            else:
                return

    def _in_pieces(
        self, call: Callable[[float], object], deadline: _concurrency.Deadline
    ) -> None:
        pause = _FIRST_PAUSE
        while True:
            began = _concurrency.monotonic()
            left = deadline.remaining()
            try:
                self._off_hub(partial(call, min(left, _PIECE)))
            except BrokerError as error:
                if error.code != error_codes.TIMED_OUT or left <= _PIECE:
                    raise
            else:
                return
            if _concurrency.monotonic() - began < _PIECE / 2:
                # librdkafka says "timed out" at once in some states, thousands of times
                # a second.
                _concurrency.new_waiter().wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _off_hub(self, function: Callable[[], Any]) -> None:
        if self._left is not None:
            self._end_left(self._left)
        call = _concurrency.ThreadCall(function)
        try:
            call.wait(_PIECE + _LATE)
        finally:
            self._left = None if call.ended else call

    def _end_left(self, call: _concurrency.ThreadCall) -> None:
        """Wait until librdkafka is free again; what came of it nobody wants to know."""
        with contextlib.suppress(BrokerError):
            call.wait(_PIECE + _LATE)
