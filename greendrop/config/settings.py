"""Each setting of a producer: default, unit, rule and reason.

The fields of `Settings` are the only place where a setting is described: checks,
hints and docs/reference/settings.md are made from them. Knows librdkafka's keys only
as far as greendrop gives them a default or depends on them; whether librdkafka accepts
a key or value is for `bindings` to find out.
"""

from __future__ import annotations

import math
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from greendrop._concurrency.deadline import DAY
from greendrop.config import broker_addresses, kafka_checks, placeholders, redaction
from greendrop.errors import ConfigurationInvalidError
from greendrop.message import SizeLimit

if TYPE_CHECKING:
    from greendrop.config.kafka_checks import NoEffect
    from greendrop.oauth import OAuthToken

_T = TypeVar("_T")

#: Seconds. An `idle_disconnect_timeout` is not shorter.
SHORTEST_IDLE_TIMEOUT = 30.0

#: librdkafka's own default of `queue.buffering.max.messages`.
_QUEUE_LIMIT = 100_000
#: librdkafka's own default of `queue.buffering.max.kbytes`.
_QUEUE_KBYTES = 1_048_576
#: librdkafka's own default of `message.max.bytes`.
_SIZE_LIMIT = 1_000_000
#: Milliseconds. Below `max_wait_timeout`, so that librdkafka's verdict comes first.
_MESSAGE_TIMEOUT = 150_000
#: Milliseconds. librdkafka wants it at or above `message.timeout.ms`.
_TRANSACTION_TIMEOUT = 165_000


class _RefusedError(Exception):
    """A value breaks its rule; the text says how."""


class _Rule(NamedTuple):
    """What a value must be, for people, and the function that checks and converts."""

    text: str
    convert: Callable[[object], object]


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _RefusedError(f"needs a number of seconds, not {type(value).__name__}")
    if not math.isfinite(value):
        raise _RefusedError(f"{value!r} is not finite; every wait of greendrop ends")
    if value < 0:
        raise _RefusedError(f"{value!r} is negative")
    if value > DAY:
        raise _RefusedError(
            f"{value!r} seconds is more than a day and looks like milliseconds;"
            f" did you mean {value / 1000!r}?"
        )
    return float(value)


def _seconds_above_zero(value: object) -> float:
    seconds = _seconds(value)
    if not seconds:
        raise _RefusedError(
            "0 leaves no time to serve anything; needs a number above 0"
        )
    return seconds


def _idle_seconds(value: object) -> float:
    seconds = _seconds(value)
    if 0 < seconds < SHORTEST_IDLE_TIMEOUT:
        raise _RefusedError(
            f"{value!r} is below {SHORTEST_IDLE_TIMEOUT:g} seconds; connecting anew so"
            " often costs more than it saves (0 turns it off)"
        )
    return seconds


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _RefusedError(f"needs a whole number, not {type(value).__name__}")
    if value < 1:
        raise _RefusedError(f"{value!r} is below 1")
    return value


