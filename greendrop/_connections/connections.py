"""The clients of one producer: built at first use, let go of, replaced.

One for each topic configuration, and the state that they are in together. Whoever has
got hold of a client just before it went out of use loses nothing: what it sends is
handed on. Knows no rules of sending (`core`), disconnecting (`disconnect`) or
closing (`shutdown`).
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, Protocol

from greendrop import _concurrency, _wording, events
from greendrop._client.client import Client
from greendrop._connections.client_slots import ClientSlot, topic_settings
from greendrop._connections.no_effect import warn_no_effect
from greendrop._connections.oauth import TokenRefresher
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
    from collections.abc import Callable, Mapping, Sequence

    from greendrop.config.settings import Settings
    from greendrop.delivery import DeliveryHandle
    from greendrop.errors import BrokerError
    from greendrop.events import Monitor
    from greendrop.oauth import OAuthToken

Status = Literal[
    "initial",
    "configured",
    "connected",
    "disconnecting",
    "disconnected",
    "closing",
    "closed",
]

#: Seconds that one who sends the first message waits for an OAuth token: as long as
#: most HTTP clients wait for an answer.
_TOKEN_PATIENCE = 30.0
#: Seconds that building a client may take: it takes one or two milliseconds, and ten
#: with TLS.
_LONGEST_BUILD = 10.0
#: Topic configurations of one producer, each with a client: connections, threads and
#: memory. More are most likely made by mistake, one for each message.
_MAX_SLOTS = 16
_NO_THREADS = (
    "uWSGI keeps this process's threads from running between requests, so that nobody"
    " would serve delivery reports; start it with enable-threads, threads or gevent"
)


class ConnectionsOwner(Protocol):
    """The core of a producer, as its connections need it."""

    def on_fatal(self, slot: ClientSlot, client: Client, error: BrokerError) -> bool:
        """Replace a client after a fatal error, if that is allowed.

        Called under the client's `send_lock`.

        Returns:
            Whether the client will be replaced.
        """
        ...

    def on_interval(self) -> None:
        """Do periodic checks; called by a poller, so it must not wait."""
        ...

    def register(self) -> None:
        """Let the process close the producer at its exit."""
        ...

    def unregister(self) -> None:
        """Undo `register`, when the producer has nothing to close."""
        ...


class Connections:
    """The clients of a producer, one for each topic configuration, and their state.

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
        self._owner = owner
        self.status: Status = "configured"
        #: The way of messages that are sent by the producer itself.
        self.main = ClientSlot(settings, {})
        #: One for each topic configuration.
        self.slots = [self.main]
        #: There while a disconnect waits for deliveries, until it is called off.
        self.disconnecting: object | None = None
        #: Who sends what is buffered while all others are refused: close does.
        self.final_flush_task: object = None
        #: Nobody who sends waits any longer than until then, by the monotonic clock.
        self.send_deadline = math.inf
        #: The OAuth token that all clients log in with.
        self.tokens = TokenRefresher(settings, monitor, self._give_token)
        #: Held over each change of the above.
        self.lock = _concurrency.new_lock()
        # Held by the native threads that build clients, and by nothing else.
        self._building = _concurrency.new_lock()
        # Clients that are being closed while others take their place, or could.
        self._closing_clients: list[Client] = []
        self._being_closed: set[Client] = set()
        self._end_waiters: deque[_concurrency.Waiter] = deque()

    # --- looking -----------------------------------------------------------------

    @property
    def clients(self) -> list[Client]:
        """All clients that were built and not closed."""
        return [slot.client for slot in self.slots if slot.client is not None]

    @property
    def inherited(self) -> bool:
        """Whether the clients belong to the process that this one was forked from."""
        return any(not client.mark.same_process for client in self.clients)

    @property
    def outstanding(self) -> int:
        """Messages that were taken and have no verdict yet."""
        return sum(client.outstanding for client in self.clients)

    @property
    def pending(self) -> list[DeliveryHandle]:
        """The handles of all messages that have no outcome yet."""
        clients = (*self.clients, *self._closing_clients)
        return [handle for client in clients for handle in client.pending]

    @property
    def anything_open(self) -> bool:
        """Whether any client is not closed yet."""
        return bool(self.clients or self._closing_clients)

    @property
    def closing_or_closed(self) -> bool:
        """Whether it closes, or is closed."""
        return self.status in ("closing", "closed")

    @property
    def is_final_flush_task(self) -> bool:
        """Whether the caller sends what is buffered while all others are refused."""
        return self.final_flush_task == _concurrency.current_task()

    def can_wait(self) -> bool:
        """Tell whether waiting for the clients can end, in the caller's place."""
        return not (_concurrency.in_hub() or self.in_serving_task())

    def in_serving_task(self) -> bool:
        """Tell whether the caller is a listener that a client's serving task runs."""
        return any(
            client.poll_loop.in_listener()
            for client in (*self.clients, *self._closing_clients)
        )

    def check_not_forked(self) -> None:
        """Raise `ProducerUsedInParentProcessError` in a child of who connected."""
        if self.inherited:
            raise self.inherited_error()

    def inherited_error(self) -> ProducerUsedInParentProcessError:
        """Make the error of who uses in a child what its parent uses."""
        return ProducerUsedInParentProcessError(
            f"producer {self.settings.id!r} was used before this process was forked;"
            " call reset() here, or use it only after the fork"
        )

    def closed_error(self) -> ProducerClosedError:
        """Make the error of whoever comes too late."""
        return ProducerClosedError(f"producer {self.settings.id!r} is {self.status}")

    # --- opening -----------------------------------------------------------------

    def slot(self, topic_config: Mapping[str, str]) -> ClientSlot:
        """Give the way of messages with a topic configuration; see `Producer.variant`.

        Raises:
            VariantInvalidError: librdkafka would refuse it, or there are too many.
            ProducerClosedError: The producer is.
        """
        with self.lock:
            if self.closing_or_closed:
                raise self.closed_error()
            for slot in self.slots:
                if slot.topic_config == topic_config:
                    return slot
            if len(self.slots) > _MAX_SLOTS:
                text = (
                    f"this producer has {_MAX_SLOTS} of them already, each with a"
                    " connection; use those again, or another producer"
                )
                raise VariantInvalidError({"topic_config": text})
            slot = ClientSlot(topic_settings(self.settings, topic_config), topic_config)
            self.slots.append(slot)
        return slot

    def connect(self, slot: ClientSlot) -> Client:
        """Give the client, built if there is none. Calls off a disconnect.

        Raises:
            ProducerClosedError, ProducerUsedInParentProcessError: See there.
            ConfigurationInvalidError: librdkafka refused the configuration, or uWSGI
                runs without threads.
            OAuthTokenError: It logs in with a token, and there is none.
            IllegalWaitError: There is none yet, and the caller is the hub.

        Blocking:
            While there is no client, and no OAuth token to log in with, for half a
            minute at most. Lets other greenlets run.
        """
        client = self._connected(slot)
        if client is not None:
            return client
        deadline = _concurrency.monotonic() + _TOKEN_PATIENCE
        while client is None:
            self.tokens.wait(min(deadline, self.send_deadline))
            client = self._connected(slot)
        return client

    def _connected(self, slot: ClientSlot) -> Client | None:
        """Give the client, built if there is none; None if it must have a token first.

        That is waited for outside of the lock.
        """
        self.check_not_forked()
        with self.lock:
            if self.closing_or_closed and not self.is_final_flush_task:
                raise self.closed_error()
            if self.disconnecting is not None:
                self.cancel_disconnect()
            if self._closing_clients:
                self._close_left_over()
            # A transactional one is never open to all: see `coordinator`.
            transactional = slot.settings.transactional
            client = (
                slot.client if self.closing_or_closed or transactional else slot.active
            )
            if client is not None:
                return client
            if slot.settings.uses_oauth and self.tokens.current() is None:
                return None
            built = self._build(slot, None, slot.settings)
            # Looked up again: a signal handler may have sent, or closed, meanwhile.
            client = slot.client
            if client is None or (
                self.closing_or_closed and not self.is_final_flush_task
            ):
                raise self.closed_error()
            if not self.closing_or_closed:
                slot.active = None if transactional else client
                self.status = "connected"
        if built:
            self.emit("producer.connected")
        return client

    def cancel_disconnect(self) -> None:
        """Call off a disconnect; under `changing`."""
        self.disconnecting = None
        self.status = "connected"
        for slot in self.slots:
            slot.active = None if slot.settings.transactional else slot.client

    def _build(self, slot: ClientSlot, old: Client | None, settings: Settings) -> bool:
        """Give a slot a client in place of its old one; under `changing`.

        The client is built on a native thread, so that no signal handler can leave half
        of one behind. A handler that sends while the caller waits for that thread comes
        here as well, and its own thread finds the client that the first one has built.

        Returns:
            Whether a client was built: False if the old one is not there any more.
        """
        if _concurrency.uwsgi_without_threads():
            raise ConfigurationInvalidError({"uwsgi.enable-threads": _NO_THREADS})
        try:
            built: bool = _concurrency.run_apart(
                lambda: self._build_apart(slot, old, settings), _LONGEST_BUILD
            )
        except TimeoutError as error:
            text = (
                f"librdkafka built no client within {_wording.seconds(_LONGEST_BUILD)}"
            )
            raise NotSentError(text) from error
        return built

    def _build_apart(
        self, slot: ClientSlot, old: Client | None, settings: Settings
    ) -> bool:
        with self._building:
            if slot.client is not old:
                return False
            client = Client(settings, self.monitor, self)
            before = slot.settings, old
            self._owner.register()
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
            if self.closing_or_closed and self.final_flush_task is None:
                # The caller was interrupted, and then closed the producer. Shutdown
                # reads the clients after it has changed the status, so either it found
                # this one or this thread sees the status.
                slot.settings, slot.client = before
                client.discard()
                self._owner.unregister()
                return False
        return True

    def on_fatal(self, client: Client, error: BrokerError) -> bool:
        """Handle a fatal error of a client; see `ClientOwner`."""
        slot = next((each for each in self.slots if each.client is client), None)
        return slot is not None and self._owner.on_fatal(slot, client, error)

    def on_interval(self) -> None:
        """Do periodic checks; called by a poller, so it must not wait."""
        self._owner.on_interval()

    def register(self) -> None:
        """Let the process close the producer at its exit."""
        self._owner.register()

    def unregister(self) -> None:
        """Undo `register`, when the producer has nothing to close."""
        self._owner.unregister()

    def _give_token(self, token: OAuthToken) -> None:
        for slot in list(self.slots):
            client = slot.client
            if client is not None and slot.settings.uses_oauth:
                client.set_token(token)

    # --- letting go --------------------------------------------------------------

    def detach(self) -> list[Client]:
        """Let go of all clients, so that the next message has a new one built.

        Under `changing`. Close them then, by `close_clients`.
        """
        pairs = [(slot, slot.client) for slot in self.slots if slot.client is not None]
        clients = [client for _, client in pairs]
        for slot, _ in pairs:
            # A new one is built next, also if a signal handler has just called off the
            # disconnect.
            slot.client = slot.active = None
        self._closing_clients += clients
        for slot, client in pairs:
            # A thread may have got hold of it just before.
            self._hand_on_late_messages(slot, client)
        return clients

    def detach_client(self, client: Client) -> bool:
        """Let go of a client that must send nothing more; False if others close it.

        Close it then, by `close_clients`.
        """
        with self.lock:
            slot = next((each for each in self.slots if each.client is client), None)
            if slot is None or self.closing_or_closed:
                return False
            self.disconnecting = None
            slot.client = slot.active = None
            self._closing_clients.append(client)
            self.status = "configured"
            self.monitor.freeze_statistics(frozen=False)
        return True

    def close_clients(self, clients: Sequence[Client]) -> None:
        """Close clients that no message goes to any more.

        When interrupted, what is left is closed in the background.

        Blocking:
            As `Client.close`.
        """
        try:
            for client in clients:
                self._close(client)
        except BaseException:
            self._close_left_over()
            raise

    def _close(self, client: Client) -> None:
        try:
            self._being_closed.add(client)
            client.close()
        except Exception:
            self._forget(client)
            raise
        finally:
            self._being_closed.discard(client)
        # Not when interrupted: then it is closed once more.
        self._forget(client)

    def close_in_background(self, clients: Sequence[Client]) -> None:
        """Close clients that no message goes to any more, without waiting for it."""
        try:
            self._being_closed.update(clients)
            _concurrency.spawn(lambda: self.close_clients(clients))
        except BaseException:
            self._being_closed.difference_update(clients)
            raise

    def _close_left_over(self) -> None:
        """Have clients closed whose closing was interrupted."""
        busy = self._being_closed
        left = [each for each in self._closing_clients if each not in busy]
        if left:
            self.close_in_background(left)

    def replace(self, slot: ClientSlot, old: Client, settings: Settings) -> bool:
        """Build the successor of a client, and let it take over; False when closing.

        Raises:
            ConfigurationInvalidError: librdkafka refused the configuration.
            OAuthTokenError: It does not take the token.
        """
        with self.lock:
            if self.disconnecting is not None:
                self.cancel_disconnect()
            if slot.client is not old or self.status != "connected":
                return False
            if not self._build(slot, old, settings) or (new := slot.client) is None:
                return False
        with old.poll_loop.forbid_waits():
            self.emit("producer.connected")
        while carried_over := self._take_over(slot, old, new):
            new.resend(carried_over)
        self._hand_on_late_messages(slot, old)
        old.stop_taking()  # who waits for room there finds it here
        self._closing_clients.append(old)
        self.close_clients([old])
        return True

    def _take_over(self, slot: ClientSlot, old: Client, new: Client) -> deque[Any]:
        """Give what the old client has kept; once that is nothing, open the new one."""

        def take_over() -> None:
            if slot.client is new and self.status == "connected":
                slot.active = new

        with self.lock:
            return old.take_carried_over(take_over)

    def _hand_on_late_messages(self, slot: ClientSlot, client: Client) -> None:
        def hand_on() -> None:
            carried_over = client.take_carried_over(lambda: None)
            try:
                if carried_over:
                    self.connect(slot).resend(carried_over)
            except GreendropError as error:
                client.fail_messages(carried_over, error)

        client.stop_sending(lambda: _concurrency.spawn(hand_on), has_successor=True)

    def _forget(self, client: Client) -> None:
        for slot in self.slots:
            if slot.client is client:
                slot.client = None
        if client in self._closing_clients:
            self._closing_clients.remove(client)
        self.wake_end_waiters()

    def reset(self) -> None:
        """Forget the parent's clients, in a forked child."""
        for slot in self.slots:
            if slot.client is not None:
                slot.client.forget_in_child()
            slot.client = slot.active = slot.failed = None
            slot.attempts = 0
        self.disconnecting = None
        self._closing_clients = []
        self._being_closed = set()
        # A thread of the parent may have held them at the moment of the fork.
        self.lock = _concurrency.new_lock()
        self._end_waiters = deque()
        self.status = "closed" if self.status == "closing" else "configured"
        self._owner.unregister()

    # --- waiting for the end -----------------------------------------------------

    def wait_clients_closed(self, seconds: float) -> None:
        """Wait until no client is being closed, or the time is over.

        Blocking:
            Lets other greenlets run.
        """
        self._close_left_over()
        self._wait_while(lambda: bool(self._closing_clients), seconds)

    def wait_closed(self, seconds: float) -> None:
        """Wait until whoever closes has done so, or the time is over.

        Blocking:
            Lets other greenlets run.
        """
        self._wait_while(lambda: self.status == "closing", seconds)

    def wake_end_waiters(self) -> None:
        """Have those two look again."""
        for waiter in list(self._end_waiters):
            waiter.wake()

    def _wait_while(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = _concurrency.monotonic() + seconds
        while condition():
            left = deadline - _concurrency.monotonic()
            if left <= 0:
                return
            waiter = _concurrency.new_waiter()
            self._end_waiters.append(waiter)
            try:
                if condition():
                    waiter.wait(left)
            finally:
                self._end_waiters.remove(waiter)

    # --- telling -----------------------------------------------------------------

    def emit(self, name: str, began: float | None = None) -> None:
        """Tell an event of the producer's life."""
        facts: dict[str, object] = {"producer_id": self.settings.id}
        if began is not None:
            facts["time"] = _concurrency.monotonic() - began
        self.monitor.emit(name, facts)
        if name in events.PROCESS_EVENTS:
            events.monitor.emit(name, facts)

    def emit_error(
        self, kind: str, error: BaseException, facts: Mapping[str, object] | None = None
    ) -> None:
        """Tell that something failed, of a type of `ERROR_TYPES`."""
        own = {"producer_id": self.settings.id, "error": error, "type": kind}
        self.monitor.emit("error.occurred", {**own, **(facts or {})})
