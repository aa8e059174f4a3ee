"""The error translator: maps librdkafka's error codes to greendrop's errors.

Errors get Kafka's names, and texts that say what became of the message and why. Often
librdkafka gives the reason only in its log.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from confluent_kafka import cimpl

from greendrop import _wording
from greendrop._librdkafka import error_codes
from greendrop._librdkafka.error_codes import kafka_name
from greendrop.errors import (
    BrokerError,
    DeliveryError,
    MessagePurgedError,
    ReportLostError,
)

if TYPE_CHECKING:
    from greendrop.config.settings import Settings
    from greendrop.errors import MessageState

#: Reports of messages that librdkafka dropped. "Queued" includes messages that
#: librdkafka would have sent again because the broker's answer was lost.
_PURGED = {
    error_codes.PURGE_QUEUE: "while it was queued; if it had been sent before, the"
    " broker may have stored it",
    error_codes.PURGE_INFLIGHT: "while it was in flight, so the broker may have stored"
    " it",
}

#: Errors of one record for which a broker rejects the whole batch: Kafka checks all
#: records of a batch before it stores the first one.
_REJECTS_BATCH = {
    error_codes.MESSAGE_TOO_LARGE,
    error_codes.RECORD_LIST_TOO_LARGE,
    error_codes.INVALID_TIMESTAMP,
    error_codes.INVALID_RECORD,
    error_codes.INVALID_DIFFERENT_RECORD,
}

#: Errors after which a broker may have the message: the request may have been executed
#: although no answer came, or none that made sense. librdkafka knows more, and marks
#: messages as "possibly persisted", but confluent-kafka does not show that.
_MAYBE_STORED = {
    error_codes.BAD_MSG,
    error_codes.DESTROY,
    error_codes.TRANSPORT,
    error_codes.MSG_TIMED_OUT,
    error_codes.TIMED_OUT,
    error_codes.SSL,
    error_codes.PURGE_QUEUE,
    error_codes.PURGE_INFLIGHT,
    error_codes.FATAL,
    error_codes.INCONSISTENT,
    error_codes.GAPLESS_GUARANTEE,
    error_codes.UNKNOWN_SERVER_ERROR,
    error_codes.REQUEST_TIMED_OUT,
    error_codes.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    # Of a second attempt, after the answer to the first one was lost.
    error_codes.OUT_OF_ORDER_SEQUENCE_NUMBER,
    error_codes.DUPLICATE_SEQUENCE_NUMBER,
}

#: OpenSSL's words for each reason to refuse a certificate, and the reasons that
#: librdkafka does not mention: its text only recommends to check ssl.ca.location.
_VERIFY_FAILED = "certificate verify failed"
_OTHER_REASONS = "the certificate may also have expired, or be for another host name"

# For example: FAIL [rdkafka#producer-1] [thrd:x]: 127.0.0.1:9/bootstrap: Disconnected
_FAIL_LINE = re.compile(r"FAIL .*?\]: (.*)", re.DOTALL)


def native_name(code: int) -> str:
    """Return librdkafka's name of an error code."""
    name: str = cimpl.KafkaError(code).name()
    return name


class NativeError(Protocol):
    """The methods of `confluent_kafka.KafkaError` that the translator calls."""

    def code(self) -> int:
        """Return the code of Kafka or librdkafka."""

    def name(self) -> str:
        """Return librdkafka's name of the error."""

    def str(self) -> str:
        """Return the text."""

    def fatal(self) -> bool:
        """Return whether the error ended the client."""

    def retriable(self) -> bool:
        """Return whether the same call may succeed later."""

    def txn_requires_abort(self) -> bool:
        """Return whether the transaction must be aborted."""


class FailingClient(Protocol):
    """A client that librdkafka may have ended by a fatal error."""

    def native_fatal_error(self) -> tuple[int, str] | None:
        """Return code and text of the fatal error, or None."""


