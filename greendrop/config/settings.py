"""The settings of a producer: default, unit, rule and reason of each.

The fields of `Settings` are the only place where a setting is described. The checks,
the hints and docs/reference/settings.md are made from them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from greendrop._hints import setting_hint
from greendrop._validation import SizeLimit
from greendrop.config import kafka_checks, placeholders, redaction, rules
from greendrop.config.kafka import (
    BOOTSTRAP,
    SIZE_KEY,
    is_true,
    message_bytes,
    oauth_objection,
    queue_bytes,
    queue_messages,
    read_kafka,
    sets_linger,
    uses_oauth,
    with_defaults,
)
from greendrop.config.rules import InvalidValueError, Rule
from greendrop.errors import ConfigurationInvalidError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from greendrop.config.kafka_checks import NoEffect
    from greendrop.oauth import OAuthToken

__all__ = ["Settings"]

_T = TypeVar("_T")


def _setting(default: _T, rule: Rule, unit: str, why: str, waterdrop: str = "") -> _T:
    metadata = {"rule": rule, "unit": unit, "why": why, "waterdrop": waterdrop}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Settings:
    """The settings of one producer, checked and complete. Made by `build_settings`.

    Attributes:
        kafka: librdkafka's configuration as it takes it, with defaults. Read-only.
        user_sets_linger: The user set `linger.ms` above 0 and gets exactly that.
        queue_limit: Messages that fit into librdkafka's queue.
        queue_bytes: Bytes of payloads that fit into librdkafka's queue.
        transactional: There is a `transactional.id`.
        idempotent: librdkafka writes each message once. True with transactions as well.
        uses_oauth: Clients log in by OAUTHBEARER with tokens from greendrop.
        secret_keys: Keys of `kafka` whose values must not be shown.
        slot: The number of the producer's slot in a pool, if any.
        no_effect: The user's settings that have no effect: a reason, and their names.
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
        rules.TEXT,
        "text",
        "Names this producer in events, logs and errors. The default ends in 12"
        " hexadecimal digits, which are different for each producer.",
        "id, `waterdrop-` and 12 hexadecimal digits",
    )
    max_payload_size: int = _setting(
        1_000_012,
        rules.BYTES,
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
        rules.SECONDS,
        "seconds",
        "How long `produce_sync` waits for a delivery report. Longer than librdkafka's"
        " `message.timeout.ms` (150 s here), so that librdkafka's own result arrives"
        " first and is final.",
        "max_wait_timeout, 180_000 ms",
    )
    wait_on_queue_full: bool = _setting(
        default=True,
        rule=rules.BOOLEAN,
        unit="yes or no",
        why="When librdkafka's queue is full, wait until there is space. If False,"
        " `QueueFullError` is raised at once.",
        waterdrop="wait_on_queue_full, true",
    )
    wait_timeout_on_queue_full: float = _setting(
        10.0,
        rules.SECONDS,
        "seconds",
        "How long a message waits for space in a full queue before `QueueFullError` is"
        " raised. A waiting sender wakes as soon as there is space, so there is no"
        " backoff to configure.",
        "wait_timeout_on_queue_full, 10_000 ms",
    )
    instrument_on_wait_queue_full: bool = _setting(
        default=True,
        rule=rules.BOOLEAN,
        unit="yes or no",
        why="Emit `error.occurred` when a message has to wait for space. Turn it off"
        " where full queues are the normal way to slow down, as in bulk loads.",
        waterdrop="instrument_on_wait_queue_full, true",
    )
    max_serve_time: float = _setting(
        0.01,
        rules.SECONDS_ABOVE_ZERO,
        "seconds",
        "How long the poller handles delivery reports before it lets other greenlets"
        " run, even with 100,000 reports waiting. Smaller values keep the hub more"
        " responsive; far below the default, switching costs more than handling the"
        " reports.",
        "polling.fd.max_time, 100 ms",
    )
    idle_disconnect_timeout: float = _setting(
        0.0,
        rules.IDLE_SECONDS,
        "seconds",
        "Disconnect after this many seconds without a message; the next message"
        " reconnects. 0 turns it off. Saves the brokers the connections of producers"
        " that are seldom used. The producer checks every quarter of this time, so it"
        " disconnects up to a quarter later.",
        "idle_disconnect_timeout, 0 ms",
    )
    reload_on_idempotent_fatal_error: bool = _setting(
        default=False,
        rule=rules.BOOLEAN,
        unit="yes or no",
        why="Replace the client of an idempotent producer after a fatal error, and"
        " continue with the new client. Messages in flight fail; a program that sends"
        " them again may store them twice or out of order. See docs/send/recovery.md.",
        waterdrop="reload_on_idempotent_fatal_error, false",
    )
    wait_backoff_on_idempotent_fatal_error: float = _setting(
        5.0,
        rules.SECONDS,
        "seconds",
        "How long to wait before the new client is created. Messages that are sent"
        " meanwhile wait for it.",
        "wait_backoff_on_idempotent_fatal_error, 5_000 ms",
    )
    max_attempts_on_idempotent_fatal_error: int = _setting(
        5,
        rules.COUNT,
        "count",
        "How many clients in a row may be replaced without any message delivered in"
        " between. After that each message raises the fatal error.",
        "max_attempts_on_idempotent_fatal_error, 5",
    )
    wait_backoff_on_transaction_command: float = _setting(
        0.5,
        rules.SECONDS,
        "seconds",
        "How long to wait before retrying a begin, commit, abort or the sending of"
        " offsets after a transient error: once this time before the second attempt,"
        " twice before the third.",
        "wait_backoff_on_transaction_command, 500 ms",
    )
    max_attempts_on_transaction_command: int = _setting(
        5,
        rules.COUNT,
        "count",
        "How many attempts each of these calls gets. A slow broker does not count as a"
        " failed attempt: `max_wait_timeout` limits that.",
        "max_attempts_on_transaction_command, 5",
    )
    reload_on_transaction_fatal_error: bool = _setting(
        default=True,
        rule=rules.BOOLEAN,
        unit="yes or no",
        why="Replace the client of a transactional producer after a fatal error, a"
        " failed abort or an unanswered commit. The error is raised all the same; the"
        " next transaction begins with a new client. See docs/send/transactions.md.",
        waterdrop="reload_on_transaction_fatal_error, true",
    )
    wait_backoff_on_transaction_fatal_error: float = _setting(
        1.0,
        rules.SECONDS,
        "seconds",
        "How long after such an error the new client is created. A transaction that"
        " begins earlier waits for it.",
        "wait_backoff_on_transaction_fatal_error, 1_000 ms",
    )
    max_attempts_on_transaction_fatal_error: int = _setting(
        10,
        rules.COUNT,
        "count",
        "How many clients in a row may be replaced without any commit in between."
        " After that each transaction raises the fatal error.",
        "max_attempts_on_transaction_fatal_error, 10",
    )
    wait_timeout_on_transaction_abort: float = _setting(
        5.0,
        rules.SECONDS,
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
        rules.ERROR_NAMES,
        "error names",
        "Fatal errors after which the client is not replaced, by Kafka's or"
        " librdkafka's names, in any case and without a leading underscore. `fenced`"
        " means that another producer has taken over; a new client would fence that"
        " one in turn.",
        "non_reloadable_errors, [fenced]",
    )
    statistics_deltas: tuple[str, ...] = _setting(
        ("tx", "txretries", "txerrs", "rxerrs"),
        rules.STATISTICS_KEYS,
        "keys",
        "Numbers in librdkafka's statistics for which the change is reported beside"
        " them, as KEY_d and KEY_fd; see docs/observe/statistics.md. The default is"
        " what greendrop's metrics need.",
        "statistics_decorator",
    )
    stall_alarm: float = _setting(
        0.0,
        rules.SECONDS,
        "seconds",
        "Emit `hub.stalled` when something has blocked the hub for this long while"
        " messages were in flight. 0 turns it off. Costs one native thread, which runs"
        " only while messages are in flight; see docs/observe/stalls.md.",
    )
    oauth_token_provider: Callable[[], OAuthToken] | None = _setting(  # noqa: RUF009
        None,
        rules.FUNCTION,
        "a function",
        "Returns an `OAuthToken` each time one is needed, if `sasl.mechanisms` is"
        " OAUTHBEARER. Called on a native thread of its own, where it may block. See"
        " docs/run/oauth.md.",
        "oauth.token_provider_listener, false",
    )
    exit_timeout: float = _setting(
        10.0,
        rules.SECONDS,
        "seconds",
        "How long closing at interpreter exit may take, for all producers together."
        " Messages that are not delivered by then are dropped, and a line on standard"
        " error says how many. Process managers kill a process that takes longer than"
        " their own limit (gunicorn: 30 s).",
    )

    @property
    def size_limit(self) -> SizeLimit:
        """The size of the largest message: the smaller one of the two limits."""
        librdkafkas = message_bytes(self.kafka)
        if self.max_payload_size < librdkafkas:
            size, setting = self.max_payload_size, "max_payload_size"
        else:
            size, setting = librdkafkas, f"kafka's {SIZE_KEY}"
        return SizeLimit(size, setting, self.queue_bytes)

    @property
    def transactional_id(self) -> str | None:
        """The `transactional.id` of this process, or None if there is none."""
        if not self.transactional:
            return None
        return placeholders.fill(self.kafka["transactional.id"], self.slot)

    @property
    def bootstrap_servers(self) -> str:
        """The addresses of the brokers, as the user wrote them."""
        return next((self.kafka[key] for key in BOOTSTRAP if self.kafka.get(key)), "")

    def redacted(self) -> dict[str, object]:
        """Return all settings by name, with secrets replaced by `[hidden]`."""
        shown: dict[str, object] = {
            setting.name: getattr(self, setting.name) for setting in SETTINGS
        }
        if self.oauth_token_provider is not None:
            # The repr of a functools.partial, for one, shows its arguments.
            shown["oauth_token_provider"] = redaction.HIDDEN
        shown["kafka"] = self.redacted_kafka()
        return shown

    def redacted_kafka(self) -> dict[str, str]:
        """Return librdkafka's configuration, with secrets replaced by `[hidden]`."""
        return redaction.redact_values(self.kafka)

    def restore_secrets(self, redacted: dict[str, str]) -> None:
        """Undo `redacted_kafka` in place, for each secret that is still hidden."""
        for key in self.secret_keys & redacted.keys():
            if redacted[key] == redaction.HIDDEN:
                redacted[key] = self.kafka[key]

    def redact(self, text: str) -> str:
        """Return a text from outside greendrop, with secrets of `kafka` replaced."""
        return redaction.redact(text, self.kafka, self.secret_keys)

    def __repr__(self) -> str:
        """Show the settings without secrets."""
        shown = ", ".join(f"{key}={value!r}" for key, value in self.redacted().items())
        return f"Settings({shown})"