def _error_names(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _RefusedError(
            f"needs a list of errors' names, not {type(value).__name__}"
        )
    names = tuple(value)
    for name in names:
        if not isinstance(name, str):
            raise _RefusedError(f"{name!r} is no name of an error")
    return names


def _keys(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _RefusedError(f"needs a list of keys, not {type(value).__name__}")
    keys = tuple(value)
    for key in keys:
        if not isinstance(key, str):
            raise _RefusedError(f"{key!r} is no key")
    return keys


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise _RefusedError(f"needs True or False, not {value!r:.40}")
    return value


def _bytes_count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _RefusedError(
            f"needs a whole number of bytes, not {type(value).__name__}"
        )
    if value < 1:
        raise _RefusedError(f"{value!r} is below 1")
    return value


def _identity(value: object) -> str:
    if not isinstance(value, str):
        raise _RefusedError(f"needs text, not {type(value).__name__}")
    if not value:
        raise _RefusedError("must not be empty")
    return value


def _provider(value: object) -> object:
    if value is not None and not callable(value):
        raise _RefusedError(
            f"needs a function without arguments, not {type(value).__name__}"
        )
    return value


_PROVIDER = _Rule("a function without arguments", _provider)
_IDLE = _Rule(f"0, or a number from 30 to {DAY}", _idle_seconds)
_COUNT = _Rule("a whole number of at least 1", _count)
_NAMES = _Rule("names of errors, such as `fenced`", _error_names)
_KEYS = _Rule("keys of librdkafka's statistics, such as `msg_cnt`", _keys)
_SECONDS = _Rule(f"a number from 0 to {DAY}", _seconds)
_SECONDS_ABOVE_ZERO = _Rule(f"a number above 0, up to {DAY}", _seconds_above_zero)
_BOOLEAN = _Rule("True or False", _boolean)
_BYTES = _Rule("a whole number of at least 1", _bytes_count)
_IDENTITY = _Rule("text, not empty", _identity)


def _setting(default: _T, rule: _Rule, unit: str, why: str, waterdrop: str = "") -> _T:
    metadata = {"rule": rule, "unit": unit, "why": why, "waterdrop": waterdrop}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Settings:
    """The settings of one producer, checked and complete. Made by `build_settings`.

    Attributes:
        kafka: librdkafka's configuration as it takes it, defaults merged. Read-only.
        user_sets_linger: The user set `linger.ms` above 0 and gets exactly that.
        queue_limit: Messages that fit into librdkafka's queue.
        queue_bytes: Bytes of payloads that fit into librdkafka's queue.
        transactional: There is a `transactional.id`.
        slot: Number of the pool's slot that the producer was made for, if any was.
        idempotent: librdkafka writes each message once; so with transactions.
        uses_oauth: It logs in by OAUTHBEARER, with tokens that greendrop gives it.
        secret_keys: Keys of `kafka` whose values must not be shown.
        no_effect: What the user set in vain: a reason, and the names.
    """

    kafka: Mapping[str, str]
    user_sets_linger: bool
    queue_limit: int
    queue_bytes: int
    transactional: bool
    idempotent: bool
    uses_oauth: bool
    secret_keys: frozenset[str]
    slot: int | None
    no_effect: tuple[NoEffect, ...]

    id: str = _setting(
        "greendrop-...",
        _IDENTITY,
        "text",
        "Names this producer in events, logs and errors. The default ends in 12"
        " hexadecimal digits, which are different for each producer.",
        "id, `waterdrop-` and 12 hexadecimal digits",
    )
    max_payload_size: int = _setting(
        1_000_012,
        _BYTES,
        "bytes",
        "A larger message is refused before it is queued. Its size includes payload,"
        " key, headers and 36 bytes for the record, as librdkafka counts them."
        " librdkafka's `message.max.bytes` (1,000,000) is a limit too, and the smaller"
        " of the two applies. Brokers accept 1,048,588 bytes for a whole batch; to send"
        " more, raise both settings and the topic's `max.message.bytes`.",
        "max_payload_size, 1_000_012",
    )
    max_wait_timeout: float = _setting(
        180.0,
        _SECONDS,
        "seconds",
        "How long `produce_sync` waits for a delivery report. Longer than librdkafka's"
        " `message.timeout.ms` (150 s here), so that librdkafka's own result arrives"
        " first and is final.",
        "max_wait_timeout, 180_000 ms",
    )
    wait_on_queue_full: bool = _setting(
        default=True,
        rule=_BOOLEAN,
        unit="yes or no",
        why="When librdkafka's queue is full, wait until there is space. If False,"
        " `QueueFullError` is raised at once.",
        waterdrop="wait_on_queue_full, true",
    )
    wait_timeout_on_queue_full: float = _setting(
        10.0,
        _SECONDS,
        "seconds",
        "How long a message waits for space in a full queue before `QueueFullError` is"
        " raised. A waiting sender wakes as soon as there is space, so there is no"
        " backoff to configure.",
        "wait_timeout_on_queue_full, 10_000 ms",
    )
    instrument_on_wait_queue_full: bool = _setting(
        default=True,
        rule=_BOOLEAN,
        unit="yes or no",
        why="Emit `error.occurred` when a message has to wait for space. Turn it off"
        " where full queues are the normal way to slow down, as in bulk loads.",
        waterdrop="instrument_on_wait_queue_full, true",
    )
    max_serve_time: float = _setting(
        0.01,
        _SECONDS_ABOVE_ZERO,
        "seconds",
        "How long the poller handles delivery reports before it lets other greenlets"
        " run, even with 100,000 reports waiting. Smaller values keep the hub more"
        " responsive; far below the default, switching costs more than handling the"
        " reports.",
        "polling.fd.max_time, 100 ms",
    )
    idle_disconnect_timeout: float = _setting(
        0.0,
        _IDLE,
        "seconds",
        "Disconnect after this many seconds without a message; the next message"
        " reconnects. 0 turns it off. Saves the brokers the connections of producers"
        " that are seldom used. The producer checks every quarter of this time, so it"
        " disconnects up to a quarter later.",
        "idle_disconnect_timeout, 0 ms",
    )
    reload_on_idempotent_fatal_error: bool = _setting(
        default=False,
        rule=_BOOLEAN,
        unit="yes or no",
        why="Replace the client of an idempotent producer after a fatal error, and"
        " continue with the new client. Messages in flight fail; a program that sends"
        " them again may store them twice or out of order. See docs/send/recovery.md.",
        waterdrop="reload_on_idempotent_fatal_error, false",
    )
    wait_backoff_on_idempotent_fatal_error: float = _setting(
        5.0,
        _SECONDS,
        "seconds",
        "How long to wait before the new client is created. Messages that are sent"
        " meanwhile wait for it.",
        "wait_backoff_on_idempotent_fatal_error, 5_000 ms",
    )
    max_attempts_on_idempotent_fatal_error: int = _setting(
        5,
        _COUNT,
        "count",
        "How many clients in a row may be replaced without any message delivered in"
        " between. After that each message raises the fatal error.",
        "max_attempts_on_idempotent_fatal_error, 5",
    )
    wait_backoff_on_transaction_command: float = _setting(
        0.5,
        _SECONDS,
        "seconds",
        "How long to wait before retrying a begin, commit, abort or the sending of"
        " offsets after a transient error: once this time before the second attempt,"
        " twice before the third.",
        "wait_backoff_on_transaction_command, 500 ms",
    )
    max_attempts_on_transaction_command: int = _setting(
        5,
        _COUNT,
        "count",
        "How many attempts each of these calls gets. A slow broker does not count as a"
        " failed attempt: `max_wait_timeout` limits that.",
        "max_attempts_on_transaction_command, 5",
    )
    reload_on_transaction_fatal_error: bool = _setting(
        default=True,
        rule=_BOOLEAN,
        unit="yes or no",
        why="Replace the client of a transactional producer after a fatal error, a"
        " failed abort or an unanswered commit. The error is raised all the same; the"
        " next transaction begins with a new client. See docs/send/transactions.md.",
        waterdrop="reload_on_transaction_fatal_error, true",
    )
    wait_backoff_on_transaction_fatal_error: float = _setting(
        1.0,
        _SECONDS,
        "seconds",
        "How long after such an error the new client is created. A transaction that"
        " begins earlier waits for it.",
        "wait_backoff_on_transaction_fatal_error, 1_000 ms",
    )
    max_attempts_on_transaction_fatal_error: int = _setting(
        10,
        _COUNT,
        "count",
        "How many clients in a row may be replaced without any commit in between."
        " After that each transaction raises the fatal error.",
        "max_attempts_on_transaction_fatal_error, 10",
    )
    wait_timeout_on_transaction_abort: float = _setting(
        5.0,
        _SECONDS,
        "seconds",
        "Before a transaction is rolled back, wait this long for the delivery reports"
        " of its messages; 0 turns it off. Usually that takes one round trip. Rolling"
        " back while messages have no report costs a new client: librdkafka would use"
        " their sequence numbers again, and brokers could take later messages for"
        " duplicates.",
        "wait_timeout_on_transaction_abort, 0 ms (off)",
    )
    non_reloadable_errors: tuple[str, ...] = _setting(
        ("fenced",),
        _NAMES,
        "error names",
        "Fatal errors after which the client is not replaced, by Kafka's or"
        " librdkafka's names, in any case and without a leading underscore. `fenced`"
        " means that another producer has taken over; a new client would fence that"
        " one in turn.",
        "non_reloadable_errors, [fenced]",
    )
    statistics_deltas: tuple[str, ...] = _setting(
        ("tx", "txretries", "txerrs", "rxerrs"),
        _KEYS,
        "keys",
        "Numbers in librdkafka's statistics for which the change is reported beside"
        " them, as KEY_d and KEY_fd; see docs/observe/statistics.md. The default is"
        " what greendrop's metrics need.",
        "statistics_decorator",
    )
    stall_alarm: float = _setting(
        0.0,
        _SECONDS,
        "seconds",
        "Emit `hub.stalled` when something has blocked the hub for this long while"
        " messages were in flight. 0 turns it off. Costs one native thread, which runs"
        " only while messages are in flight; see docs/observe/stalls.md.",
    )
    oauth_token_provider: Callable[[], OAuthToken] | None = _setting(  # noqa: RUF009
        None,
        _PROVIDER,
        "a function",
        "Returns an `OAuthToken` each time one is needed, if `sasl.mechanisms` is"
        " OAUTHBEARER. Called on a native thread of its own, where it may block. See"
        " docs/run/oauth.md.",
        "oauth.token_provider_listener, false",
    )
    exit_timeout: float = _setting(
        10.0,
        _SECONDS,
        "seconds",
        "How long closing at interpreter exit may take, for all producers together."
        " Messages that are not delivered by then are dropped, and a line on standard"
        " error says how many. Process managers kill a process that takes longer than"
        " their own limit (gunicorn: 30 s).",
    )

    @property
    def size_limit(self) -> SizeLimit:
        """The size of the largest message: the smaller one of the two limits."""
        whole = int(_number(self.kafka.get(_SIZE_KEY), _SIZE_LIMIT))
        queue = self.queue_bytes
        if self.max_payload_size < whole:
            return SizeLimit(self.max_payload_size, "max_payload_size", queue)
        return SizeLimit(whole, f"kafka's {_SIZE_KEY}", queue)

    @property
    def transactional_id(self) -> str | None:
        """The `transactional.id` as it is in this process; None if there is none."""
        if not self.transactional:
            return None
        return placeholders.filled(self.kafka["transactional.id"], self.slot)

    @property
    def bootstrap_servers(self) -> str:
        """The addresses of the brokers, as the user wrote them."""
        return next((self.kafka[key] for key in BOOTSTRAP if self.kafka.get(key)), "")

    def redacted(self) -> dict[str, object]:
        """Give all settings by name, secrets of `kafka` replaced by `[hidden]`."""
        shown: dict[str, object] = {
            setting.name: getattr(self, setting.name) for setting in SETTINGS
        }
        if self.oauth_token_provider is not None:
            # Such as a functools.partial: its repr shows what it was given.
            shown["oauth_token_provider"] = redaction.HIDDEN
        shown["kafka"] = self.redacted_kafka()
        return shown

    def redacted_kafka(self) -> dict[str, str]:
        """Give librdkafka's configuration, secrets replaced by `[hidden]`."""
        return redaction.redacted(self.kafka)

    def put_secrets_back(self, redacted: dict[str, str]) -> None:
        """Undo `redacted_kafka` where a secret is still hidden."""
        for key in self.secret_keys & redacted.keys():
            if redacted[key] == redaction.HIDDEN:
                redacted[key] = self.kafka[key]

    def censored(self, text: str) -> str:
        """Give a text that somebody else wrote, with secrets of `kafka` cut out."""
        return redaction.censored(text, self.kafka, self.secret_keys)

    def __repr__(self) -> str:
        """Tell the settings without secrets."""
        shown = ", ".join(f"{key}={value!r}" for key, value in self.redacted().items())
        return f"Settings({shown})"


class Setting(NamedTuple):
    """One setting, described. A row of docs/reference/settings.md."""

    name: str
    default: object
    unit: str
    rule: str
    why: str
    waterdrop: str


def _described() -> tuple[Setting, ...]:
    return tuple(
        Setting(
            each.name,
            each.default,
            each.metadata["unit"],
            each.metadata["rule"].text,
            each.metadata["why"],
            each.metadata["waterdrop"],
        )
        for each in fields(Settings)
        if each.metadata
    )


#: Every setting beside `kafka`, described.
SETTINGS: tuple[Setting, ...] = _described()

_RULES: dict[str, _Rule] = {
    each.name: each.metadata["rule"] for each in fields(Settings) if each.metadata
}

_DEFAULTS: dict[str, object] = {each.name: each.default for each in SETTINGS}

# WaterDrop's options that a newcomer from there will look for.
_ABSENT = {
    "wait_backoff_on_queue_full": "a waiter wakes when room appears, there is no"
    " backoff; wait_timeout_on_queue_full limits the wait",
    "logger": "greendrop has no logger of its own; subscribe one to producer.monitor",
    "polling": "greendrop chooses by itself; producer.polling says how",
}


def build_settings(
    kafka: Mapping[str, object] | None,
    options: Mapping[str, object],
    slot: int | None = None,
) -> Settings:
    """Check all settings, merge the defaults and give the result.

    Args:
        kafka: librdkafka's keys; values may be text, numbers or booleans. Any mapping;
            it is copied, never changed.
        options: greendrop's own settings by name.
        slot: Number of the pool's slot that the producer is for; None means the one
            that a pool is just filling, if one is.

    Raises:
        ConfigurationInvalidError: Names every bad key at once, kafka's as `kafka.KEY`.
    """
    errors: dict[str, str] = {}
    own = own_settings(options, errors)
    users = _whole_configuration(kafka, errors)
    for key, text in kafka_checks.find_errors(users).items():
        errors.setdefault(f"kafka.{key}", text)
    slot = placeholders.current_slot.get() if slot is None else slot
    transactional_id = users.get("transactional.id", "")
    if wrong := placeholders.complaint(transactional_id, slot):
        errors["kafka.transactional.id"] = wrong
    whose_tokens = _whose_tokens(users)
    if own.get("oauth_token_provider") and whose_tokens not in _TAKES_PROVIDER:
        errors["oauth_token_provider"] = f"is of no use: {whose_tokens}"
    if errors:
        raise ConfigurationInvalidError(errors)
    transactional = bool(transactional_id)
    merged = _with_defaults(users, transactional=transactional)
    no_effect = [
        (reason, tuple(f"kafka.{key}" for key in keys))
        for reason, keys in kafka_checks.find_no_effect(users)
    ]
    no_effect += [found for found in _own_no_effect(own, merged) if found[1]]
    own.setdefault("id", f"greendrop-{uuid.uuid4().hex[:12]}")
    return Settings(
        kafka=MappingProxyType(merged),
        user_sets_linger=_number(_either(users, *_LINGER), 0.0) > 0,
        queue_limit=int(_number(users.get(_QUEUE_KEY), _QUEUE_LIMIT)) or sys.maxsize,
        queue_bytes=int(_number(users.get(_QUEUE_BYTES_KEY), _QUEUE_KBYTES)) * 1024,
        transactional=transactional,
        idempotent=transactional or _is_true(merged.get("enable.idempotence")),
        uses_oauth=whose_tokens == _OURS,
        secret_keys=frozenset(
            key for key, value in merged.items() if redaction.is_secret(key, value)
        ),
        slot=slot,
        no_effect=tuple(no_effect),
        **own,
    )


def own_settings(
    options: Mapping[str, object], errors: dict[str, str]
) -> dict[str, Any]:
    """Check settings of greendrop by name; each mistake is added to `errors`."""
    own: dict[str, Any] = {}
    for name, value in options.items():
        rule = _RULES.get(name)
        if rule is None:
            errors[name] = _unknown(name)
            continue
        try:
            own[name] = rule.convert(value)
        except _RefusedError as refused:
            errors[name] = str(refused)
    return own


def _own_no_effect(
    own: Mapping[str, Any], kafka: Mapping[str, str]
) -> Iterator[NoEffect]:
    """Find the settings of greendrop that change nothing beside the others.

    Args:
        own: What the user set. A value that is the default needs no warning.
        kafka: librdkafka's configuration, defaults merged.
    """
    changed = [name for name in own if own[name] != _DEFAULTS[name]]
    of_transactions = tuple(name for name in changed if "_transaction_" in name)
    of_recovery = tuple(
        name for name in changed if name.endswith("_on_idempotent_fatal_error")
    )
    if kafka.get("transactional.id"):
        reason = "a transactional producer has settings of its own for this"
        yield reason, of_recovery
    else:
        yield "there is no kafka.transactional.id", of_transactions
        if not _is_true(kafka.get("enable.idempotence")):
            yield "kafka.enable.idempotence is not true", of_recovery
        elif not own.get("reload_on_idempotent_fatal_error", False):
            yield "reload_on_idempotent_fatal_error is False", of_recovery
    if not own.get("wait_on_queue_full", True):
        names = ["wait_timeout_on_queue_full", "instrument_on_wait_queue_full"]
        reason = "wait_on_queue_full is False"
        yield reason, tuple(name for name in names if name in changed)
    if kafka.get("statistics.interval.ms") == "0" and "statistics_deltas" in changed:
        yield "kafka.statistics.interval.ms is 0", ("statistics_deltas",)


def _unknown(name: str) -> str:
    if name in _ABSENT:
        return f"no such setting: {_ABSENT[name]}"
    near = get_close_matches(name, [*_RULES, "kafka"], 1)
    if near:
        return f"no such setting; did you mean {near[0]!r}?"
    return "no such setting; librdkafka's keys go into kafka={...}"


# -- the mapping `kafka` ------------------------------------------------------------

#: The two names that librdkafka has for the brokers' addresses.
BOOTSTRAP = ("bootstrap.servers", "metadata.broker.list")
_MOCK = "test.mock.num.brokers"
_LINGER = ("linger.ms", "queue.buffering.max.ms")
_QUEUE_KEY = "queue.buffering.max.messages"
_QUEUE_BYTES_KEY = "queue.buffering.max.kbytes"
_SIZE_KEY = "message.max.bytes"
_DELIVERY_TIMEOUT = ("message.timeout.ms", "delivery.timeout.ms")
_ONLY_ERRORS = "delivery.report.only.error"

_SUBSCRIBE = "this callback belongs to greendrop; use producer.monitor.subscribe({})"
_ERRORS_GO_TO = _SUBSCRIBE.format("'error.occurred', ...")
_STATISTICS_GO_TO = _SUBSCRIBE.format("'statistics.emitted', ...")
_TOKENS_GO_TO = (
    _SUBSCRIBE.format("'oauthbearer.token_refresh', ...")
    + ", or the setting oauth_token_provider"
)
_REPORTS_GO_TO = (
    _SUBSCRIBE.format("'message.acknowledged', ...")
    + ", or the handle that produce_async returns"
)
_PARTITIONS_BY = (
    "set partitioner to the name of one of librdkafka's, or give each message its"
    " partition"
)
_TOPIC_KEYS_GO_TO = "put its keys straight into kafka={...}"
# Keys of confluent-kafka and librdkafka that take an object, and what to use instead.
# greendrop owns the callbacks: user code that ran in one could abort the process.
_REFUSED_KEYS = {
    "error_cb": _ERRORS_GO_TO,
    "logger": _ERRORS_GO_TO,
    "log_cb": _ERRORS_GO_TO,
    "stats_cb": _STATISTICS_GO_TO,
    "throttle_cb": _STATISTICS_GO_TO,
    "oauth_cb": _TOKENS_GO_TO,
    "oauthbearer_token_refresh_cb": _TOKENS_GO_TO,
    "on_delivery": _REPORTS_GO_TO,
    "dr_cb": _REPORTS_GO_TO,
    "dr_msg_cb": _REPORTS_GO_TO,
    "partitioner_cb": _PARTITIONS_BY,
    "partitioner_callback": _PARTITIONS_BY,
    "default.topic.config": _TOPIC_KEYS_GO_TO,
    "default_topic_conf": _TOPIC_KEYS_GO_TO,
}


_WHOLE = re.compile(r"-?[0-9]{1,10}")


def _whole_configuration(kafka: object, errors: dict[str, str]) -> dict[str, str]:
    if kafka is None:
        errors["kafka"] = "this key is required"
        return {}
    if isinstance(kafka, Mapping) and not kafka:
        errors["kafka"] = "must not be empty; it needs at least bootstrap.servers"
        return {}
    values = normalize_kafka(kafka, errors, name="kafka")
    if "kafka" not in errors:
        _check_brokers(values, errors)
    return values


def normalize_kafka(
    given: object, errors: dict[str, str], *, name: str
) -> dict[str, str]:
    """Give keys and values as librdkafka takes them; some or all of a configuration.

    Args:
        given: A mapping, or the user's mistake.
        errors: Each mistake is added here, as `NAME.KEY`.
        name: What the user calls the mapping.
    """
    if not isinstance(given, Mapping):
        errors[name] = f"needs a mapping, not {type(given).__name__}"
        return {}
    values: dict[str, str] = {}
    for key, value in given.items():
        try:
            text = _kafka_key(key)
            values[text] = _kafka_value(text, value)
        except _RefusedError as refused:
            errors[f"{name}.{key!s}"] = str(refused)
    return values


_OURS = "greendrop's"
_NO_LOGIN = "the mock cluster of test.mock.num.brokers lets everybody in"
_TAKES_PROVIDER = (_OURS, _NO_LOGIN)


def _whose_tokens(values: Mapping[str, str]) -> str:
    """Tell whether greendrop gives the tokens of a login, or why it does not."""
    mechanism = _either(values, "sasl.mechanisms", "sasl.mechanism") or "GSSAPI"
    protocol = values.get("security.protocol", "plaintext")
    if mechanism.upper() != "OAUTHBEARER":
        return "kafka's sasl.mechanisms is not OAUTHBEARER"
    if not protocol.upper().startswith("SASL_"):
        return "kafka's security.protocol is not SASL_SSL"
    if values.get("sasl.oauthbearer.method", "default").lower() == "oidc":
        return "with sasl.oauthbearer.method=oidc librdkafka gets the tokens by itself"
    if _is_true(values.get("enable.sasl.oauthbearer.unsecure.jwt")):
        return "enable.sasl.oauthbearer.unsecure.jwt has librdkafka make the tokens"
    return _NO_LOGIN if _number(values.get(_MOCK), 0) > 0 else _OURS


def _check_brokers(values: Mapping[str, str], errors: dict[str, str]) -> None:
    """Refuse a configuration that leads to no broker."""
    if any(f"kafka.{key}" in errors for key in (*BOOTSTRAP, _MOCK)):
        return  # one mistake is enough
    protocol = kafka_checks.protocol_of(values)
    for key in BOOTSTRAP:
        if addresses := values.get(key):
            mistake = broker_addresses.find_mistake(addresses.split(","), protocol)
            if mistake is not None:
                errors[f"kafka.{key}"] = mistake
    if any(values.get(key) for key in BOOTSTRAP) or _number(values.get(_MOCK), 0) > 0:
        return
    given = next((key for key in BOOTSTRAP if key in values), None)
    text = "must not be empty" if given else "this key is required"
    if not given and (meant := _meant_for_addresses(values)):
        text += f"; {meant!r} is not librdkafka's name for it"
    errors[f"kafka.{given or BOOTSTRAP[0]}"] = text


def _meant_for_addresses(values: Mapping[str, str]) -> str | None:
    """Find the key that the user wrote instead of `bootstrap.servers`."""
    spellings = {re.sub("[_ -]", ".", key.strip().lower()): key for key in values}
    for known in BOOTSTRAP:
        if near := get_close_matches(known, spellings, 1):
            return spellings[near[0]]
    return None


def _kafka_key(key: object) -> str:
    if not isinstance(key, str):
        raise _RefusedError(f"keys are text, not {type(key).__name__}")
    if key in _REFUSED_KEYS or key.endswith(("_cb", "_callback")):
        raise _RefusedError(_REFUSED_KEYS.get(key, _SUBSCRIBE.format("...")))
    if "\0" in key or not _encodable(key):
        raise _RefusedError("holds a NUL character or a lone surrogate")
    return str.__str__(key)


def _kafka_value(key: str, value: object) -> str:
    if value is None:
        raise _RefusedError("None is no value; leave the key out to get its default")
    if key in BOOTSTRAP:
        value = _address_list(value)
    if not isinstance(value, (str, int, float)):
        raise _RefusedError(
            f"needs text, a number or a boolean, not {type(value).__name__}"
        )
    text = _as_text(value)
    if "\0" in text or not _encodable(text):
        # librdkafka reads a C string in UTF-8: it would take the value for a shorter
        # one, or get none at all.
        raise _RefusedError("holds a NUL character or a lone surrogate")
    if key.endswith(".ms") and key not in _LINGER and not _WHOLE.fullmatch(text):
        # librdkafka would take what comes before the first letter, or nought.
        raise _RefusedError(f"needs whole milliseconds, not {value!r}")
    if key in BOOTSTRAP and "@" in text:
        # librdkafka knows none there, and would show it in what it writes.
        raise _RefusedError("an address has no user or password; see sasl.username")
    if key == _ONLY_ERRORS and _is_true(text):
        raise _RefusedError(
            "must not be true: handles of delivered messages would never resolve"
        )
    return text


def _address_list(value: object) -> str:
    """Return addresses as librdkafka reads them: joined by commas, without blanks."""
    if isinstance(value, str):
        addresses = broker_addresses.split_addresses(str.__str__(value))
        return ",".join(addresses)
    if not isinstance(value, (list, tuple)):
        raise _RefusedError(
            f"needs HOST:PORT,HOST:PORT or a list of HOST:PORT, not"
            f" {type(value).__name__}"
        )
    for address in value:
        if not isinstance(address, str):
            raise _RefusedError(
                f"needs a list of text, and {address!r:.40} is of type"
                f" {type(address).__name__}"
            )
    return ",".join(address.strip() for address in value)


def _as_text(value: str | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _RefusedError(f"{value!r} is not finite")
        # librdkafka takes "5.0" only where it expects a fraction.
        return str(int(value)) if value.is_integer() else repr(float(value))
    # Spelled this way for enumerations, whose own str() gives a name.
    return str.__str__(value) if isinstance(value, str) else str(int(value))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _with_defaults(users: Mapping[str, str], *, transactional: bool) -> dict[str, str]:
    merged = dict(users)
    merged.setdefault("client.id", "greendrop")
    merged.setdefault("statistics.interval.ms", "5000")
    # A request of one waiting greenlet must not wait for the ACK of the last one.
    merged.setdefault("socket.nagle.disable", "true")
    if _either(users, *_LINGER) is None:
        merged["linger.ms"] = "0"
        if transactional:
            # librdkafka's own, which it makes 0 for that: with it the messages of a
            # transaction are spread over as few partitions as without.
            merged.setdefault("sticky.partitioning.linger.ms", "10")
    message = _either(users, *_DELIVERY_TIMEOUT)
    transaction = users.get("transaction.timeout.ms")
    if message is None:
        # A default must not break what the user chose: librdkafka refuses a
        # message.timeout.ms above transaction.timeout.ms, and it looks only at
        # transactional producers.
        limit = _number(transaction, _MESSAGE_TIMEOUT) if transactional else math.inf
        merged["message.timeout.ms"] = str(int(min(_MESSAGE_TIMEOUT, limit)))
    if transaction is None and transactional:
        limit = _number(message, _MESSAGE_TIMEOUT)
        merged["transaction.timeout.ms"] = str(int(max(_TRANSACTION_TIMEOUT, limit)))
    return merged


def _either(values: Mapping[str, str], *keys: str) -> str | None:
    """Give the value of a key that librdkafka knows by several names."""
    return next((values[key] for key in keys if key in values), None)


def _number(text: str | None, default: float) -> float:
    """Read a number as librdkafka does; one that it will refuse counts as absent."""
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


def _is_true(text: str | None) -> bool:
    """Whether librdkafka reads a text as true."""
    return text is not None and text.lower() in {"true", "t", "1"}
