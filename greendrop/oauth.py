"""Tokens for SASL/OAUTHBEARER: what a program gives when it is asked for one.

Who asks, and when, is `oauth`. No value of a token is in a `repr` or in the text of
an error.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Kafka takes only a part of these. Mostly this finds the newline at the end of a file.
_VALUE = re.compile(r"[\x21-\x7e]+")
# RFC 7628, section 3.1; librdkafka refuses what is not so, and quotes it.
_EXTENSION_KEY = re.compile(r"(?!auth\Z)[A-Za-z]+")
_EXTENSION_VALUE = re.compile(r"[\x20-\x7e\t\r\n]*")
#: Seconds since 1970 of the year 5138. What is above was written in milliseconds.
_LATEST = 1e11


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class OAuthToken:
    """A token, and until when it holds.

    Attributes:
        value: As it goes to the broker, without spaces or line ends.
        expires_at: Seconds since 1970, as `time.time()` counts them. (The `exp` of a
            JWT; not its milliseconds, and not how long it holds.)
        principal: Whose it is. Brokers mostly read that in the token itself.
        extensions: SASL extensions for the broker (RFC 7628): letters to text.

    Raises:
        ValueError: One of them is not so.
    """

    value: str
    expires_at: float
    principal: str = ""
    extensions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what librdkafka would refuse, in texts that don't show it."""
        _check_text("value", self.value, _VALUE, "spaces, line ends or nothing at all")
        _check_time(self.expires_at)
        if not isinstance(self.principal, str) or "\0" in self.principal:
            raise ValueError("principal of a token needs to be text")
        extensions = MappingProxyType(dict(self.extensions))
        for key, value in extensions.items():
            _check_text("extension key", key, _EXTENSION_KEY, "more than letters")
            _check_text(f"extension {key}", value, _EXTENSION_VALUE, "control codes")
        object.__setattr__(self, "extensions", extensions)

    def __repr__(self) -> str:
        """Tell all but what is secret."""
        return (
            f"OAuthToken(value=[hidden], expires_at={self.expires_at!r},"
            f" principal={self.principal!r}, extensions={[*self.extensions]})"
        )


def _check_text(name: str, text: object, form: re.Pattern[str], not_so: str) -> None:
    if not isinstance(text, str):
        kind = type(text).__name__
        raise ValueError(f"{name} of a token needs to be text, not {kind}")  # noqa: TRY004
    if not form.fullmatch(text):
        raise ValueError(f"{name} of a token holds {not_so}, or is not ASCII")


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
    """What a listener of `oauthbearer.token_refresh` answers to, before it returns.

    The first answer holds.
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
        """Why there is none, if that was the answer."""
        return self._failure

    def set_token(self, token: OAuthToken) -> None:
        """Give the token.

        Raises:
            TypeError: It is none.
        """
        given: object = token  # whatever the caller's types say
        if not isinstance(given, OAuthToken):
            text = f"set_token needs an OAuthToken, not {type(token).__name__}"
            raise TypeError(text)
        if not self.answered:
            self._token = token

    def set_failure(self, reason: str) -> None:
        """Tell that there is none to be had now.

        Args:
            reason: For the error's text, so without secrets.
        """
        if not self.answered:
            self._failure = str(reason)
