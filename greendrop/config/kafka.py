"""librdkafka's part of a configuration: the mapping `kafka`.

`read_kafka` turns the user's mapping into librdkafka's keys and texts; `with_defaults`
adds greendrop's defaults. Of librdkafka's keys this module knows only those that get a
default or that greendrop depends on. `_librdkafka.check` asks librdkafka itself about
all others.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches

from greendrop.config import broker_addresses, kafka_checks
from greendrop.config.rules import InvalidValueError

__all__: list[str] = []

#: librdkafka's two names for the addresses of the brokers.
BOOTSTRAP = ("bootstrap.servers", "metadata.broker.list")
SIZE_KEY = "message.max.bytes"
_MOCK = "test.mock.num.brokers"
_LINGER = ("linger.ms", "queue.buffering.max.ms")
_DELIVERY_TIMEOUT = ("message.timeout.ms", "delivery.timeout.ms")
_ONLY_ERRORS = "delivery.report.only.error"

#: librdkafka's own default of `queue.buffering.max.messages`.
_QUEUE_MESSAGES = 100_000
#: librdkafka's own default of `queue.buffering.max.kbytes`.
_QUEUE_KBYTES = 1_048_576
#: librdkafka's own default of `message.max.bytes`.
_MESSAGE_BYTES = 1_000_000
#: Milliseconds. Below `max_wait_timeout`, so that librdkafka's report comes first.
_MESSAGE_TIMEOUT = 150_000
#: Milliseconds. librdkafka needs it to be at least `message.timeout.ms`.
_TRANSACTION_TIMEOUT = 165_000

_SUBSCRIBE = "this callback belongs to greendrop; use producer.monitor.subscribe({})"
_FOR_ERRORS = _SUBSCRIBE.format("'error.occurred', ...")
_FOR_STATISTICS = _SUBSCRIBE.format("'statistics.emitted', ...")
_FOR_TOKENS = (
    _SUBSCRIBE.format("'oauthbearer.token_refresh', ...")
    + ", or the setting oauth_token_provider"
)
_FOR_REPORTS = (
    _SUBSCRIBE.format("'message.acknowledged', ...")
    + ", or the handle that produce_async returns"
)
_FOR_PARTITIONS = (
    "set partitioner to the name of one of librdkafka's partitioners, or give each"
    " message its partition"
)
_FOR_TOPIC_KEYS = "put its keys straight into kafka={...}"
# Keys of confluent-kafka and librdkafka that take an object, and what to use instead.
# greendrop owns the callbacks: user code in one of them could abort the process.
_REFUSED_KEYS = {
    "error_cb": _FOR_ERRORS,
    "logger": _FOR_ERRORS,
    "log_cb": _FOR_ERRORS,
    "stats_cb": _FOR_STATISTICS,
    "throttle_cb": _FOR_STATISTICS,
    "oauth_cb": _FOR_TOKENS,
    "oauthbearer_token_refresh_cb": _FOR_TOKENS,
    "on_delivery": _FOR_REPORTS,
    "dr_cb": _FOR_REPORTS,
    "dr_msg_cb": _FOR_REPORTS,
    "partitioner_cb": _FOR_PARTITIONS,
    "partitioner_callback": _FOR_PARTITIONS,
    "default.topic.config": _FOR_TOPIC_KEYS,
    "default_topic_conf": _FOR_TOPIC_KEYS,
}

_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,10}")


# -- reading the user's mapping -----------------------------------------------------


def read_kafka(kafka: object, errors: dict[str, str]) -> dict[str, str]:
    """Check a whole configuration, and return keys and values as librdkafka takes them.

    Args:
        kafka: The user's mapping, or another object by mistake.
        errors: Receives each mistake, as `kafka` or `kafka.KEY`.
    """
    if kafka is None:
        errors["kafka"] = "this key is required"
        return {}
    if isinstance(kafka, Mapping) and not kafka:
        errors["kafka"] = "must not be empty; it needs at least bootstrap.servers"
        return {}
    values = normalize_kafka(kafka, errors, name="kafka")
    if "kafka" not in errors:
        _check_brokers(values, errors)
    for key, text in kafka_checks.find_errors(values).items():
        errors.setdefault(f"kafka.{key}", text)
    return values


def normalize_kafka(
    given: object, errors: dict[str, str], *, name: str
) -> dict[str, str]:
    """Return keys and values as librdkafka takes them, for all or some of the keys.

    Args:
        given: The user's mapping, or another object by mistake.
        errors: Receives each mistake, as `NAME` or `NAME.KEY`.
        name: The user's name for the mapping.
    """
    if not isinstance(given, Mapping):
        errors[name] = f"needs a mapping, not {type(given).__name__}"
        return {}
    values: dict[str, str] = {}
    for key, value in given.items():
        try:
            text = _normalize_key(key)
            values[text] = _normalize_value(text, value)
        except InvalidValueError as error:
            errors[f"{name}.{key!s}"] = str(error)
    return values


def _normalize_key(key: object) -> str:
    if not isinstance(key, str):
        raise InvalidValueError(f"keys are text, not {type(key).__name__}")
    if key in _REFUSED_KEYS or key.endswith(("_cb", "_callback")):
        raise InvalidValueError(_REFUSED_KEYS.get(key, _SUBSCRIBE.format("...")))
    if not _fits_c_string(key):
        raise InvalidValueError("contains a NUL character or a lone surrogate")
    return str.__str__(key)


def _normalize_value(key: str, value: object) -> str:
    if value is None:
        raise InvalidValueError("None is not a value; omit the key to get its default")
    if key in BOOTSTRAP:
        value = _address_list(value)
    if not isinstance(value, (str, int, float)):
        raise InvalidValueError(
            f"needs text, a number or a boolean, not {type(value).__name__}"
        )
    text = _as_text(value)
    if not _fits_c_string(text):
        raise InvalidValueError("contains a NUL character or a lone surrogate")
    if key.endswith(".ms") and key not in _LINGER and not _WHOLE_NUMBER.fullmatch(text):
        # librdkafka would read the digits before the first letter, or 0.
        raise InvalidValueError(f"needs whole milliseconds, not {value!r}")
    if key in BOOTSTRAP and "@" in text:
        # librdkafka supports no user there, and would show the password in its texts.
        raise InvalidValueError("an address has no user or password; see sasl.username")
    if key == _ONLY_ERRORS and is_true(text):
        raise InvalidValueError(
            "must not be true: handles of delivered messages would never resolve"
        )
    return text


def _address_list(value: object) -> str:
    """Return addresses as librdkafka reads them: joined by commas, without blanks."""
    if isinstance(value, str):
        addresses = broker_addresses.split_addresses(str.__str__(value))
        return ",".join(addresses)
    if not isinstance(value, (list, tuple)):
        raise InvalidValueError(
            f"needs HOST:PORT,HOST:PORT or a list of HOST:PORT, not"
            f" {type(value).__name__}"
        )
    for address in value:
        if not isinstance(address, str):
            raise InvalidValueError(
                f"needs a list of text, and {address!r:.40} is of type"
                f" {type(address).__name__}"
            )
    return ",".join(address.strip() for address in value)


def _as_text(value: str | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidValueError(f"{value!r} is not finite")
        # librdkafka accepts "5.0" only where it expects a fraction.
        return str(int(value)) if value.is_integer() else repr(float(value))
    # Not str(value): the str() of a member of an enumeration is its name.
    return str.__str__(value) if isinstance(value, str) else str(int(value))


def _fits_c_string(text: str) -> bool:
    """Return whether librdkafka gets all of a text, as a C string in UTF-8."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _check_brokers(values: Mapping[str, str], errors: dict[str, str]) -> None:
    """Add an error for each bad address, and for a configuration without brokers."""
    if any(f"kafka.{key}" in errors for key in (*BOOTSTRAP, _MOCK)):
        return  # one error about the brokers is enough
    protocol = kafka_checks.protocol_of(values)
    for key in BOOTSTRAP:
        if addresses := values.get(key):
            mistake = broker_addresses.find_mistake(addresses.split(","), protocol)
            if mistake is not None:
                errors[f"kafka.{key}"] = mistake
    if any(values.get(key) for key in BOOTSTRAP) or _has_mock_brokers(values):
        return
    given = next((key for key in BOOTSTRAP if key in values), None)
    text = "must not be empty" if given else "this key is required"
    if not given and (misspelt := _misspelt_bootstrap(values)):
        text += f"; {misspelt!r} is not librdkafka's name for it"
    errors[f"kafka.{given or BOOTSTRAP[0]}"] = text


