"""The OAuth token of a producer: refreshing it, and waiting for it.

All clients of the producer share the token. The provider, or a listener, is called on a
native thread of its own. Blocking code there holds up no hub, and functions that gevent
has patched make a hub for that thread. Knows nothing of librdkafka.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from greendrop import _concurrency
from greendrop._frames import concealed
from greendrop.errors import (
    ConfigurationInvalidError,
    IllegalWaitError,
    OAuthTokenError,
)
from greendrop.oauth import OAuthBearer, OAuthToken

if TYPE_CHECKING:
    from collections.abc import Callable

    from greendrop.config.settings import Settings
    from greendrop.events import Monitor

#: Share of a token's lifetime after which it is refreshed; librdkafka's rule.
_REFRESH_AT = 0.8
#: Seconds from a failed refresh to the next one, while there are clients; librdkafka's
#: rule.
_RETRY = 10.0
#: Seconds for which senders get the error of a failed refresh. Without that limit each
#: message would call the provider once more.
_BRIEFLY = 1.0

_EVENT: Literal["oauthbearer.token_refresh"] = "oauthbearer.token_refresh"


class _Failure(NamedTuple):
    """A refresh that failed: the text and cause of its error, and its time."""

    text: str
    cause: BaseException
    at: float

    def error(self) -> OAuthTokenError:
        # A new error for each caller: an error's traceback grows when it is raised
        # again.
        error = OAuthTokenError(self.text)
        error.__cause__ = self.cause
        return error


class _Refresh:
    """A refresh that is under way, and the tasks that wait for it."""

    __slots__ = ("failure", "is_over", "thread", "waiting")

    def __init__(self) -> None:
        self.failure: _Failure | None = None
        self.is_over = False
        #: Identifier of the thread that calls the provider, or the listener.
        self.thread = 0
        self.waiting = _concurrency.WaitQueue()


class TokenOwner(Protocol):
    """The connections of a producer, as the token refresher needs them."""

    def set_token(self, token: OAuthToken) -> None:
        """Set the token of all clients."""


class TokenRefresher:
    """The token of one producer. Used from any greenlet and thread.

    Args:
        settings: Settings of the producer, with the provider.
        monitor: Its listeners are asked for a token if there is no provider.
        owner: Sets a new token for all clients.
        now: The clock by which tokens expire.
    """

    def __init__(
        self,
        settings: Settings,
        monitor: Monitor,
        owner: TokenOwner,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._provider = settings.oauth_token_provider
        self._producer_id = settings.id
        self._monitor = monitor
        self._owner = owner
        self._now = now
        self._token: OAuthToken | None = None
        self._failure: _Failure | None = None
        self._refresh_at = 0.0
        # The refresh under way, by process: a forked child doesn't have the thread that
        # would end the refresh of its parent. There is no lock, since it might be held
        # at the fork.
        self._refreshes: dict[int, _Refresh] = {}
        # Number of calls of `wake`.
        self._wake_ups = 0

    def current(self) -> OAuthToken | None:
        """Return the token, or None if there is none or it has expired."""
        token = self._token
        return token if token and token.expires_at > self._now() else None

    def review(self) -> None:
        """Start a refresh if one is due; never waits."""
        if self._is_due():
            self._begin(self._is_due)

    def wait(self, deadline: _concurrency.Deadline) -> None:
        """Wait for a token; return early when `wake` is called.

        Raises:
            OAuthTokenError: The refresh failed, or did not end in time.
            ConfigurationInvalidError: There is neither a provider nor a listener.
            IllegalWaitError: The caller is the hub itself, or the provider or listener
                that was asked for the token.

        Blocking:
            Lets other greenlets run where the thread has a hub.
        """
        if self.current() is not None:
            return
        self._check_source()
        failure = self._failure
        if failure is not None and self._now() - failure.at < _BRIEFLY:
            raise failure.error()
        refresh = self._begin(self._is_missing)
        if refresh is not None:
            self._wait_for(refresh, deadline)

    def wake(self) -> None:
        """End all calls of `wait`."""
        self._wake_ups += 1
        for refresh in list(self._refreshes.values()):
            refresh.waiting.notify_all()

    def _is_missing(self) -> bool:
        return self.current() is None

    def _is_due(self) -> bool:
        return self._now() >= self._refresh_at

    def _check_source(self) -> None:
        if self._provider is None and not self._monitor.listens(_EVENT):
            text = (
                "sasl.mechanisms is OAUTHBEARER, but nothing provides tokens: set this,"
                f" subscribe to {_EVENT!r} before the first message, or let librdkafka"
                " get them (sasl.oauthbearer.method=oidc)"
            )
            raise ConfigurationInvalidError({"oauth_token_provider": text})

    def _wait_for(self, refresh: _Refresh, deadline: _concurrency.Deadline) -> None:
        wake_ups = self._wake_ups

        def is_over() -> bool:
            return refresh.is_over or self._wake_ups != wake_ups

        def new_waiter() -> _concurrency.Waiter:
            return self._new_waiter(refresh)

        in_time = refresh.waiting.wait_until(is_over, deadline, new_waiter)
        if refresh.failure is not None:
            raise refresh.failure.error()
        if not in_time:
            text = f"no OAuth token in time: {self._source} has not answered yet"
            raise OAuthTokenError(text)

    def _new_waiter(self, refresh: _Refresh) -> _concurrency.Waiter:
        if refresh.thread == _concurrency.get_ident():
            text = f"{self._source} can't wait for the token itself; nothing was sent"
            raise IllegalWaitError(text)
        try:
            return _concurrency.new_waiter()
        except IllegalWaitError as error:
            text = f"there is no OAuth token yet, and {error}; nothing was sent"
            raise IllegalWaitError(text) from error

    # --- asking ------------------------------------------------------------------

    @property
    def _source(self) -> str:
        return "oauth_token_provider" if self._provider else f"the listener of {_EVENT}"

    def _begin(self, needed: Callable[[], bool]) -> _Refresh | None:
        """Return the refresh under way, started if there is none.

        Args:
            needed: Checked before a refresh is started; without a need, None is
                returned.
        """
        process, mine = os.getpid(), _Refresh()
        try:
            refresh = self._refreshes.setdefault(process, mine)
            if refresh is not mine:
                return refresh
            # Check here: another refresh may have ended since the caller has checked. A
            # refresh ends only after it has stored its token.
            if needed():
                _concurrency.spawn_thread(self._refresh, process, mine)
                return mine
            self._end(process, mine)
        except RuntimeError as error:  # the system has no more threads
            mine.failure = self._failed(error)
            self._end(process, mine)
            return mine
        except BaseException:
            self._end(process, mine)
            raise
        return None

    def _refresh(self, process: int, refresh: _Refresh) -> None:
        refresh.thread = _concurrency.get_ident()
        try:
            try:
                self._use(self._ask())
            except BaseException as cause:  # noqa: BLE001 - emitted
                refresh.failure = self._failed(cause)
                self._emit(refresh.failure)
        finally:
            self._end(process, refresh)

    def _end(self, process: int, refresh: _Refresh) -> None:
        if self._refreshes.get(process) is refresh:
            del self._refreshes[process]
        refresh.is_over = True
        refresh.waiting.notify_all()

    @concealed
    def _ask(self) -> OAuthToken:
        """Call the provider, or the listeners; on a thread of its own."""
        if self._provider is not None:
            token: object = self._provider()
        else:
            bearer = OAuthBearer()
            payload = {"producer_id": self._producer_id, "bearer": bearer}
            self._monitor.emit(_EVENT, payload, swallow=BaseException)
            if bearer.failure is not None:
                raise OAuthTokenError(bearer.failure)
            token = bearer.token
        if not isinstance(token, OAuthToken):
            # The error names the type only: the value may be the secret itself.
            kind = (
                "nothing" if token is None else f"no OAuthToken, but a {_kind(token)}"
            )
            raise OAuthTokenError(f"{self._source} gave {kind}")
        if token.expires_at <= self._now():
            text = f"that of {self._source} has expired, at {token.expires_at!r}"
            raise OAuthTokenError(text)
        return token

    def _use(self, token: OAuthToken) -> None:
        now = self._now()
        self._refresh_at = now + _REFRESH_AT * (token.expires_at - now)
        self._failure = None
        self._token = token
        self._owner.set_token(token)

    def _failed(self, cause: BaseException) -> _Failure:
        now = self._now()
        self._refresh_at = now + _RETRY
        self._failure = failure = _Failure(self._text_of(cause), cause, now)
        return failure

    def _text_of(self, cause: BaseException) -> str:
        # The text of an exception of the program may contain secrets. The exception is
        # the cause of the error.
        if isinstance(cause, OAuthTokenError):
            return f"no OAuth token: {cause}"
        return f"no OAuth token: {self._source} failed with {_kind(cause)}"

    def _emit(self, failure: _Failure) -> None:
        payload = {
            "producer_id": self._producer_id,
            "error": failure.error(),
            "type": _EVENT,
        }
        self._monitor.emit("error.occurred", payload, swallow=BaseException)


def _kind(value: object) -> str:
    return type(value).__name__
