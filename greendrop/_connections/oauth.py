"""The OAuth token of a producer: who is asked for one, when, and who waits for it.

All clients of the producer share it. Whoever gives tokens is asked on a native thread
of its own: code that blocks holds no hub there, and what gevent has patched makes a hub
for that thread. Knows nothing of librdkafka; how clients get a token is passed in.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from greendrop import _concurrency
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

#: The part of a token's time after which there should be a new one; librdkafka's rule.
_REFRESH_AT = 0.8
#: Seconds from a failed refresh to the next one, while there are clients; likewise.
_RETRY = 10.0
#: Seconds for which a failure answers all who want to send. Without that, each message
#: would have the provider asked once more.
_BRIEFLY = 1.0

_EVENT = "oauthbearer.token_refresh"


class _Failure(NamedTuple):
    """A refresh that failed: what is said of it, why, and when it was."""

    text: str
    cause: BaseException
    at: float

    def error(self) -> OAuthTokenError:
        # One for each who is told: a traceback grows when an error is raised again.
        error = OAuthTokenError(self.text)
        error.__cause__ = self.cause
        return error


class _Refresh:
    """A refresh that is under way, and who waits for it."""

    __slots__ = ("failure", "over", "thread", "waiters")

    def __init__(self) -> None:
        self.failure: _Failure | None = None
        self.over = False
        #: The one in which somebody is asked.
        self.thread = 0
        self.waiters: list[_concurrency.Waiter] = []


class TokenRefresher:
    """The token of one producer. Used from any greenlet and thread.

    Args:
        settings: For the provider and the producer's id.
        monitor: Who is asked where there is no provider.
        give: Hands a new token to all clients there are.
        now: The clock by which tokens expire.
    """

    def __init__(
        self,
        settings: Settings,
        monitor: Monitor,
        give: Callable[[OAuthToken], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._provider = settings.oauth_token_provider
        self._producer_id = settings.id
        self._monitor = monitor
        self._give = give
        self._now = now
        self._token: OAuthToken | None = None
        self._failure: _Failure | None = None
        self._refresh_at = 0.0
        # The one that is under way, by process: a child of a fork doesn't have the
        # thread that would end its parent's. No lock, since a child would find that
        # taken.
        self._refreshes: dict[int, _Refresh] = {}

    def current(self) -> OAuthToken | None:
        """Give the token, if there is one that has not expired."""
        token = self._token
        return token if token and token.expires_at > self._now() else None

    def review(self) -> None:
        """See to it that there will be a new token in time; never waits."""
        if self._is_due():
            self._begin(self._is_due)

    def wait(self, deadline: float) -> None:
        """Wait for a token; returns as well when `wake` is called.

        Args:
            deadline: By the monotonic clock.

        Raises:
            OAuthTokenError: There is none to be had, or not in time.
            ConfigurationInvalidError: Nobody is there to be asked.
            IllegalWaitError: The caller is the hub itself, where nobody can wait; or
                it is who was asked for the token.

        Blocking:
            Lets other greenlets run where the thread has a hub.
        """
        if self.current() is not None:
            return
        self._check_asked()
        failure = self._failure
        if failure is not None and self._now() - failure.at < _BRIEFLY:
            raise failure.error()
        refresh = self._begin(lambda: self.current() is None)
        if refresh is not None:
            self._wait_for(refresh, deadline)

    def wake(self) -> None:
        """Have those who wait look whether they still should."""
        for refresh in list(self._refreshes.values()):
            for waiter in list(refresh.waiters):
                waiter.wake()

    def _is_due(self) -> bool:
        return self._now() >= self._refresh_at

    def _check_asked(self) -> None:
        if self._provider is None and not self._monitor.listens(_EVENT):
            text = (
                "sasl.mechanisms is OAUTHBEARER, and nobody gives tokens: set this,"
                f" subscribe to {_EVENT!r} before the first message, or let librdkafka"
                " get them (sasl.oauthbearer.method=oidc)"
            )
            raise ConfigurationInvalidError({"oauth_token_provider": text})

    def _wait_for(self, refresh: _Refresh, deadline: float) -> None:
        woken = False
        if not refresh.over:
            waiter = self._new_waiter(refresh)
            refresh.waiters.append(waiter)
            try:
                # Asked once more: it may have ended before it knew of us.
                if not refresh.over:
                    woken = waiter.wait(deadline - _concurrency.monotonic())
            finally:
                with contextlib.suppress(ValueError):
                    refresh.waiters.remove(waiter)
        if refresh.failure is not None:
            raise refresh.failure.error()
        if not refresh.over and not woken:
            text = f"no OAuth token in time: {self._asked} has not answered yet"
            raise OAuthTokenError(text)

    def _new_waiter(self, refresh: _Refresh) -> _concurrency.Waiter:
        if refresh.thread == _concurrency.get_ident():
            text = f"{self._asked} can't wait for the token itself; nothing was sent"
            raise IllegalWaitError(text)
        try:
            return _concurrency.new_waiter()
        except IllegalWaitError as error:
            text = f"there is no OAuth token yet, and {error}; nothing was sent"
            raise IllegalWaitError(text) from error

    # --- asking ------------------------------------------------------------------

    @property
    def _asked(self) -> str:
        return "oauth_token_provider" if self._provider else f"the listener of {_EVENT}"

    def _begin(self, needed: Callable[[], bool]) -> _Refresh | None:
        """Begin a refresh if none is under way; None if none is needed any more."""
        process, mine = os.getpid(), _Refresh()
        try:
            refresh = self._refreshes.setdefault(process, mine)
            if refresh is not mine:
                return refresh
            # Asked once more: the one before may have ended since the caller looked,
            # and it does so only after its token is there.
            if needed():
                _concurrency.spawn_thread(lambda: self._refresh(process, mine))
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
            except BaseException as cause:  # noqa: BLE001 - told
                refresh.failure = self._failed(cause)
                self._tell(refresh.failure)
        finally:
            self._end(process, refresh)

    def _end(self, process: int, refresh: _Refresh) -> None:
        if self._refreshes.get(process) is refresh:
            del self._refreshes[process]
        refresh.over = True
        for waiter in list(refresh.waiters):
            waiter.wake()

    def _ask(self) -> OAuthToken:
        """Ask the provider, or the listeners. On a thread of its own."""
        if self._provider is not None:
            token: object = self._provider()
        else:
            bearer = OAuthBearer()
            facts = {"producer_id": self._producer_id, "bearer": bearer}
            self._monitor.emit(_EVENT, facts, swallow=BaseException)
            if bearer.failure is not None:
                raise OAuthTokenError(bearer.failure)
            token = bearer.token
        if not isinstance(token, OAuthToken):
            # Not what it is instead: that may be the secret itself.
            kind = (
                "nothing" if token is None else f"no OAuthToken, but a {_kind(token)}"
            )
            raise OAuthTokenError(f"{self._asked} gave {kind}")
        if token.expires_at <= self._now():
            text = f"that of {self._asked} has expired, at {token.expires_at!r}"
            raise OAuthTokenError(text)
        return token

    def _use(self, token: OAuthToken) -> None:
        now = self._now()
        self._refresh_at = now + _REFRESH_AT * (token.expires_at - now)
        self._failure = None
        self._token = token
        self._give(token)

    def _failed(self, cause: BaseException) -> _Failure:
        now = self._now()
        self._refresh_at = now + _RETRY
        self._failure = failure = _Failure(self._told(cause), cause, now)
        return failure

    def _told(self, cause: BaseException) -> str:
        # The text of what the program raised may hold anything. It is in the cause.
        if isinstance(cause, OAuthTokenError):
            return f"no OAuth token: {cause}"
        return f"no OAuth token: {self._asked} failed with {_kind(cause)}"

    def _tell(self, failure: _Failure) -> None:
        facts = {
            "producer_id": self._producer_id,
            "error": failure.error(),
            "type": _EVENT,
        }
        self._monitor.emit("error.occurred", facts, swallow=BaseException)


def _kind(value: object) -> str:
    return type(value).__name__