class Setting(NamedTuple):
    """The description of one setting: a row of docs/reference/settings.md."""

    name: str
    default: object
    unit: str
    rule: str
    why: str
    #: WaterDrop's setting of the same purpose, and its default.
    waterdrop: str


_FIELDS = tuple(option for option in fields(Settings) if option.metadata)

#: The descriptions of all settings except `kafka`.
SETTINGS: tuple[Setting, ...] = tuple(
    Setting(
        name=option.name,
        default=option.default,
        unit=option.metadata["unit"],
        rule=option.metadata["rule"].text,
        why=option.metadata["why"],
        waterdrop=option.metadata["waterdrop"],
    )
    for option in _FIELDS
)

_RULES: dict[str, Rule] = {option.name: option.metadata["rule"] for option in _FIELDS}
_DEFAULTS: dict[str, object] = {option.name: option.default for option in _FIELDS}

# WaterDrop's options that its users may look for.
_ABSENT = {
    "wait_backoff_on_queue_full": "a sender wakes as soon as there is space, so there"
    " is no backoff; wait_timeout_on_queue_full limits the wait",
    "logger": "greendrop has no logger of its own; subscribe one to producer.monitor",
    "polling": "greendrop chooses the way of polling itself; producer.polling shows it",
}


def build_settings(
    kafka: Mapping[str, object] | None,
    options: Mapping[str, object],
    slot: int | None = None,
) -> Settings:
    """Check all settings, and return them with the defaults of those not given.

    Args:
        kafka: librdkafka's keys with text, numbers or booleans as values. The mapping
            is copied and not changed.
        options: greendrop's own settings by name.
        slot: The number of the producer's slot in a pool. If None, the slot that a pool
            is filling in this context, if any.

    Raises:
        ConfigurationInvalidError: Names every bad key at once, kafka's as `kafka.KEY`.
    """
    errors: dict[str, str] = {}
    checked = check_settings(options, errors)
    users = read_kafka(kafka, errors)
    slot = placeholders.current_slot.get() if slot is None else slot
    transactional_id = users.get("transactional.id", "")
    if mistake := placeholders.find_mistake(transactional_id, slot):
        errors["kafka.transactional.id"] = mistake
    objection = oauth_objection(users)
    if checked.get("oauth_token_provider") and objection:
        errors["oauth_token_provider"] = f"has no effect: {objection}"
    if errors:
        raise ConfigurationInvalidError(errors)
    transactional = bool(transactional_id)
    merged = with_defaults(users, transactional=transactional)
    checked.setdefault("id", f"greendrop-{uuid.uuid4().hex[:12]}")
    return Settings(
        kafka=MappingProxyType(merged),
        user_sets_linger=sets_linger(users),
        queue_limit=queue_messages(users),
        queue_bytes=queue_bytes(users),
        transactional=transactional,
        idempotent=transactional or is_true(merged.get("enable.idempotence")),
        uses_oauth=uses_oauth(users),
        secret_keys=frozenset(
            key for key, value in merged.items() if redaction.is_secret(key, value)
        ),
        slot=slot,
        no_effect=(
            *(
                (reason, tuple(f"kafka.{key}" for key in keys))
                for reason, keys in kafka_checks.find_no_effect(users)
            ),
            *(found for found in _find_no_effect(checked, merged) if found[1]),
        ),
        **checked,
    )


