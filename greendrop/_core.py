"""The rules of dispatch: who may send and when, and how a producer's life goes.

What a `Producer` and everything made from it share: the state, the client that is
built at first use, the wait for room in a full queue, and the end. Knows nothing of
librdkafka's calls (`_client` does) and nothing of the verbs (`producer` does).
"""

from __future__ import annotations

import atexit
import logging
import math
import sys
import warnings
from collections import deque
from typing import TYPE_CHECKING, Literal

from greendrop import _librdkafka, _waiting
from greendrop._buffer import Buffer, Flush
from greendrop._client import Client
from greendrop.errors import (
    ConfigurationInvalidError,
    GreendropError,
    IllegalWaitError,
    MessagesAbandonedError,
    ProduceError,
    ProduceManyError,
    ProducerClosedError,
    ProducerUsedInParentProcessError,
    QueueFullError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from greendrop._buffer import Entry
    from greendrop.config import Settings
    from greendrop.delivery import DeliveryHandle
    from greendrop.events import Monitor
    from greendrop.message import Message

Status = Literal["initial", "configured", "connected", "closing", "closed"]

#: Seconds that the reports of dropped messages may take. They come at once; the time
#: is for a hub that is busy with something else.
_PURGE_TIMEOUT = 5.0

_log = logging.getLogger("greendrop")

# Held while connected, or from the first buffered message on, so that nobody collects a
# producer whose messages are on their way, and closed when the interpreter exits.
_connected: set[Core] = set()


class Core:
    """The shared part of a producer. Construction opens nothing."""

    def __init__(self, settings: Settings, monitor: Monitor) -> None:
        problems = _librdkafka.check_configuration(settings.kafka, settings.secret_keys)
        if problems:
            raise ConfigurationInvalidError(
                {
                    key if key == "kafka" else f"kafka.{key}": text
                    for key, text in problems.items()
                }
            )
        self.settings = settings
        self.max_payload_size = settings.max_payload_size
        self.monitor = monitor
        self.status: Status = "configured"
        self._client: Client | None = None
        # The client while messages are taken: one look tells that all is well.
        self._open: Client | None = None
        self._changing = _waiting.RLock()
        self._closer: object = None
        self.buffer = Buffer()
        # Who sends what is buffered while all others are refused: close does.
        self._last_flusher: object = None
        # Nobody waits for room any longer than until then, by the monotonic clock.
        self._send_until = math.inf
        self._close_waiters: deque[_waiting.Waiter] = deque()

    # --- sending -----------------------------------------------------------------

    def dispatch(
        self, message: Message, verb: str, counts: dict[str, int] | None = None
    ) -> DeliveryHandle:
        """Queue one message in wire form, waiting for room if need be.

        Args:
            message: Checked.
            verb: The public method's name, for `error.occurred`.
            counts: Numbers of partitions that hold for its batch; see `Router.routed`.

        Raises:
            QueueFullError: No room within `wait_timeout_on_queue_full`.
            ProduceError: librdkafka refused it.
            IllegalWaitError: Where its `partition_key` leads to is not known.
            ProducerClosedError, ProducerUsedInParentProcessError: Nothing was queued.
        """
        client = self._open
        if client is None or not client.mark[0]:
            client = self._connect()
        routed = message
        if message[5] is not None:
            routed = client.router.routed(message, {} if counts is None else counts)
            client = self._open or self._connect()  # closed meanwhile?
        try:
            return client.send(routed)
        except QueueFullError as error:
            if not self.settings.wait_on_queue_full:
                raise
            return self._send_when_room(message, routed, verb, error)

    def dispatch_many(
        self,
        messages: Sequence[Message],
        verb: str,
        handles: list[DeliveryHandle] | None = None,
        end: int | None = None,
    ) -> list[DeliveryHandle]:
        """Queue a batch, in order; a long one lets other greenlets run.

        Args:
            messages: In wire form.
            verb: As for `dispatch`.
            handles: Those of the first messages, which are queued already. The others
                are added, so that one who is interrupted knows how far it came.
            end: Index of the first message that is not to be queued now.

        Raises:
            ProduceManyError: A message was not queued, nor were those after it.
        """
        handles = [] if handles is None else handles
        end = len(messages) if end is None else end
        # One number for each topic, so that equal keys of a batch stay together.
        counts: dict[str, int] = {}
        turns = _waiting.Turns()
        try:
            while len(handles) < end:
                turns.end_one()
                part = messages[len(handles) : min(len(handles) + turns.ROUNDS, end)]
                wanted = len(part)
                if [each for each in part if each[5] is not None]:
                    part = self._connect().router.routed_many(part, counts)
                sent = self._connect().send_many(part)
                handles += sent
                if len(sent) < wanted:
                    # Something is in the way of the next one: it waits, or says so.
                    handles.append(self.dispatch(messages[len(handles)], verb, counts))
        except (ProduceError, ProducerClosedError, IllegalWaitError) as error:
            if not handles and not isinstance(error, ProduceError):
                raise
            text = (
                f"message {len(handles)} of {len(messages)} and those after it were"
                f" not queued: {error}"
            )
            raise ProduceManyError(
                text, dispatched=handles, failed_index=len(handles)
            ) from error
        finally:
            if self._client is not None:
                self._client.flush_gathered()
        return handles

    def partition_count(self, topic: str) -> int:
        """See `Producer.partition_count`."""
        count = self._connect().router.count(topic)
        if self._open is None:
            self._connect()  # closed meanwhile: says so
        return count

    def _send_when_room(
        self, message: Message, routed: Message, verb: str, full: QueueFullError
    ) -> DeliveryHandle:
        if self.settings.instrument_on_wait_queue_full and self.monitor.listens(
            "error.occurred"
        ):
            self.monitor.emit(
                "error.occurred",
                {
                    "producer_id": self.settings.id,
                    "error": full,
                    "type": f"message.{verb}",
                    "message": message,
                },
            )
        again = False
        deadline = _waiting.monotonic() + self.settings.wait_timeout_on_queue_full
        deadline = min(deadline, self._send_until)
        while True:
            left = deadline - _waiting.monotonic()
            if left <= 0:
                raise full
            self._connect().wait_for_room(left, again=again)
            again = True
            try:
                return self._connect().send(routed, waited=True)
            except QueueFullError as error:
                full = error

    def _connect(self) -> Client:
        """Give the client, built if there is none.

        Raises:
            ProducerClosedError, ProducerUsedInParentProcessError: See there.
            ConfigurationInvalidError: librdkafka refused the configuration.
        """
        self._refuse_after_fork()
        with self._changing:
            closing = self.status in ("closing", "closed")
            if closing and self._last_flusher != _waiting.current_task():
                raise self._closed_error()
            client = self._client if closing else self._open
            if client is not None:
                return client
            client = self._client = Client(self.settings, self.monitor)
            if not closing:
                self._open = client
                self.status = "connected"
            _connected.add(self)
        self.monitor.emit("producer.connected", {"producer_id": self.settings.id})
        return client

    def hold(self, entries: Iterable[Entry]) -> None:
        """Keep messages until they are flushed.

        Raises:
            ProducerClosedError, ProducerUsedInParentProcessError: Nothing was kept.
        """
        self._refuse_after_fork()
        if not self.buffer.append(entries):
            raise self._closed_error()
        _connected.add(self)
        if self.status == "closed":
            _connected.discard(self)  # by another thread, since the message was added

    def _closed_error(self) -> ProducerClosedError:
        return ProducerClosedError(f"producer {self.settings.id!r} is {self.status}")

    def _refuse_after_fork(self) -> None:
        if self.inherited:
            text = (
                f"producer {self.settings.id!r} was used before this process was"
                " forked; call reset() here, or use it only after the fork"
            )
            raise ProducerUsedInParentProcessError(text)

    # --- looking -----------------------------------------------------------------

    @property
    def inherited(self) -> bool:
        """Whether the client belongs to the process that this one was forked from."""
        return self._client is not None and not self._client.mark[0]

    @property
    def client(self) -> Client | None:
        """The client, if one was built and not closed."""
        return self._client

    # --- ending ------------------------------------------------------------------

    def close(self, timeout: float | None, *, force: bool) -> None:
        """See `Producer.close`."""
        if self.inherited:
            # Nothing of the parent's is touched, not even told about.
            self.reset()
            self.status = "closed"
            self.buffer.shut()
            return
        client = self._client
        serving = client is not None and client.in_serving_task()
        if serving or (_waiting.in_hub() and (client is not None or self.buffer)):
            _waiting.start(lambda: self._close_quietly(timeout, force=force))
            return
        if timeout is None:
            timeout = 0.0 if force else self.settings.max_wait_timeout
        with self._changing:
            first = self.status not in ("closing", "closed")
            if first:
                self.status = "closing"
                self._closer = _waiting.current_task()
                self.buffer.shut()
            self._open = None
        if not first:
            if self._closer != _waiting.current_task():  # a listener of closing
                self._wait_closed(timeout + _PURGE_TIMEOUT)
            return
        began = _waiting.monotonic()
        abandoned = 0
        try:
            self.monitor.emit("producer.closing", {"producer_id": self.settings.id})
        finally:
            # Also when a listener was interrupted: it always ends closed.
            abandoned = self._close_client(timeout, began, force=force)
        if abandoned and not force:
            text = (
                f"producer {self.settings.id!r} is closed; {abandoned} messages were"
                f" not delivered within {timeout:g} s and dropped"
            )
            raise MessagesAbandonedError(text, count=abandoned)

    def _close_client(self, timeout: float, began: float, *, force: bool) -> int:
        abandoned = 0
        deadline = _waiting.monotonic() + timeout
        try:
            # One who gives nothing the time to be delivered keeps it readable instead.
            if self.buffer and (timeout or not force):
                self._flush_last(deadline)
        except BaseException:
            deadline = began  # cut short: whoever did that doesn't wait any longer
            raise
        finally:
            abandoned = self._end_all(deadline, began)
        return abandoned

    def _flush_last(self, deadline: float) -> None:
        """Send what is buffered; `close` itself waits for the deliveries."""
        self._send_until = deadline
        self._last_flusher = _waiting.current_task()
        began = _waiting.monotonic()
        batch: list[Message] = []
        try:
            with Flush(self.buffer) as flush:
                batch = flush.prepare()
                flush.dispatch("produce_many_async")
        except Exception as error:  # noqa: BLE001 - nothing stops the teardown
            _log.error(
                "producer %r closes without sending all that was buffered: %s: %s",
                self.settings.id,
                type(error).__name__,
                error if isinstance(error, GreendropError) else "",
            )
            self.monitor.emit(
                "error.occurred",
                {
                    "producer_id": self.settings.id,
                    "error": error,
                    "type": "buffer.flush",
                },
            )
        else:
            time = _waiting.monotonic() - began
            facts = {"producer_id": self.settings.id, "messages": batch, "time": time}
            self.monitor.emit("messages.produced_async", facts)
            self.monitor.emit("buffer.flushed_async", facts)
        finally:
            self._last_flusher = None

    def _end_all(self, deadline: float, began: float) -> int:
        abandoned = 0
        client = self._client
        try:
            if client is not None:
                left = max(deadline - _waiting.monotonic(), 0.0)
                abandoned = self._end(client, left)
        finally:
            self._client = None
            self.status = "closed"
            _connected.discard(self)
            while self._close_waiters:
                self._close_waiters.popleft().wake()
            self.monitor.emit(
                "producer.closed",
                {
                    "producer_id": self.settings.id,
                    "time": _waiting.monotonic() - began,
                },
            )
        return abandoned

    def _end(self, client: Client, timeout: float) -> int:
        """Await deliveries, drop the rest, tear down. Gives how many were dropped."""
        abandoned = 0
        client.stop_taking()
        try:
            client.wait_delivered(timeout)
        finally:
            # Also when the wait was cut short: it always ends closed.
            try:
                abandoned = max(client.outstanding, 0)
                if abandoned:
                    client.purge()
                    client.wait_delivered(_PURGE_TIMEOUT)
            finally:
                client.close()
        return abandoned

    def _wait_closed(self, seconds: float) -> None:
        deadline = _waiting.monotonic() + seconds
        while self._closing():
            left = deadline - _waiting.monotonic()
            if left <= 0:
                return
            waiter = _waiting.new_waiter()
            self._close_waiters.append(waiter)
            if self._closing():
                waiter.wait(left)

    def _closing(self) -> bool:
        return self.status == "closing"

    def _close_quietly(self, timeout: float | None, *, force: bool) -> None:
        # Nobody is there to catch it: the handles and the log have to tell.
        try:
            self.close(timeout, force=force)
        except MessagesAbandonedError as error:
            _log.error("%s", error)

    def reset(self) -> None:
        """See `Producer.reset`."""
        client = self._client
        if client is None or not self.inherited:
            return
        client.forget_in_child()
        self._client = self._open = None
        # A thread of the parent may have held them at the moment of the fork.
        self._changing = _waiting.RLock()
        self._close_waiters = deque()
        self.status = "closed" if self.status == "closing" else "configured"
        _connected.discard(self)

    def release(self) -> None:
        """Close in the background: the last `Producer` of this core is gone."""
        if self.status != "connected" or self.inherited:
            _connected.discard(self)
            return
        # Closed first: a warning may have been made an error.
        _waiting.start_new_thread(self._close_quietly, (None,), {"force": False})
        warnings.warn(
            f"producer {self.settings.id!r} was never closed; closing it now",
            ResourceWarning,
            stacklevel=2,
        )


def _close_at_exit() -> None:
    """Close what this process left open, within a bounded time in all."""
    cores = [core for core in _connected if not core.inherited]
    if not cores:
        return
    limit = max(core.settings.exit_timeout for core in cores)
    deadline = _waiting.monotonic() + limit
    for core in cores:
        try:
            core.close(max(deadline - _waiting.monotonic(), 0.0), force=False)
        except MessagesAbandonedError as error:
            # Logging may be shut down, and is silent by default. This must be seen.
            sys.stderr.write(f"greendrop: {error}\n")
        if unsent := len(core.buffer):
            text = f"{unsent} buffered messages of producer {core.settings.id!r}"
            sys.stderr.write(f"greendrop: {text} were not sent\n")


atexit.register(_close_at_exit)
