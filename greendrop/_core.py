"""The rules of dispatch: who may send and when, and how a producer's life goes.

What a `Producer` and everything made from it share: the state, the client that is
built at first use, the wait for room in a full queue, and the end. Knows nothing of
librdkafka's calls (`_client` does) and nothing of the verbs (`producer` does).
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import sys
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

from greendrop import _librdkafka, _waiting
from greendrop._buffer import Buffer, Flush
from greendrop._client import Client
from greendrop._idle import IdleWatch
from greendrop._lane import Lane, topic_settings
from greendrop._recovery import Recovery
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
    VariantInvalidError,
)
from greendrop.scope import collect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from greendrop._buffer import Entry
    from greendrop.config import Settings
    from greendrop.delivery import DeliveryHandle
    from greendrop.errors import BrokerError
    from greendrop.events import Monitor
    from greendrop.message import Message
    from greendrop.scope import OpenScopes

Status = Literal[
    "initial",
    "configured",
    "connected",
    "disconnecting",
    "disconnected",
    "closing",
    "closed",
]

#: Seconds that the reports of dropped messages may take. They come at once; the time
#: is for a hub that is busy with something else.
_PURGE_TIMEOUT = 5.0
#: Seconds between two looks whether a message has called off a disconnect.
_LOOK_EVERY = 0.05
#: Topic configurations of one producer, each with a client: connections, threads and
#: memory. More are most likely made by mistake, one for each message.
_MOST_LANES = 16

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
        #: The way of messages that are sent by the producer itself.
        self.main = Lane(settings, {})
        # One for each topic configuration.
        self._lanes = [self.main]
        self._recovery = Recovery(settings.id, monitor, self._replace)
        self._idle = IdleWatch(settings.idle_disconnect_timeout)
        # Clients that are being closed while others take their place, or could.
        self._parting: list[Client] = []
        # There while a disconnect waits for deliveries, until it is called off.
        self._disconnecting: object | None = None
        self._changing = _waiting.RLock()
        self._closer: object = None
        self.buffer = Buffer()
        # Who sends what is buffered while all others are refused: close does.
        self._last_flusher: object = None
        # Nobody waits for room any longer than until then, by the monotonic clock.
        self._send_until = math.inf
        self._close_waiters: deque[_waiting.Waiter] = deque()
        #: Who wants to know of what is sent. Mostly nobody: one look tells.
        self.scopes: OpenScopes = {}

    # --- sending -----------------------------------------------------------------

    def dispatch(
        self,
        lane: Lane,
        message: Message,
        verb: str,
        counts: dict[str, int] | None = None,
    ) -> DeliveryHandle:
        """Queue one message in wire form, waiting for room if need be.

        Args:
            lane: Its way.
            message: Checked.
            verb: The public method's name, for `error.occurred`.
            counts: Numbers of partitions that hold for its batch; see `Router.routed`.

        Raises:
            QueueFullError: No room within `wait_timeout_on_queue_full`.
            ProduceError: librdkafka refused it.
            IllegalWaitError: Where its `partition_key` leads to is not known.
            ProducerClosedError, ProducerUsedInParentProcessError: Nothing was queued.
        """
        client = lane.open
        if client is None or not client.mark[0]:
            client = self._connect(lane)
        routed = message
        if message[5] is not None:
            client, routed = self._routed(lane, client, message, counts)
        try:
            handle = client.send(routed)
        except QueueFullError as error:
            if not self.settings.wait_on_queue_full:
                raise
            handle = self._send_when_room(lane, message, routed, verb, error)
        except ProducerClosedError:
            # Another thread has disconnected since we looked, or replaced the client.
            if self._connect(lane) is client:
                raise
            return self.dispatch(lane, message, verb, counts)
        if self.scopes:
            collect(self.scopes, (handle,))
        return handle

    def _routed(
        self,
        lane: Lane,
        client: Client,
        message: Message,
        counts: dict[str, int] | None,
    ) -> tuple[Client, Message]:
        counts = {} if counts is None else counts
        while True:
            routed = client.router.routed(message, counts)
            now = lane.open or self._connect(lane)  # closed meanwhile?
            if now is client:
                return client, routed
            # Replaced meanwhile. What the old one didn't know, the new one may.
            client = now
            if counts.get(message[0], 0) <= 0:
                counts.pop(message[0], None)

    def dispatch_many(
        self,
        lane: Lane,
        messages: Sequence[Message],
        verb: str,
        handles: list[DeliveryHandle] | None = None,
        end: int | None = None,
    ) -> list[DeliveryHandle]:
        """Queue a batch, in order; a long one lets other greenlets run.

        Args:
            lane: Their way.
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
                    part = self._connect(lane).router.routed_many(part, counts)
                sent = self._connect(lane).send_many(part)
                handles += sent
                if self.scopes:
                    collect(self.scopes, sent)
                if len(sent) < wanted:
                    # Something is in the way of the next one: it waits, or says so.
                    one = messages[len(handles)]
                    handles.append(self.dispatch(lane, one, verb, counts))
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
            if lane.client is not None:
                lane.client.flush_gathered()
        return handles

    def partition_count(self, lane: Lane, topic: str) -> int:
        """See `Producer.partition_count`."""
        client = self._connect(lane)
        while True:
            count = client.router.count(topic)
            now = lane.open or self._connect(lane)  # closed meanwhile: says so
            if now is client or count > 0:
                return count
            client = now

    def _send_when_room(
        self,
        lane: Lane,
        message: Message,
        routed: Message,
        verb: str,
        full: QueueFullError,
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
            self._connect(lane).wait_for_room(left, again=again)
            again = True
            try:
                return self._connect(lane).send(routed, waited=True)
            except QueueFullError as error:
                full = error
            except ProducerClosedError:
                continue  # replaced meanwhile; or `_connect` says that all is over

    # --- connecting --------------------------------------------------------------

    def lane(self, topic_config: Mapping[str, str]) -> Lane:
        """Give the way of messages with a topic configuration; see `Producer.variant`.

        Raises:
            VariantInvalidError: librdkafka would refuse it, or there are too many.
            ProducerClosedError: The producer is.
        """
        with self._changing:
            if self.status in ("closing", "closed"):
                raise self._closed_error()
            for lane in self._lanes:
                if lane.topic_config == topic_config:
                    return lane
            if len(self._lanes) > _MOST_LANES:
                text = (
                    f"this producer has {_MOST_LANES} of them already, each with a"
                    " connection; use those again, or another producer"
                )
                raise VariantInvalidError({"topic_config": text})
            lane = Lane(topic_settings(self.settings, topic_config), topic_config)
            self._lanes.append(lane)
        return lane

    def _connect(self, lane: Lane) -> Client:
        """Give the client, built if there is none. Calls off a disconnect.

        Raises:
            ProducerClosedError, ProducerUsedInParentProcessError: See there.
            ConfigurationInvalidError: librdkafka refused the configuration.
        """
        self._refuse_after_fork()
        with self._changing:
            closing = self.status in ("closing", "closed")
            if closing and self._last_flusher != _waiting.current_task():
                raise self._closed_error()
            if self._disconnecting is not None:
                self._stay_connected()
            client = lane.client if closing else lane.open
            if client is not None:
                return client
            client = lane.client = self._build(lane)
            if not closing:
                lane.open = client
                self.status = "connected"
            _connected.add(self)
        self._tell("producer.connected")
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

    def _build(self, lane: Lane) -> Client:
        return Client(
            lane.settings,
            self.monitor,
            on_fatal=lambda client, error: self._on_fatal(lane, client, error),
            on_pulse=self._look_whether_idle,
        )

    def _refuse_after_fork(self) -> None:
        if self.inherited:
            text = (
                f"producer {self.settings.id!r} was used before this process was"
                " forked; call reset() here, or use it only after the fork"
            )
            raise ProducerUsedInParentProcessError(text)

    # --- looking -----------------------------------------------------------------

    def check_wait(self) -> None:
        """Refuse a caller who could not wait for what it sends.

        Raises:
            IllegalWaitError: It is the hub itself, or a listener of this producer.
            ProducerUsedInParentProcessError: See there.
        """
        self._refuse_after_fork()
        _waiting.new_waiter()
        for client in self.clients:
            client.waiter()

    @property
    def inherited(self) -> bool:
        """Whether the client belongs to the process that this one was forked from."""
        return any(not client.mark[0] for client in self.clients)

    @property
    def clients(self) -> list[Client]:
        """All clients that were built and not closed."""
        return [lane.client for lane in self._lanes if lane.client is not None]

    @property
    def variants(self) -> int:
        """How many topic configurations there are beside the producer's own."""
        return len(self._lanes) - 1

    @property
    def outstanding(self) -> int:
        """Messages that were taken and have no verdict yet."""
        return sum(client.outstanding for client in self.clients)

    @staticmethod
    def _may_wait(clients: Iterable[Client]) -> bool:
        """Tell whether waiting for these clients can end, in the caller's place."""
        return not (
            _waiting.in_hub() or any(client.in_serving_task() for client in clients)
        )

    # --- dropping ----------------------------------------------------------------

    def purge(self) -> None:
        """See `Producer.purge`."""
        self._refuse_after_fork()
        began = _waiting.monotonic()
        self.buffer.clear()
        clients = self.clients
        dropped = [handle for client in clients for handle in client.purge()]
        if self._may_wait(clients):
            for client in clients:
                client.finish_purge(_PURGE_TIMEOUT)
            self._await_verdicts(dropped, began + _PURGE_TIMEOUT)
        self._tell("buffer.purged", began)

    @staticmethod
    def _await_verdicts(handles: Iterable[DeliveryHandle], deadline: float) -> None:
        for handle in handles:
            left = deadline - _waiting.monotonic()
            if left <= 0:
                return
            if not handle.done:
                with contextlib.suppress(ProduceError):
                    handle.wait(left)

    # --- disconnecting -----------------------------------------------------------

    def disconnect(self) -> bool:
        """See `Producer.disconnect`."""
        self._refuse_after_fork()
        if not self._may_wait(self.clients):
            if self._is_disconnectable():
                _waiting.start(self._disconnect_quietly)
                return True
            return False
        began = _waiting.monotonic()
        with self._changing:
            if not self._is_disconnectable():
                return False
            me = self._disconnecting = object()
            self.status = "disconnecting"
            for lane in self._lanes:
                lane.open = None
        try:
            self._tell("producer.disconnecting")
            self._await_deliveries(me, began + self.settings.max_wait_timeout)
        except BaseException:
            with self._changing:
                if self._disconnecting is me:
                    self._stay_connected()
            raise
        clients = self._detach(me)
        if clients is None:
            return False
        try:
            self._part_with(clients)
        finally:
            self._tell("producer.disconnected", began)
        return True

    def _part_with(self, clients: Sequence[Client]) -> None:
        """Close clients that no message goes to any more."""
        with contextlib.ExitStack() as stack:
            for client in clients:
                stack.callback(self._forget, client)
                stack.callback(client.close)

    def _is_disconnectable(self) -> bool:
        return (
            self.status == "connected"
            and not self.buffer
            and not any(client.awaited for client in self.clients)
        )

    def _await_deliveries(self, me: object, deadline: float) -> None:
        for client in self.clients:
            while self._disconnecting is me and client.outstanding > 0:
                left = deadline - _waiting.monotonic()
                if left <= 0:
                    return
                client.wait_delivered(min(left, _LOOK_EVERY))

    def _detach(self, me: object) -> list[Client] | None:
        """Let go of the clients, so that the next message has a new one built.

        None if a message has called that off, or not all were delivered.
        """
        with self._changing:
            if self._disconnecting is not me:
                return None
            clients = self.clients
            _connected.discard(self)
            busy = any(client.outstanding or client.awaited for client in clients)
            if busy or self.buffer:
                _connected.add(self)
                self._stay_connected()
                return None
            self._disconnecting = None
            self.status = "disconnected"
            self._idle = IdleWatch(self.settings.idle_disconnect_timeout)
            for lane in self._lanes:
                client, lane.client = lane.client, None
                if client is not None:
                    # A thread may have got hold of it just before.
                    self._hand_on_late_messages(lane, client)
            self._parting += clients
            self.monitor.freeze_statistics(frozen=False)
        return clients

    def _stay_connected(self) -> None:
        self._disconnecting = None
        self.status = "connected"
        for lane in self._lanes:
            lane.open = lane.client

    def _disconnect_quietly(self) -> None:
        # Nobody is there to catch it.
        try:
            self.disconnect()
        except Exception as error:  # noqa: BLE001 - told
            self.monitor.emit(
                "error.occurred",
                {
                    "producer_id": self.settings.id,
                    "error": error,
                    "type": "producer.disconnect.error",
                },
            )

    def _look_whether_idle(self) -> None:
        """Disconnect if nothing was sent for long; where nobody may wait."""
        clients = self.clients
        settled = sum(client.settled for client in clients)
        busy = any(client.outstanding for client in clients)
        if self._idle.is_over(settled, busy=busy) and self._is_disconnectable():
            _waiting.start(self._disconnect_quietly)

    # --- replacing a client ------------------------------------------------------

    def _on_fatal(self, lane: Lane, client: Client, error: BrokerError) -> bool:
        # Under the client's `_gate`: no lock of ours may be taken here.
        if self.status not in ("connected", "disconnecting"):
            return False
        if not self._recovery.begins(lane, client, error):
            return False
        client.retire(lambda: None)
        client.run_aside(lambda: self._recovery.run(lane, client, error))
        return True

    def _replace(self, lane: Lane, old: Client, settings: Settings) -> bool:
        """Build the successor of a client, and let it take over; False when closing.

        Raises:
            ConfigurationInvalidError: librdkafka refused the configuration.
        """
        with self._changing:
            if self._disconnecting is not None:
                self._stay_connected()
            if lane.client is not old or self.status != "connected":
                return False
            lane.settings = settings
            new = lane.client = self._build(lane)
        self._tell("producer.connected")

        while strays := self._take_over(lane, old, new):
            new.adopt(strays)
        self._hand_on_late_messages(lane, old)
        old.stop_taking()  # who waits for room there finds it here
        self._parting.append(old)
        self._part_with([old])
        return True

    def _take_over(self, lane: Lane, old: Client, new: Client) -> list[Any]:
        """Give what the old client has kept; once that is nothing, open the new one."""

        def take_over() -> None:
            if lane.client is new and self.status == "connected":
                lane.open = new

        with self._changing:
            return old.take_strays(take_over)

    def _hand_on_late_messages(self, lane: Lane, client: Client) -> None:
        def hand_on() -> None:
            strays = client.take_strays(lambda: None)
            try:
                if strays:
                    self._connect(lane).adopt(strays)
            except GreendropError as error:
                client.fail(strays, error)

        client.retire(lambda: _waiting.start(hand_on))

    # --- ending ------------------------------------------------------------------

    def close(self, timeout: float | None, *, force: bool) -> None:
        """See `Producer.close`."""
        if self.inherited:
            # Nothing of the parent's is touched, not even told about.
            self.reset()
            self.status = "closed"
            self.buffer.shut()
            return
        clients = self.clients + self._parting
        serving = any(client.in_serving_task() for client in clients)
        if serving or (_waiting.in_hub() and (clients or self.buffer)):
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
            self._disconnecting = None
            for lane in self._lanes:
                lane.open = None
            clients = self.clients
        if not first:
            if self._closer != _waiting.current_task():  # a listener of closing
                self._wait_while(self._is_closing, timeout + _PURGE_TIMEOUT)
            return
        began = _waiting.monotonic()
        abandoned = 0
        try:
            self._tell("producer.closing")
        finally:
            # Also when a listener was interrupted: it always ends closed.
            abandoned = self._close_clients(clients, timeout, began, force=force)
        if abandoned and not force:
            text = (
                f"producer {self.settings.id!r} is closed; {abandoned} messages were"
                f" not delivered within {timeout:g} s and dropped"
            )
            raise MessagesAbandonedError(text, count=abandoned)

    def _close_clients(
        self, clients: Sequence[Client], timeout: float, began: float, *, force: bool
    ) -> int:
        deadline = _waiting.monotonic() + timeout
        abandoned = 0
        try:
            # Nobody takes over any more: what waits for that would wait for ever.
            self._recovery.stop()
            abandoned = sum(client.give_up(None) for client in clients)
            # One who gives nothing the time to be delivered keeps it readable instead.
            if self.buffer and (timeout or not force):
                self._flush_last(deadline)
        except BaseException:
            deadline = began  # cut short: whoever did that doesn't wait any longer
            raise
        finally:
            abandoned += self._end_all(deadline, began)
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
        try:
            for client in self.clients:
                abandoned += self._end(client, deadline)
        finally:
            # Also when a wait was cut short: it always ends closed.
            try:
                for client in self.clients:
                    abandoned += self._end(client, began)
                self._wait_while(self._is_parting, _PURGE_TIMEOUT)
            finally:
                self.status = "closed"
                _connected.discard(self)
                self._wake_close_waiters()
                self._tell("producer.closed", began)
        return abandoned

    def _end(self, client: Client, deadline: float) -> int:
        """Await deliveries, drop the rest, tear down. Gives how many were dropped."""
        abandoned = 0
        client.stop_taking()
        try:
            client.wait_delivered(max(deadline - _waiting.monotonic(), 0.0))
        finally:
            try:
                abandoned = max(client.outstanding, 0)
                if abandoned:
                    client.purge_for_good()
                    client.wait_delivered(_PURGE_TIMEOUT)
            finally:
                self._part_with([client])
        return abandoned

    def _forget(self, client: Client) -> None:
        for lane in self._lanes:
            if lane.client is client:
                lane.client = None
        if client in self._parting:
            self._parting.remove(client)
        self._wake_close_waiters()

    def _wake_close_waiters(self) -> None:
        for waiter in list(self._close_waiters):
            waiter.wake()

    def _wait_while(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = _waiting.monotonic() + seconds
        while condition():
            left = deadline - _waiting.monotonic()
            if left <= 0:
                return
            waiter = _waiting.new_waiter()
            self._close_waiters.append(waiter)
            try:
                if condition():
                    waiter.wait(left)
            finally:
                self._close_waiters.remove(waiter)

    def _is_closing(self) -> bool:
        return self.status == "closing"

    def _is_parting(self) -> bool:
        return bool(self._parting)

    def _close_quietly(self, timeout: float | None, *, force: bool) -> None:
        # Nobody is there to catch it: the handles and the log have to tell.
        try:
            self.close(timeout, force=force)
        except MessagesAbandonedError as error:
            _log.error("%s", error)

    def reset(self) -> None:
        """See `Producer.reset`."""
        if not self.inherited:
            return
        for lane in self._lanes:
            if lane.client is not None:
                lane.client.forget_in_child()
            lane.client = lane.open = lane.failed = None
            lane.attempts = 0
        self._disconnecting = None
        self._parting = []
        # A thread of the parent may have held them at the moment of the fork.
        self._changing = _waiting.RLock()
        self._close_waiters = deque()
        self.status = "closed" if self.status == "closing" else "configured"
        _connected.discard(self)

    def release(self) -> None:
        """Close in the background: the last `Producer` of this core is gone."""
        if self.status not in ("connected", "disconnecting") or self.inherited:
            _connected.discard(self)
            return
        # Closed first: a warning may have been made an error.
        _waiting.start_new_thread(self._close_quietly, (None,), {"force": False})
        warnings.warn(
            f"producer {self.settings.id!r} was never closed; closing it now",
            ResourceWarning,
            stacklevel=2,
        )

    # --- telling -----------------------------------------------------------------

    def _tell(self, name: str, began: float | None = None) -> None:
        facts: dict[str, object] = {"producer_id": self.settings.id}
        if began is not None:
            facts["time"] = _waiting.monotonic() - began
        self.monitor.emit(name, facts)


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
