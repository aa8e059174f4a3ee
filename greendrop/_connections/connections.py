"""The clients of one producer: built at first use, detached, replaced.

There is one client for each topic configuration, and one status for all of them. A
thread that has read a client just before the client is replaced loses nothing: what it
sends is handed on to the successor. The rules of sending are in `core`, those of
disconnecting in `disconnect`, and those of closing in `shutdown`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from greendrop import _concurrency, _wording, events
from greendrop._client.client import Client
from greendrop._connections.client_slots import ClientSlot, topic_settings
from greendrop._connections.no_effect import warn_no_effect
from greendrop._connections.oauth import TokenRefresher
from greendrop._connections.state import State
from greendrop._librdkafka.check import check_configuration
from greendrop.errors import (
    ConfigurationInvalidError,
    GreendropError,
    NotSentError,
    ProducerClosedError,
    ProducerUsedInParentProcessError,
    VariantInvalidError,
)

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterator, Mapping, Sequence

    from greendrop._librdkafka.handle import Wire
    from greendrop.config.settings import Settings
    from greendrop.delivery import DeliveryHandle
    from greendrop.errors import BrokerError
    from greendrop.events import EventName, Monitor
    from greendrop.oauth import OAuthToken

#: Seconds that the sender of the first message waits for an OAuth token: as long as
#: most HTTP clients wait for an answer.
_TOKEN_TIMEOUT = 30.0
#: Seconds that building a client may take. It usually takes one or two milliseconds,
#: and ten with TLS.
_BUILD_TIMEOUT = 10.0
#: Topic configurations of one producer. Each has a client, which costs connections,
#: threads and memory. More than this is most likely a mistake: one for each message.
_MAX_SLOTS = 16
_NO_THREADS = (
    "uWSGI keeps this process's threads from running between requests, so delivery"
    " reports would not be handled; start it with enable-threads, threads or gevent"
)


class ConnectionsOwner(Protocol):
    """The core of a producer, as its connections need it."""

    def on_fatal(self, slot: ClientSlot, client: Client, error: BrokerError) -> bool:
        """Replace a client after a fatal error, if that is allowed.

        Called under the client's `send_lock`.

        Returns:
            Whether the client will be replaced.
        """

    def on_interval(self) -> None:
        """Do periodic checks; called by a poller, so it must not wait."""

    def register(self) -> None:
        """Close the producer when the process exits; until then keep it alive."""

    def unregister(self) -> None:
        """Undo `register`, when the producer has nothing to close."""


class Connections:
    """The clients of a producer, one for each topic configuration, and their status.

    Construction opens nothing.

    Args:
        settings: The settings of the producer.
        monitor: Emits events.
        owner: The core of the producer.

    Raises:
        ConfigurationInvalidError: librdkafka would refuse the configuration.
    """

    def __init__(
        self,
        settings: Settings,
        monitor: Monitor,
        owner: ConnectionsOwner,
    ) -> None:
        problems = check_configuration(settings.kafka, settings.secret_keys)
        if problems:
            raise ConfigurationInvalidError(
                {
                    key if key == "kafka" else f"kafka.{key}": text
                    for key, text in problems.items()
                }
            )
        warn_no_effect(settings)
        self.settings = settings
        self.monitor = monitor
        #: The core of the producer.
        self.owner = owner
        #: The producer's status, with the lock for all changes.
        self.state = State()
        #: The slot of the producer's own topic configuration.
        self.main = ClientSlot(settings, {})
        #: One for each topic configuration.
        self.slots = [self.main]
        #: The OAuth token that all clients log in with.
        self.tokens = TokenRefresher(settings, monitor, self)
        # Held by the native threads that build clients, and by nothing else.
        self._build_lock = _concurrency.new_lock()
        # Detached clients that are not closed yet.
        self._closing_clients: list[Client] = []
        # Those of them whose `close` is running.
        self._being_closed: set[Client] = set()
        # The background tasks that close them. Only a task that is alive counts: a
        # signal handler may raise in a task before it has closed anything.
        self._closers: dict[Client, _concurrency.BackgroundTask] = {}
        self._end = _concurrency.WaitQueue()

    # --- inspecting --------------------------------------------------------------

    @property
    def clients(self) -> list[Client]:
        """All clients that were built and are neither detached nor closed."""
        return [slot.client for slot in self.slots if slot.client is not None]

    @property
    def inherited(self) -> bool:
        """Whether the clients belong to the process that this one was forked from."""
        return any(not client.mark.same_process for client in self.clients)

    @property
    def outstanding(self) -> int:
        """The number of messages that have no delivery report yet."""
        return sum(client.outstanding for client in self.clients)

    @property
    def pending(self) -> list[DeliveryHandle]:
        """The handles of all messages that have no outcome yet."""
        clients = (*self.clients, *self._closing_clients)
        return [handle for client in clients for handle in client.pending]

    @property
    def anything_open(self) -> bool:
        """Whether any client is not closed yet, detached ones included."""
        return bool(self.clients or self._closing_clients)

    def can_wait(self) -> bool:
        """Return whether the caller may wait for the clients.

        It may not in the hub itself and in a listener: the wait could never end.
        """
        return not (_concurrency.in_hub() or self.in_listener())

    def in_listener(self) -> bool:
        """Return whether the caller is a listener that a client's poller runs."""
        return any(
            client.poll_loop.in_listener()
            for client in (*self.clients, *self._closing_clients)
        )

    def check_not_forked(self) -> None:
        """Raise `ProducerUsedInParentProcessError` if the parent process connected."""
        if self.inherited:
            raise self.inherited_error()

    def inherited_error(self) -> ProducerUsedInParentProcessError:
        """Return the error for a use of the parent's clients in a forked child."""
        return ProducerUsedInParentProcessError(
            f"producer {self.settings.id!r} was used before this process was forked;"
            " call reset() here, or use it only after the fork"
        )

    def closed_error(self) -> ProducerClosedError:
        """Return the error for a use after `close`."""
        return ProducerClosedError(
            f"producer {self.settings.id!r} is {self.state.status}"
        )

    # --- opening -----------------------------------------------------------------

    def slot(self, topic_config: Mapping[str, str]) -> ClientSlot:
        """Return the slot of a topic configuration; see `Producer.variant`.

        Raises:
            VariantInvalidError: librdkafka would refuse the configuration, or there are
                too many of them.
            ProducerClosedError: The producer is closing or closed.
        """
        with self.state.lock:
            if self.state.closing_or_closed:
                raise self.closed_error()
            for slot in self.slots:
                if slot.topic_config == topic_config:
                    return slot
            if len(self.slots) > _MAX_SLOTS:
                text = (
                    f"this producer has {_MAX_SLOTS} topic configurations already, each"
                    " with a connection of its own; reuse one, or use another producer"
                )
                raise VariantInvalidError({"topic_config": text})
            slot = ClientSlot(topic_settings(self.settings, topic_config), topic_config)
            self.slots.append(slot)
        return slot

    def connect(self, slot: ClientSlot) -> Client:
        """Return the client of a slot; build it if there is none. Cancels a disconnect.

        Raises:
            ProducerClosedError, ProducerUsedInParentProcessError: The producer can't
                be used, or not in this process.
            ConfigurationInvalidError: librdkafka refused the configuration, or uWSGI
                runs without threads.
            OAuthTokenError: The client needs a token to log in, and there is none.
            IllegalWaitError: There is no token yet, and the caller is the hub.

        Blocking:
            While there is neither a client nor an OAuth token to log in with, for half
            a minute at most. Lets other greenlets run.
        """
        client = self._find_or_build(slot)
        if client is not None:
            return client
        deadline = _concurrency.Deadline(_TOKEN_TIMEOUT)
        while client is None:
            self.tokens.wait(deadline.earlier(self.state.send_deadline))
            client = self._find_or_build(slot)
        return client

    def _find_or_build(self, slot: ClientSlot) -> Client | None:
        """Return the client of a slot; None if it needs a token first.

        The caller waits for the token outside of the lock.
        """
        self.check_not_forked()
        with self.state.lock:
            if self.state.refuses_caller:
                raise self.closed_error()
            if self.state.disconnect is not None:
                self.cancel_disconnect()
            if self._closing_clients:
                self._close_left_over()
            # A transactional slot is never active: see `coordinator`.
            transactional = slot.settings.transactional
            client = (
                slot.client
                if self.state.closing_or_closed or transactional
                else slot.active
            )
            if client is not None:
                return client
            if slot.settings.uses_oauth and self.tokens.current() is None:
                return None
            built = self._build(slot, None, slot.settings)
            # Read again: a signal handler may have sent, or closed, meanwhile.
            client = slot.client
            if client is None or self.state.refuses_caller:
                raise self.closed_error()
            if not self.state.closing_or_closed:
                slot.active = None if transactional else client
                self.state.to("connected")
        if built:
            self.emit("producer.connected")
        return client

    def cancel_disconnect(self) -> None:
        """Cancel a disconnect. The caller holds the lock of the state."""
        self.state.to("connected")
        for slot in self.slots:
            slot.active = None if slot.settings.transactional else slot.client

    def _build(self, slot: ClientSlot, old: Client | None, settings: Settings) -> bool:
        """Build a client in place of a slot's old one. The caller holds the lock.

        The client is built on a native thread, so that a signal handler can't leave a
        half-built one behind. A handler that sends while the caller waits for that
        thread gets here as well; its own thread then finds the client that the first
        one has built.

        Returns:
            Whether a client was built: False if the slot no longer has the old one.
        """
        if _concurrency.uwsgi_without_threads():
            raise ConfigurationInvalidError({"uwsgi.enable-threads": _NO_THREADS})
        try:
            return _concurrency.run_apart(
                _BUILD_TIMEOUT, self._build_in_thread, slot, old, settings
            )
        except TimeoutError as error:
            text = (
                f"librdkafka built no client within {_wording.seconds(_BUILD_TIMEOUT)}"
            )
            raise NotSentError(text) from error

    def _build_in_thread(
        self, slot: ClientSlot, old: Client | None, settings: Settings
    ) -> bool:
        with self._build_lock:
            if slot.client is not old:
                return False
            client = Client(settings, self.monitor, self)
            before = slot.settings, old
            self.owner.register()
            # Publish the client before reading the current token. In the opposite order
            # a refresh in between would miss this client, and it would keep the old
            # token.
            slot.settings, slot.client = settings, client
            token = self.tokens.current() if settings.uses_oauth else None
            try:
                if token is not None:
                    client.set_token(token)
            except GreendropError:
                slot.settings, slot.client = before
                client.discard()
                raise
            if self.state.closing_or_closed and self.state.final_flush_task is None:
                # The caller was interrupted, and then closed the producer. Shutdown
                # reads the clients after it has changed the status, so either it found
                # this one or this thread sees the status.
                slot.settings, slot.client = before
                client.discard()
                self.owner.unregister()
                return False
        return True

    def on_fatal(self, client: Client, error: BrokerError) -> bool:
        """Handle a fatal error of a client; see `ClientOwner`."""
        slot = next((each for each in self.slots if each.client is client), None)
        return slot is not None and self.owner.on_fatal(slot, client, error)

    def on_interval(self) -> None:
        """Do periodic checks; called by a poller, so it must not wait."""
        self.owner.on_interval()

    def set_token(self, token: OAuthToken) -> None:
        """Set the OAuth token of all clients."""
        for slot in list(self.slots):
            client = slot.client
            if client is not None and slot.settings.uses_oauth:
                client.set_token(token)

    # --- detaching and replacing -------------------------------------------------

    def deactivate(self) -> None:
        """Send each message through `connect` from now on, which checks the state.

        The caller holds the lock.
        """
        for slot in self.slots:
            slot.active = None

    def detach_all(self) -> list[Client]:
        """Detach all clients, so that the next message has a new one built.

        The caller holds the lock, and closes the clients by `close_clients` afterwards.
        """
        pairs = [(slot, slot.client) for slot in self.slots if slot.client is not None]
        clients = [client for _, client in pairs]
        for slot, _ in pairs:
            # The next message has a new client built, also if a signal handler has just
            # cancelled the disconnect.
            slot.client = slot.active = None
        self._closing_clients += clients
        for slot, client in pairs:
            # Another thread may have read the client just before.
            self._hand_on_late_messages(slot, client)
        return clients

    def detach_client(self, client: Client) -> bool:
        """Detach a client that must send nothing more.

        Returns:
            Whether the caller has to close it, by `close_clients`. False if another
            task has detached it, or closes the producer.
        """
        with self.state.lock:
            slot = next((each for each in self.slots if each.client is client), None)
            if slot is None or self.state.closing_or_closed:
                return False
            slot.client = slot.active = None
            self._closing_clients.append(client)
            self.state.to("configured")
            self.monitor.freeze_statistics(frozen=False)
        return True

    def close_clients(self, clients: Sequence[Client]) -> None:
        """Close detached clients.

        If this is interrupted, the rest of them are closed in the background.

        Blocking:
            As `Client.close`.
        """
        try:
            for client in clients:
                with self.closing(client):
                    client.close()
        except BaseException:
            for client in clients:
                self._closers.pop(client, None)
            self._close_left_over()
            raise

    @contextlib.contextmanager
    def closing(self, client: Client) -> Iterator[None]:
        """Keep account of a client that is closed in this block."""
        try:
            self._being_closed.add(client)
            yield
        except Exception:
            self._forget(client)
            raise
        finally:
            self._being_closed.discard(client)
        # Not reached when interrupted: `_close_left_over` closes the client then.
        self._forget(client)

    def close_in_background(self, clients: Sequence[Client]) -> None:
        """Close detached clients in a task of its own."""
        task = _concurrency.BackgroundTask(self.close_clients, clients)
        self._closers.update(dict.fromkeys(clients, task))
        task.start()

    def _close_left_over(self) -> None:
        """Close the clients whose closing was interrupted, in the background."""
        left_over = [
            each for each in self._closing_clients if not self._has_closer(each)
        ]
        if left_over:
            self.close_in_background(left_over)

    def _has_closer(self, client: Client) -> bool:
        closer = self._closers.get(client)
        return client in self._being_closed or (closer is not None and closer.is_alive)

    def replace(self, slot: ClientSlot, old: Client, settings: Settings) -> bool:
        """Build the successor of a client, and have it take over.

        Returns:
            Whether it took over. It does not if the producer closes or disconnects.

        Raises:
            ConfigurationInvalidError: librdkafka refused the configuration.
            OAuthTokenError: librdkafka refused the token.
        """
        with self.state.lock:
            if self.state.disconnect is not None:
                self.cancel_disconnect()
            if slot.client is not old or self.state.status != "connected":
                return False
            if not self._build(slot, old, settings) or (new := slot.client) is None:
                return False
        with old.poll_loop.forbid_waits():
            self.emit("producer.connected")
        while carried_over := self._take_over(slot, old, new):
            new.resend(carried_over, old)
        self._hand_on_late_messages(slot, old)
        old.stop_taking()  # wakes the senders that wait for space in its queue
        self._closing_clients.append(old)
        self.close_clients([old])
        return True

    def _take_over(self, slot: ClientSlot, old: Client, new: Client) -> deque[Wire]:
        """Return what was sent to the old client since it stopped sending.

        Once that is nothing, the new client becomes the active one.
        """

        def take_over() -> None:
            if slot.client is new and self.state.status == "connected":
                slot.active = new

        with self.state.lock:
            return old.take_carried_over(take_over)

    def _hand_on_late_messages(self, slot: ClientSlot, client: Client) -> None:
        def hand_on() -> None:
            _concurrency.spawn(self._hand_on, slot, client)

        client.stop_sending(hand_on, has_successor=True)

    def _hand_on(self, slot: ClientSlot, client: Client) -> None:
        carried_over = client.take_carried_over()
        try:
            if carried_over:
                self.connect(slot).resend(carried_over, client)
        except GreendropError as error:
            client.fail_messages(carried_over, error)
        except BaseException:
            # A signal handler raised. The task is started again, and takes them again.
            client.keep_again(carried_over)
            raise

    def _forget(self, client: Client) -> None:
        for slot in self.slots:
            if slot.client is client:
                slot.client = None
        if client in self._closing_clients:
            self._closing_clients.remove(client)
        self._closers.pop(client, None)
        self.wake_end_waiters()

    def reset(self) -> None:
        """Forget the parent's clients in a forked child, and become usable there."""
        for slot in self.slots:
            if slot.client is not None:
                slot.client.forget_in_child()
            slot.client = slot.active = slot.last_failed = None
            slot.replacements = 0
        self._closing_clients = []
        self._being_closed = set()
        self._closers = {}
        self._end = _concurrency.WaitQueue()
        self.state.reset()
        self.owner.unregister()

    # --- waiting for the end -----------------------------------------------------

    def wait_clients_closed(self, seconds: float) -> None:
        """Wait until no client is being closed, for at most this many seconds.

        Blocking:
            Lets other greenlets run.
        """
        self._close_left_over()
        self._end.wait_until(self._are_clients_closed, _concurrency.Deadline(seconds))

    def _are_clients_closed(self) -> bool:
        return not self._closing_clients

    def wait_closed(self, seconds: float) -> None:
        """Wait until another task has closed the producer, for at most these seconds.

        Blocking:
            Lets other greenlets run.
        """
        self._end.wait_until(self._is_closed, _concurrency.Deadline(seconds))

    def _is_closed(self) -> bool:
        return self.state.status != "closing"

    def wake_end_waiters(self) -> None:
        """Wake the callers of `wait_clients_closed` and `wait_closed`."""
        self._end.notify_all()

    # --- emitting ----------------------------------------------------------------

    def emit(self, name: EventName, started: float | None = None) -> None:
        """Emit an event of the producer's life, with its duration since `started`."""
        payload: dict[str, object] = {"producer_id": self.settings.id}
        if started is not None:
            payload["time"] = _concurrency.monotonic() - started
        self.monitor.emit(name, payload)
        if name in events.PROCESS_EVENTS:
            events.monitor.emit(name, payload)

    def emit_error(
        self, kind: str, error: BaseException, extra: Mapping[str, object] | None = None
    ) -> None:
        """Emit `error.occurred` of a type of `ERROR_TYPES`, with an extra payload."""
        payload = {"producer_id": self.settings.id, "error": error, "type": kind}
        self.monitor.emit("error.occurred", {**payload, **(extra or {})})
