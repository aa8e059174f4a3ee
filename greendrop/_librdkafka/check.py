"""The check of a configuration by librdkafka, before any client connects.

librdkafka knows which keys and values it accepts, and greendrop adds the mistakes that
librdkafka accepts silently: misread numbers and a missing Kerberos. Where librdkafka is
out of reach nothing is found, and creating the client reports the mistake.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from greendrop._librdkafka import bindings

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from greendrop._librdkafka.bindings import Library

# Not part of the trial, which must not connect, start brokers or write to the log.
_NOT_TRIED = {
    "bootstrap.servers",
    "metadata.broker.list",
    "test.mock.num.brokers",
    "debug",
    "log_level",
    "log.queue",
    "statistics.interval.ms",
}
# Mechanisms that a trial can't use: GSSAPI runs kinit, OAUTHBEARER asks for a token.
_MECHANISMS_NOT_TRIED = {"GSSAPI", "OAUTHBEARER"}
_WITHOUT_SASL = {"SASL_SSL": "ssl", "SASL_PLAINTEXT": "plaintext"}
_NAME = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*")
# A row of librdkafka's table of properties: the name; C for consumers, P for producers
# or * for both; and the type at the end of the description, if it is not the version.
_ROW = re.compile(
    rf"^({_NAME.pattern})\s*\|\s*([CP*])\s*\|(?:.*\*Type: ([^*\n]*)\*)?", re.MULTILINE
)
# librdkafka reads as much of a number as it understands: "1e+06" as 1, "100k" as 100,
# "010" as 8. Names of values, such as `all` for acks, don't begin like a number.
_LIKE_A_NUMBER = re.compile(r"\s*[-+.]?\d")
_PLAIN_NUMBER = {
    "integer": (re.compile(r"-?(?:0|[1-9]\d*)", re.ASCII), "a whole number"),
    "float": (re.compile(r"-?\d+(?:\.\d*)?(?:e[-+]?\d+)?", re.ASCII), "a number"),
}
_SHORT_SECRET = 4


class Property(NamedTuple):
    """A row of librdkafka's table of properties."""

    #: "C" for consumers, "P" for producers, "*" for both; empty for an unknown key.
    scope: str = ""
    #: Such as "integer"; empty where the table has none.
    type: str = ""


def check_configuration(
    kafka: Mapping[str, str], secrets: Collection[str]
) -> dict[str, str]:
    """Ask librdkafka whether it accepts a configuration.

    Opens no connection. First each key is checked by itself. If all of them are good,
    a client is created and destroyed, because only that checks keys against each other.

    Args:
        kafka: Keys and values as librdkafka takes them.
        secrets: Keys whose values must not appear in a text.

    Returns:
        The mistakes by key, with "kafka" as the key of those that belong to no single
        key. Empty if librdkafka is out of reach.

    Blocking:
        Blocks the thread and its hub for one to three milliseconds, with TLS for about
        ten.
    """
    library = bindings.load_library()
    # Plugins may add keys, and loading a plugin runs its code.
    if library is None or "plugin.library.paths" in kafka:
        return {}
    errors = _check_keys(library, kafka) or _check_together(library, _trial(kafka))
    # librdkafka's texts quote some values and omit others that would help. The value of
    # an unknown key is not added: the key may be the misspelt name of a secret.
    hidden = [kafka[key] for key in secrets if kafka.get(key)]
    shown = _producer_properties().difference(secrets) & kafka.keys()
    return {
        key: _without(text, hidden)
        + (f" ({key} is {kafka[key]!r:.200})" if key in shown else "")
        for key, text in errors.items()
    }


def find_consumer_properties(kafka: Mapping[str, str]) -> tuple[str, ...]:
    """Return the keys that librdkafka accepts and only consumers read."""
    return tuple(key for key in kafka if _property(key).scope == "C")


def _check_keys(library: Library, kafka: Mapping[str, str]) -> dict[str, str]:
    """Check each key by itself, and return the mistakes by key."""
    errors: dict[str, str] = {}
    conf = library.short.rd_kafka_conf_new()
    for key, value in kafka.items():
        mistake = _refusal(library, conf, key, value)
        if mistake is None:
            mistake = _misread_number(library, conf, key, value)
        if mistake is not None:
            errors[key] = mistake
    if _lacks_kerberos(library, conf, kafka):
        errors["sasl.mechanisms"] = (
            "this build of librdkafka has no GSSAPI (Kerberos): the wheels of"
            " confluent-kafka come without it; use another mechanism, or build"
            " confluent-kafka from source with libsasl2"
        )
    library.short.rd_kafka_conf_destroy(conf)
    return errors


