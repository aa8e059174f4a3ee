"""Which values of librdkafka's configuration are secret, and how to hide them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

#: What stands for a secret where it is hidden.
HIDDEN = "[hidden]"

# Wide on purpose: a hidden user name is a nuisance, a shown password is an accident.
# What only names a file or a mechanism is shown, as one needs it to find a mistake.
_SECRET = re.compile(r"password|passphrase|secret|\.pem$|^sasl\.|^ssl\.key|oauth|jaas")
_NOT_SECRET = re.compile(r"^sasl\.mechanisms?$|\.location$")
# In addresses, such as a proxy's.
_USER_INFO = re.compile(r"(?<=//)[^/@\s]+(?=@)")
# Of these, what is secret by itself, wherever it turns up. The others name users and
# services: such words may stand in a text for something else.
_CREDENTIAL = re.compile(r"password|passphrase|secret|\.pem$|\.config$|assertion|jaas")
#: A shorter value, or one of these, is in any text by chance.
_SHORTEST = 4
_WORDS = frozenset({"true", "false", "default", "oidc", "kafka"})
# Of a key in PEM that is cut into its lines.
_LONG_LINE = re.compile(r"^[^\s-]{16,}$", re.MULTILINE)


def is_secret(key: str, value: str) -> bool:
    """Tell whether a key's value must not be shown."""
    named_so = _SECRET.search(key) and not _NOT_SECRET.search(key)
    return bool(named_so or _USER_INFO.search(value))


def redacted(kafka: Mapping[str, str]) -> dict[str, str]:
    """Give a configuration with its secrets replaced by `[hidden]`."""
    return {
        key: HIDDEN if is_secret(key, value) else value for key, value in kafka.items()
    }


def censored(text: str, kafka: Mapping[str, str], secret_keys: Collection[str]) -> str:
    """Give a text that somebody else wrote, with a configuration's secrets cut out."""
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