def _misspelt_bootstrap(values: Mapping[str, str]) -> str | None:
    """Return the key that the user wrote instead of `bootstrap.servers`, if any."""
    spellings = {re.sub("[_ -]", ".", key.strip().lower()): key for key in values}
    for known in BOOTSTRAP:
        if near := get_close_matches(known, spellings, 1):
            return spellings[near[0]]
    return None


# -- defaults -----------------------------------------------------------------------


def with_defaults(users: Mapping[str, str], *, transactional: bool) -> dict[str, str]:
    """Return a configuration with greendrop's defaults for the keys that it lacks."""
    merged = dict(users)
    merged.setdefault("client.id", "greendrop")
    merged.setdefault("statistics.interval.ms", "5000")
    # A request of one waiting greenlet must not wait for the ACK of the previous one.
    merged.setdefault("socket.nagle.disable", "true")
    if _first_of(users, *_LINGER) is None:
        merged["linger.ms"] = "0"
        # librdkafka's own default, which it would lower to 0 for linger.ms=0: then each
        # message without a key would go to a random partition, and a batch of ten would
        # leave as four requests.
        merged.setdefault("sticky.partitioning.linger.ms", "10")
    message = _first_of(users, *_DELIVERY_TIMEOUT)
    transaction = users.get("transaction.timeout.ms")
    if message is None:
        # A default must not contradict the user's value: librdkafka refuses a
        # message.timeout.ms above transaction.timeout.ms, for transactional producers
        # only.
        limit = _number(transaction, _MESSAGE_TIMEOUT) if transactional else math.inf
        merged["message.timeout.ms"] = str(int(min(_MESSAGE_TIMEOUT, limit)))
    if transaction is None and transactional:
        limit = _number(message, _MESSAGE_TIMEOUT)
        merged["transaction.timeout.ms"] = str(int(max(_TRANSACTION_TIMEOUT, limit)))
    return merged