def _refusal(library: Library, conf: int, key: str, value: str) -> str | None:
    """Set one property, and return why librdkafka refuses it, or None."""
    code, text = bindings.set_property(library, conf, key, value)
    if code != bindings.UNKNOWN_PROPERTY:
        return text if code else None
    spelling = re.sub("[_ -]", ".", key.strip().lower())
    near = get_close_matches(spelling, _producer_properties(), 1, 0.75)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"librdkafka has no such property{hint}"


def _misread_number(library: Library, conf: int, key: str, value: str) -> str | None:
    """Describe a number that librdkafka has read as a different one; else None."""
    plain, needed = _PLAIN_NUMBER.get(_property(key).type, (None, ""))
    if plain is None:
        return None
    if needed == "a number" and value.strip().lower() == "nan":
        return f"needs {needed}"
    if not _LIKE_A_NUMBER.match(value):
        return None
    actual = bindings.get_property(library, conf, key)
    if plain.fullmatch(value) and (needed == "a number" or int(value) == int(actual)):
        return None
    return f"needs {needed}; librdkafka would read it as {actual}"


def _lacks_kerberos(library: Library, conf: int, kafka: Mapping[str, str]) -> bool:
    """Return whether a configuration needs Kerberos and librdkafka has none."""
    protocol = kafka.get("security.protocol", "plaintext").upper()
    if _mechanism(kafka) != "GSSAPI" or protocol not in _WITHOUT_SASL:
        return False
    code, _ = bindings.set_property(library, conf, "builtin.features", "sasl_gssapi")
    return bool(code)


def _mechanism(kafka: Mapping[str, str]) -> str:
    """Return the SASL mechanism in upper case; librdkafka's default is GSSAPI."""
    return kafka.get("sasl.mechanisms", kafka.get("sasl.mechanism", "GSSAPI")).upper()


def _trial(kafka: Mapping[str, str]) -> dict[str, str]:
    """Return a configuration without the keys that would have effects in a trial."""
    trial = {key: value for key, value in kafka.items() if key not in _NOT_TRIED}
    trial["log_level"] = "0"
    if kafka.get("test.mock.num.brokers", "0") != "0":
        # librdkafka ignores the protocol when it starts a mock cluster.
        trial.pop("security.protocol", None)
    if _mechanism(trial) in _MECHANISMS_NOT_TRIED:
        trial = {k: v for k, v in trial.items() if not k.startswith("sasl.")}
        protocol = trial.pop("security.protocol", "plaintext")
        trial["security.protocol"] = _WITHOUT_SASL.get(protocol.upper(), protocol)
    return trial


def _check_together(library: Library, trial: Mapping[str, str]) -> dict[str, str]:
    """Create and destroy a client, and return librdkafka's objection by key."""
    conf = library.short.rd_kafka_conf_new()
    for key, value in trial.items():
        bindings.set_property(library, conf, key, value)
    text = bindings.try_client(library, conf)
    if text is None:
        return {}
    text = text.replace("SASL mechanism", "sasl.mechanisms")
    known = _producer_properties()
    named = (name for name in _NAME.findall(text) if name in known)
    return {next(named, "kafka"): text}


def _property(key: str) -> Property:
    return properties().get(key, Property())


@cache
def properties() -> Mapping[str, Property]:
    """Return all properties of librdkafka by name; none if it is out of reach."""
    rows = _ROW.findall(bindings.properties_table())
    # The table lists a few keys twice, for clients and for topics. The producer's row
    # comes last and is kept.
    rows.sort(key=lambda row: row[1] == "C", reverse=True)
    return {name: Property(scope, kind) for name, scope, kind in rows}


@cache
def _producer_properties() -> frozenset[str]:
    """Return the names of all properties that producers have."""
    return frozenset(name for name, row in properties().items() if row.scope != "C")


def _without(text: str, hidden: Sequence[str]) -> str:
    """Return a text with secret values replaced by `[hidden]`."""
    for value in hidden:
        # A short secret is hidden only where it stands alone. Inside other words it
        # reveals nothing, and hiding a password "a" there would make the text
        # unreadable.
        short = len(value) < _SHORT_SECRET
        pattern = rf"(?<!\w){re.escape(value)}(?!\w)" if short else re.escape(value)
        text = re.sub(pattern, "[hidden]", text)
    return text