def check_settings(
    options: Mapping[str, object], errors: dict[str, str]
) -> dict[str, Any]:
    """Check greendrop's own settings, and return them converted, without defaults.

    Args:
        options: The settings by name.
        errors: Receives each mistake, by name.
    """
    checked: dict[str, Any] = {}
    for name, value in options.items():
        rule = _RULES.get(name)
        if rule is None:
            errors[name] = _unknown_setting(name)
            continue
        try:
            checked[name] = rule.convert(value)
        except InvalidValueError as error:
            errors[name] = str(error)
    return checked


def _find_no_effect(
    checked: Mapping[str, Any], kafka: Mapping[str, str]
) -> Iterator[NoEffect]:
    """Find the settings that other settings make ineffective.

    Args:
        checked: The user's settings. One with the value of its default needs no
            warning.
        kafka: librdkafka's configuration with defaults.
    """
    changed = [name for name in checked if checked[name] != _DEFAULTS[name]]
    of_transactions = tuple(name for name in changed if "_transaction_" in name)
    of_recovery = tuple(
        name for name in changed if name.endswith("_on_idempotent_fatal_error")
    )
    if kafka.get("transactional.id"):
        reason = "a transactional producer has settings of its own for this"
        yield reason, of_recovery
    else:
        yield "there is no kafka.transactional.id", of_transactions
        if not is_true(kafka.get("enable.idempotence")):
            yield "kafka.enable.idempotence is not true", of_recovery
        elif not checked.get("reload_on_idempotent_fatal_error", False):
            yield "reload_on_idempotent_fatal_error is False", of_recovery
    if not checked.get("wait_on_queue_full", True):
        names = ["wait_timeout_on_queue_full", "instrument_on_wait_queue_full"]
        reason = "wait_on_queue_full is False"
        yield reason, tuple(name for name in names if name in changed)
    if kafka.get("statistics.interval.ms") == "0" and "statistics_deltas" in changed:
        yield "kafka.statistics.interval.ms is 0", ("statistics_deltas",)


def _unknown_setting(name: str) -> str:
    if name in _ABSENT:
        return f"no such setting: {_ABSENT[name]}"
    if hint := setting_hint(name):
        return f"no such setting; {hint}"
    near = get_close_matches(name, [*_RULES, "kafka"], 1)
    if near:
        return f"no such setting; did you mean {near[0]!r}?"
    return "no such setting; librdkafka's keys go into kafka={...}"
