"""Redaction: which values of librdkafka's configuration are secret, and hiding them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__: list[str] = []

#: The text that replaces a secret.
HIDDEN = "[hidden]"

# Keys of secrets. Wide on purpose: hiding a user name is a nuisance, showing a password
# is an accident.
_SECRET = re.compile(r"password|passphrase|secret|\.pem$|^sasl\.|^ssl\.key|oauth|jaas")
# Names of files and mechanisms are shown, because they help to find a mistake.
_NOT_SECRET = re.compile(r"^sasl\.mechanisms?$|\.location$")
# User and password in an address, such as a proxy's.
_USER_INFO = re.compile(r"(?<=//)[^/@\s]+(?=@)")
# Keys whose values are secret by themselves, wherever they appear. The other secrets
# are names of users and services: in a text such a word may mean something else.
_CREDENTIAL = re.compile(r"password|passphrase|secret|\.pem$|\.config$|assertion|jaas")
#: Shorter values, and the words below, appear in any text by chance.
_SHORTEST = 4
_WORDS = frozenset({"true", "false", "default", "oidc", "kafka"})
# A line of a key in PEM: a text may contain the key split into lines.
_LONG_LINE = re.compile(r"^[^\s-]{16,}$", re.MULTILINE)


def is_secret(key: str, value: str) -> bool:
    """Return whether the value of a key must not be shown."""
    named_so = _SECRET.search(key) and not _NOT_SECRET.search(key)
    return bool(named_so or _USER_INFO.search(value))


def redact_values(kafka: Mapping[str, str]) -> dict[str, str]:
    """Return a configuration with its secrets replaced by `[hidden]`."""
    return {
        key: HIDDEN if is_secret(key, value) else value for key, value in kafka.items()
    }


def redact(text: str, kafka: Mapping[str, str], secret_keys: Collection[str]) -> str:
    """Return a text with the secrets of a configuration replaced by `[hidden]`.

    Args:
        text: A text from librdkafka, a broker or the program.
        kafka: The configuration.
        secret_keys: Its keys for which `is_secret` holds.
    """
    for key in secret_keys:
        value = kafka[key]
        if len(value) < _SHORTEST or value in _WORDS or value.isdigit():
            continue
        if not _CREDENTIAL.search(key):
            whole = rf"(?<![\w.-]){re.escape(value)}(?![\w-])"
            text = re.sub(whole, HIDDEN, text)
            continue
        for part in (value, *_LONG_LINE.findall(value)):
            text = text.replace(part, HIDDEN)
    return _USER_INFO.sub(HIDDEN, text)
