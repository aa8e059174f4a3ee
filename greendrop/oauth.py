"""Tokens for SASL/OAUTHBEARER, as providers and listeners return them.

No value of a token appears in a `repr` or in the text of an error.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from greendrop._frames import concealed

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OAuthBearer", "OAuthToken"]

# Kafka accepts only some of these. This mostly catches the newline at the end of a
# file.
_VALUE = re.compile(r"[\x21-\x7e]+")
# RFC 7628, section 3.1; librdkafka refuses other values, and quotes them.
_EXTENSION_KEY = re.compile(r"(?!auth\Z)[A-Za-z]+")
_EXTENSION_VALUE = re.compile(r"[\x20-\x7e\t\r\n]*")
_NO_EXTENSIONS: Mapping[str, str] = MappingProxyType({})
#: Seconds since 1970 of the year 5138. Larger values are in milliseconds.
_LATEST = 1e11


@dataclass(frozen=True, slots=True, init=False, repr=False, eq=False)
class OAuthToken:
    """A token and its expiry.

    Attributes:
        value: The token as it is sent to the broker, without spaces or line ends.
        expires_at: Seconds since 1970, as returned by `time.time()`: the `exp` of a
            JWT, not milliseconds, and not a duration.
        principal: The name of the principal. Most brokers read it from the token
            itself.
        extensions: SASL extensions for the broker (RFC 7628); keys are letters.

    Raises:
        ValueError: One of the values is invalid.
    """

    value: str
    expires_at: float
    principal: str
    extensions: Mapping[str, str]

    @concealed
    def __init__(
        self,
        value: str,
        expires_at: float,
        principal: str = "",
        extensions: Mapping[str, str] = _NO_EXTENSIONS,
    ) -> None:
        """Check what librdkafka would refuse, with texts that show no values."""
        _check_text("value", value, _VALUE, "spaces, line ends or nothing at all")
        _check_time(expires_at)
        if not isinstance(principal, str) or "\0" in principal:
            raise ValueError("principal of a token needs to be text")
        extensions = MappingProxyType(dict(extensions))
        for key, text in extensions.items():
            _check_text("extension key", key, _EXTENSION_KEY, "more than letters")
            _check_text(f"extension {key}", text, _EXTENSION_VALUE, "control codes")
        fields = zip(
            ("value", "expires_at", "principal", "extensions"),
            (value, expires_at, principal, extensions),
            strict=True,
        )
        for name, content in fields:
            object.__setattr__(self, name, content)

    def __repr__(self) -> str:
        """Return all but the secret value."""
        return (
            f"OAuthToken(value=[hidden], expires_at={self.expires_at!r},"
            f" principal={self.principal!r}, extensions={[*self.extensions]})"
        )


def _check_text(name: str, text: object, form: re.Pattern[str], invalid: str) -> None:
    if not isinstance(text, str):
        kind = type(text).__name__
        raise ValueError(f"{name} of a token needs to be text, not {kind}")  # noqa: TRY004
    if not form.fullmatch(text):
        raise ValueError(f"{name} of a token contains {invalid}, or is not ASCII")


def _check_time(seconds: object) -> None:
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, (int, float))
        or not math.isfinite(seconds)
    ):
        kind = type(seconds).__name__
        text = f"expires_at needs to be seconds since 1970, not {kind}"
        raise ValueError(text)
    if seconds > _LATEST:
        text = (
            f"expires_at {seconds!r} looks like milliseconds since 1970;"
            f" did you mean {seconds / 1000!r}?"
        )
        raise ValueError(text)


class OAuthBearer:
    """A request for a token, in the event `oauthbearer.token_refresh`.

    A listener answers it before it returns. The first answer counts.
    """

    __slots__ = ("_failure", "_token")

    def __init__(self) -> None:
        self._token: OAuthToken | None = None
        self._failure: str | None = None

    def __repr__(self) -> str:
        return f"<OAuthBearer {'answered' if self.answered else 'not answered'}>"

    @property
    def answered(self) -> bool:
        """Whether any listener has answered."""
        return self._token is not None or self._failure is not None

    @property
    def token(self) -> OAuthToken | None:
        """The token, if that was the answer."""
        return self._token

    @property
    def failure(self) -> str | None:
        """The reason why there is no token, if that was the answer."""
        return self._failure

    def set_token(self, token: OAuthToken) -> None:
        """Answer with a token.

        Raises:
            TypeError: `token` is not an `OAuthToken`.
        """
        given: object = token  # not trusting its type
        if not isinstance(given, OAuthToken):
            text = f"set_token needs an OAuthToken, not {type(token).__name__}"
            raise TypeError(text)
        if not self.answered:
            self._token = token

    def set_failure(self, reason: str) -> None:
        """Answer that there is no token now.

        Args:
            reason: Goes into the text of the error, so it must not contain secrets.
        """
        if not self.answered:
            self._failure = str(reason)
