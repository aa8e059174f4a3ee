"""The clients of one producer: built at first use, let go of, replaced.

One for each topic configuration, and the state that they are in together. Whoever has
got hold of a client just before it went out of use loses nothing: what it sends is
handed on. Knows no rules of sending (`_core`), disconnecting (`_disconnecting`) or
closing (`_closing`).
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

from greendrop import _librdkafka, _process, _threads, _waiting, events
from greendrop._client import Client
from greendrop._lane import Lane, topic_settings
from greendrop._no_effect import warn_no_effect
from greendrop._tokens import Tokens
from greendrop.errors import (
    ConfigurationInvalidError,
    GreendropError,
    ProducerClosedError,
    ProducerUsedInParentProcessError,
    VariantInvalidError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from greendrop.config import Settings
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
_MOST_LANES = 16
_NO_THREADS = (
    "uWSGI keeps this process's threads from running between requests, so that nobody"
    " would serve delivery reports; start it with enable-threads, threads or gevent"
)


class Connections:
    """What a producer has open, and whether it may be used. Construction opens nothing.

    Args:
        settings: The producer's.
        monitor: Who is told what happens.
        on_fatal: Told of a fatal error by which librdkafka refuses a message, under the
            client's lock; see `Client`. True means that the client will be replaced.
        on_pulse: Called every so often by a serving task, in which nobody may wait.
        keep: Told that this must not be collected, and has to be closed at exit.
        let_go: Told that it need not any more.

    Raises:
        ConfigurationInvalidError: librdkafka would refuse the configuration.
    """

    def __init__(
        self,
        settings: Settings,
        monitor: Monitor,
        *,
        on_fatal: Callable[[Lane, Client, BrokerError], bool],
        on_pulse: Callable[[], None],
        keep: Callable[[], None],
        let_go: Callable[[], None],
    ) -> None:
        problems = _librdkafka.check_configuration(settings.kafka, settings.secret_keys)
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
        self.keep = keep
        self.let_go = let_go
        self._on_fatal = on_fatal
        self._on_pulse = on_pulse
        self.status: Status = "configured"
        #: The way of messages that are sent by the producer itself.
        self.main = Lane(settings, {})
        #: One for each topic configuration.
        self.lanes = [self.main]
        #: There while a disconnect waits for deliveries, until it is called off.
        self.disconnecting: object | None = None
        #: Who sends what is buffered while all others are refused: close does.
        self.last_flusher: object = None
        #: Nobody who sends waits any longer than until then, by the monotonic clock.
        self.send_until = math.inf
        #: The OAuth token that all clients log in with.
        self.tokens = Tokens(settings, monitor, self._give_token)
        #: Held over each change of the above.
        self.changing = _threads.new_lock()
        # Held by the native threads that build clients, and by nothing else.
        self._building = _threads.new_lock()
        # Clients that are being closed while others take their place, or could.
        self._parting: list[Client] = []
        self._end_waiters: deque[_waiting.Waiter] = deque()

    # --- looking -----------------------------------------------------------------

    @property
    def clients(self) -> list[Client]:
        """All clients that were built and not closed."""
        return [lane.client for lane in self.lanes if lane.client is not None]

    @property
    def inherited(self) -> bool:
        """Whether the clients belong to the process that this one was forked from."""
        return any(not client.mark[0] for client in self.clients)

    @property
    def outstanding(self) -> int:
        """Messages that were taken and have no verdict yet."""
        return sum(client.outstanding for client in self.clients)

    @property
    def anything_open(self) -> bool:
        """Whether any client is not closed yet."""
        return bool(self.clients or self._parting)

    @property
    def over(self) -> bool:
        """Whether it closes, or is closed."""
        return self.status in ("closing", "closed")

    @property
    def is_last_flusher(self) -> bool:
        """Whether the caller sends what is buffered while all others are refused."""
        return self.last_flusher == _waiting.current_task()

    def may_wait(self) -> bool:
        """Tell whether waiting for the clients can end, in the caller's place."""
        return not (_waiting.in_hub() or self.in_serving_task())

    def in_serving_task(self) -> bool:
        """Tell whether the caller is a listener that a client's serving task runs."""
        return any(
            client.attendant.in_serving_task()
            for client in (*self.clients, *self._parting)
        )

    def refuse_after_fork(self) -> None:
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

    def lane(self, topic_config: Mapping[str, str]) -> Lane:
        """Give the way of messages with a topic configuration; see `Producer.variant`.

        Raises:
            VariantInvalidError: librdkafka would refuse it, or there are too many.
            ProducerClosedError: The producer is.
        """
        with self.changing:
            if self.over:
                raise self.closed_error()
            for lane in self.lanes:
                if lane.topic_config == topic_config:
                    return lane
            if len(self.lanes) > _MOST_LANES:
                text = (
                    f"this producer has {_MOST_LANES} of them already, each with a"
                    " connection; use those again, or another producer"
                )
                raise VariantInvalidError({"topic_config": text})
            lane = Lane(topic_settings(self.settings, topic_config), topic_config)
            self.lanes.append(lane)
        return lane

    def connect(self, lane: Lane) -> Client:
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
        client = self._connected(lane)
        if client is not None:
            return client
        deadline = _waiting.monotonic() + _TOKEN_PATIENCE
        while client is None:
            self.tokens.wait(min(deadline, self.send_until))
            client = self._connected(lane)
        return client

    def _connected(self, lane: Lane) -> Client | None:
        """Give the client, built if there is none; None if it must have a token first.

        That is waited for outside of the lock.
        """
        self.refuse_after_fork()
        with self.changing:
            if self.over and not self.is_last_flusher:
                raise self.closed_error()
            if self.disconnecting is not None:
                self.stay_connected()
            # A transactional one is never open to all: see `_transactions`.
            transactional = lane.settings.transactional
            client = lane.client if self.over or transactional else lane.open
            if client is not None:
                return client
            if lane.settings.wants_tokens and self.tokens.current() is None:
                return None
            built = self._build(lane, None, lane.settings)
            # Looked up again: a signal handler may have sent, or closed, meanwhile.
            client = lane.client
            if client is None or (self.over and not self.is_last_flusher):
                raise self.closed_error()
            if not self.over:
                lane.open = None if transactional else client
                self.status = "connected"
        if built:
            self.tell("producer.connected")
        return client

    def stay_connected(self) -> None:
        """Call off a disconnect; under `changing`."""
        self.disconnecting = None
        self.status = "connected"
        for lane in self.lanes:
            lane.open = None if lane.settings.transactional else lane.client

    def _build(self, lane: Lane, old: Client | None, settings: Settings) -> bool:
        """Give a lane a client in place of its old one; under `changing`.

        The client is built on a native thread, so that no signal handler can leave half
        of one behind. A handler that sends while the caller waits for that thread comes
        here as well, and its own thread finds the client that the first one has built.

        Returns:
            Whether a client was built: False if the old one is not there any more.
        """
        if _process.threads_stand_still():
            raise ConfigurationInvalidError({"uwsgi.enable-threads": _NO_THREADS})
        try:
            built: bool = _threads.run_apart(
                lambda: self._build_apart(lane, old, settings), _LONGEST_BUILD
            )
        except TimeoutError as error:
            text = f"librdkafka built no client within {_LONGEST_BUILD:g} s"
            raise GreendropError(text) from error
        return built

    def _build_apart(self, lane: Lane, old: Client | None, settings: Settings) -> bool:
        with self._building:
            if lane.client is not old:
                return False
            client = Client(
                settings,
                self.monitor,
                on_fatal=lambda client, error: self._on_fatal(lane, client, error),
                on_pulse=self._on_pulse,
            )
            before = lane.settings, old
            self.keep()
            # Publish the client before reading the current token. In the opposite order
            # a refresh in between would miss this client, and it would keep the old
            # token.
            lane.settings, lane.client = settings, client
            token = self.tokens.current() if settings.wants_tokens else None
            try:
                if token is not None:
                    client.set_token(token)
            except GreendropError:
                lane.settings, lane.client = before
                client.discard()
                raise
            if self.over and self.last_flusher is None:
                # The caller was interrupted, and then closed the producer. Closing
                # reads the clients after it has changed the status, so either it found
                # this one or this thread sees the status.
                lane.settings, lane.client = before
                client.discard()
                self.let_go()
                return False
        return True

    def _give_token(self, token: OAuthToken) -> None:
        for lane in list(self.lanes):
            client = lane.client
            if client is not None and lane.settings.wants_tokens:
                client.set_token(token)

    # --- letting go --------------------------------------------------------------

    def detach(self) -> list[Client]:
        """Let go of all clients, so that the next message has a new one built.

        Under `changing`. Close them then, by `part_with`.
        """
        clients = self.clients
        for lane in self.lanes:
            client, lane.client = lane.client, None
            if client is not None:
                # A thread may have got hold of it just before.
                self._hand_on_late_messages(lane, client)
        self._parting += clients
        return clients

    def let_go_of(self, client: Client) -> bool:
        """Let go of a client that must send nothing more; False if others close it.

        Close it then, by `part_with`.
        """
        with self.changing:
            lane = next((each for each in self.lanes if each.client is client), None)
            if lane is None or self.over:
                return False
            self.disconnecting = None
            lane.client = lane.open = None
            self._parting.append(client)
            self.status = "configured"
            self.monitor.freeze_statistics(frozen=False)
        return True

    def part_with(self, clients: Sequence[Client]) -> None:
        """Close clients that no message goes to any more.

        Blocking:
            As `Client.close`.
        """
        with contextlib.ExitStack() as stack:
            for client in clients:
                stack.callback(self._forget, client)
                stack.callback(client.close)

    def replace(self, lane: Lane, old: Client, settings: Settings) -> bool:
        """Build the successor of a client, and let it take over; False when closing.

        Raises:
            ConfigurationInvalidError: librdkafka refused the configuration.
            OAuthTokenError: It does not take the token.
        """
        with self.changing:
            if self.disconnecting is not None:
                self.stay_connected()
            if lane.client is not old or self.status != "connected":
                return False
            if not self._build(lane, old, settings) or (new := lane.client) is None:
                return False
        with old.attendant.none_waits():
            self.tell("producer.connected")
        while strays := self._take_over(lane, old, new):
            new.adopt(strays)
        self._hand_on_late_messages(lane, old)
        old.stop_taking()  # who waits for room there finds it here
        self._parting.append(old)
        self.part_with([old])
        return True

    def _take_over(self, lane: Lane, old: Client, new: Client) -> list[Any]:
        """Give what the old client has kept; once that is nothing, open the new one."""

        def take_over() -> None:
            if lane.client is new and self.status == "connected":
                lane.open = new

        with self.changing:
            return old.take_strays(take_over)

    def _hand_on_late_messages(self, lane: Lane, client: Client) -> None:
        def hand_on() -> None:
            strays = client.take_strays(lambda: None)
            try:
                if strays:
                    self.connect(lane).adopt(strays)
            except GreendropError as error:
                client.fail(strays, error)

        client.retire(lambda: _waiting.start(hand_on), followed=True)

    def _forget(self, client: Client) -> None:
        for lane in self.lanes:
            if lane.client is client:
                lane.client = None
        if client in self._parting:
            self._parting.remove(client)
        self.wake_end_waiters()

    def reset(self) -> None:
        """Forget the parent's clients, in a forked child."""
        for lane in self.lanes:
            if lane.client is not None:
                lane.client.forget_in_child()
            lane.client = lane.open = lane.failed = None
            lane.attempts = 0
        self.disconnecting = None
        self._parting = []
        # A thread of the parent may have held them at the moment of the fork.
        self.changing = _threads.new_lock()
        self._end_waiters = deque()
        self.status = "closed" if self.status == "closing" else "configured"
        self.let_go()

    # --- waiting for the end -----------------------------------------------------

    def wait_parted(self, seconds: float) -> None:
        """Wait until no client is being closed, or the time is over.

        Blocking:
            Lets other greenlets run.
        """
        self._wait_while(lambda: bool(self._parting), seconds)

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
        deadline = _waiting.monotonic() + seconds
        while condition():
            left = deadline - _waiting.monotonic()
            if left <= 0:
                return
            waiter = _waiting.new_waiter()
            self._end_waiters.append(waiter)
            try:
                if condition():
                    waiter.wait(left)
            finally:
                self._end_waiters.remove(waiter)

    # --- telling -----------------------------------------------------------------

    def tell(self, name: str, began: float | None = None) -> None:
        """Tell an event of the producer's life."""
        facts: dict[str, object] = {"producer_id": self.settings.id}
        if began is not None:
            facts["time"] = _waiting.monotonic() - began
        self.monitor.emit(name, facts)
        if name in events.PROCESS_EVENTS:
            events.monitor.emit(name, facts)

    def tell_error(
        self, kind: str, error: BaseException, facts: Mapping[str, object] | None = None
    ) -> None:
        """Tell that something failed, of a type of `ERROR_TYPES`."""
        own = {"producer_id": self.settings.id, "error": error, "type": kind}
        self.monitor.emit("error.occurred", {**own, **(facts or {})})