# -- values that greendrop depends on -----------------------------------------------


def oauth_objection(values: Mapping[str, str]) -> str | None:
    """Return the reason why librdkafka would not use OAuth tokens, or None."""
    mechanism = _first_of(values, "sasl.mechanisms", "sasl.mechanism") or "GSSAPI"
    protocol = values.get("security.protocol", "plaintext")
    if mechanism.upper() != "OAUTHBEARER":
        return "kafka's sasl.mechanisms is not OAUTHBEARER"
    if not protocol.upper().startswith("SASL_"):
        return "kafka's security.protocol is not SASL_SSL"
    if values.get("sasl.oauthbearer.method", "default").lower() == "oidc":
        return "with sasl.oauthbearer.method=oidc librdkafka gets the tokens itself"
    if is_true(values.get("enable.sasl.oauthbearer.unsecure.jwt")):
        return "with enable.sasl.oauthbearer.unsecure.jwt librdkafka makes the tokens"
    return None


def uses_oauth(values: Mapping[str, str]) -> bool:
    """Return whether clients need OAuth tokens from greendrop.

    librdkafka's mock brokers accept all clients without a login.
    """
    return oauth_objection(values) is None and not _has_mock_brokers(values)


def sets_linger(users: Mapping[str, str]) -> bool:
    """Return whether the user's configuration has a `linger.ms` above 0."""
    return _number(_first_of(users, *_LINGER), 0.0) > 0


def queue_messages(kafka: Mapping[str, str]) -> int:
    """Return how many messages fit into librdkafka's queue; its 0 means no limit."""
    limit = _number(kafka.get("queue.buffering.max.messages"), _QUEUE_MESSAGES)
    return int(limit) or sys.maxsize


def queue_bytes(kafka: Mapping[str, str]) -> int:
    """Return how many bytes of payloads fit into librdkafka's queue."""
    return int(_number(kafka.get("queue.buffering.max.kbytes"), _QUEUE_KBYTES)) * 1024


def message_bytes(kafka: Mapping[str, str]) -> int:
    """Return the size of the largest message that librdkafka accepts."""
    return int(_number(kafka.get(SIZE_KEY), _MESSAGE_BYTES))


def _has_mock_brokers(values: Mapping[str, str]) -> bool:
    return _number(values.get(_MOCK), 0) > 0


def _first_of(values: Mapping[str, str], *keys: str) -> str | None:
    """Return the value of a key for which librdkafka has several names."""
    return next((values[key] for key in keys if key in values), None)


def _number(text: str | None, default: float) -> float:
    """Read a number as librdkafka does; the default if librdkafka would refuse it."""
    if text is None:
        return default
    try:
        return int(text, 0)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return default
    return number if math.isfinite(number) else default


def is_true(text: str | None) -> bool:
    """Return whether librdkafka reads a text as true."""
    return text is not None and text.lower() in {"true", "t", "1"}