class ErrorTranslator:
    """The translator of one client's errors, with the last error of its brokers.

    Args:
        settings: The settings of the client, with the secrets to redact.
        client: The client; None for one that sends no messages, and so can't fail.
    """

    def __init__(self, settings: Settings, client: FailingClient | None = None) -> None:
        self._client = client
        self._redact = settings.redact
        # A transaction with a failed message is aborted, so nothing of it is visible.
        self._is_transactional = settings.transactional
        #: librdkafka's text of the last broker error since a message was delivered.
        self.last_error: str | None = None
        # Whether `last_error` comes from an error of a broker, and not from the log or
        # from "all brokers are down".
        self._is_specific = False
        #: Whether a message was delivered.
        self.has_delivered = False
        #: Messages that failed after librdkafka had accepted them.
        self.failed = 0
        #: How many of them librdkafka dropped. A broker may have stored any of these,
        #: because librdkafka counts a message that waits for a retry as queued.
        self.purged_by_librdkafka = 0
        #: The first failure of a message since this was last set to None. The failure
        #: of a message that was not dropped replaces that of a dropped one, because
        #: most messages are dropped after another message has failed.
        self.first_failure: DeliveryError | None = None

    def _real_fatal_error(self) -> tuple[int, str] | None:
        return None if self._client is None else self._client.native_fatal_error()

    def clear_last_error(self) -> None:
        """Clear the last broker error, because a message was delivered."""
        self.has_delivered = True
        self.last_error = None
        self._is_specific = False

    def translate(self, error: NativeError) -> BrokerError:
        """Translate an error of librdkafka."""
        code, name, text = error.code(), error.name(), self._redact(error.str())
        fatal = error.fatal()
        # The generic code hides the actual error, which the client has.
        real = self._real_fatal_error() if code == error_codes.FATAL else None
        if real is not None:
            code, text = real[0], self._redact(real[1])
            name, fatal = native_name(code), True
        name = kafka_name(name)
        return BrokerError(
            f"{_with_other_reasons(text)} ({name}, {code})",
            code=code,
            name=name,
            fatal=fatal,
            # librdkafka doesn't call this retriable, although the message is valid.
            retriable=error.retriable() or code == error_codes.INVALID_DIFFERENT_RECORD,
            abortable=error.txn_requires_abort(),
        )

    def fatal(self) -> BrokerError | None:
        """Return the fatal error of the client, or None."""
        real = self._real_fatal_error()
        if real is None:
            return None
        code, text = real
        name = kafka_name(native_name(code))
        return BrokerError(f"{text} ({name}, {code})", code=code, name=name, fatal=True)

    def client_error(self, error: NativeError) -> BrokerError:
        """Translate an error of the whole client, and keep it as `last_error`."""
        translated = self.translate(error)
        # "All brokers are down" comes after the reason and must not replace it.
        if translated.code != error_codes.ALL_BROKERS_DOWN:
            self.last_error = str(translated)
            self._is_specific = True
        elif self.last_error is None:
            self.last_error = str(translated)
        return translated

    def note_log_line(self, line: str) -> None:
        """Keep a log line as `last_error` if it says why a broker is unreachable.

        An error of a broker has precedence. But of some failures librdkafka only logs,
        such as the disconnect of a plaintext client from a TLS port.
        """
        failure = _FAIL_LINE.match(line)
        if failure is None or self._is_specific:
            return
        self.last_error = _with_other_reasons(self._redact(failure[1]))
        if "APIVERSION_QUERY" in line or "SSL_HANDSHAKE" in line:
            self.last_error += "; is security.protocol right?"

    def delivery_error(
        self, topic: str, error: NativeError, partition: int | None
    ) -> DeliveryError:
        """Translate the error in the delivery report of a message, and count it."""
        self.failed += 1
        return self._keep_first(self._delivery_error(topic, error, partition))

    def _delivery_error(
        self, topic: str, error: NativeError, partition: int | None
    ) -> DeliveryError:
        cause = self.translate(error)
        was_routed = partition is not None and partition >= 0
        state = self._state(error.code(), was_routed=was_routed)
        if cause.code in _PURGED:
            self.purged_by_librdkafka += 1
            text = f"{_subject(topic)} was dropped {_PURGED[cause.code]}"
            return _new_error(MessagePurgedError, text, cause, state)
        text = f"{_subject(topic)} was not delivered: {cause}"
        if cause.code in _REJECTS_BATCH:
            return _rejected_with_batch(text, cause)
        if self.last_error is not None and self.last_error not in text:
            text += f"; last broker error: {self.last_error}"
        elif cause.code == error_codes.MSG_TIMED_OUT and not was_routed:
            # The message never got a partition, since no broker knows the topic.
            text += "; the topic is unknown to the brokers, and was not created"
        return _new_error(DeliveryError, text, cause, state)

    def _state(self, code: int, *, was_routed: bool) -> MessageState:
        """Return what the error of a message says about the message.

        Args:
            code: Of the error.
            was_routed: Whether the message had a partition. librdkafka sends none
                before that.
        """
        maybe_stored = was_routed and code in _MAYBE_STORED
        return (
            "unknown"
            if maybe_stored and not self._is_transactional
            else "not_delivered"
        )

    def purged(self, topic: str) -> DeliveryError:
        """Create the error of a message that was dropped before librdkafka had it."""
        text = f"{_subject(topic)} was dropped before it was sent"
        return self._keep_first(_new_error(MessagePurgedError, text, None))

    def report_lost(self, topic: str) -> ReportLostError:
        """Create the error of a message whose delivery report was lost."""
        text = (
            f"the delivery report of {_subject(topic)} was lost, because a signal"
            " handler raised an exception; the broker may have stored the message"
        )
        return ReportLostError(text)

    def enqueue_error(self, topic: str, cause: Exception) -> DeliveryError:
        """Create the error of a message that librdkafka did not accept."""
        why = _wording.reason(cause)
        if (
            isinstance(cause, BrokerError)
            and cause.code == error_codes.MESSAGE_TOO_LARGE
        ):
            # librdkafka's own text says "Broker", but no broker has seen the message.
            why = (
                "librdkafka counts more bytes than its message.max.bytes allows"
                f" ({cause.name}, {cause.code})"
            )
        text = f"{_subject(topic)} was not queued: {why}"
        return self._keep_first(_new_error(DeliveryError, text, cause))

    def _keep_first(self, error: DeliveryError) -> DeliveryError:
        first = self.first_failure
        was_purged = isinstance(error, MessagePurgedError)
        if first is None or (isinstance(first, MessagePurgedError) and not was_purged):
            self.first_failure = error
        return error


def _rejected_with_batch(text: str, cause: BrokerError) -> DeliveryError:
    reason = "for this message or another one in it"
    if cause.code == error_codes.INVALID_DIFFERENT_RECORD:
        reason = "for another message in it"
    text += (
        f"; the broker rejected the whole batch {reason}, and stored none of the batch"
    )
    error = _new_error(DeliveryError, text, cause)
    error.batch_rejected = True
    return error


def _with_other_reasons(text: str) -> str:
    return f"{text}; {_OTHER_REASONS}" if _VERIFY_FAILED in text else text


def _subject(topic: str) -> str:
    return f"a message to {topic!r}"


def _new_error(
    kind: type[DeliveryError],
    text: str,
    cause: Exception | None,
    state: MessageState = "not_delivered",
) -> DeliveryError:
    error = kind(text, state)
    error.__cause__ = cause
    return error
