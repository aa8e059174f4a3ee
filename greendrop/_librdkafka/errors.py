"""The translation of librdkafka's errors into greendrop's.

Errors get Kafka's names and texts that say what became of the message, and why; often
librdkafka says the reason only in its log. Error objects are used as they come; this
module imports nothing of confluent-kafka.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

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
    from collections.abc import Callable

#: librdkafka's reports of messages that it dropped. It also calls a message "queued"
#: that waits to be sent again because its answer was lost.
_PURGED = {
    error_codes.PURGE_QUEUE: "still queued; if it had been sent before, the broker may"
    " have it",
    error_codes.PURGE_INFLIGHT: "in flight, so the broker may have stored it",
}

#: Errors for which a broker rejects a whole batch because of one record in it. Kafka
#: checks all records of a batch before it stores the first.
_REJECTS_BATCH = {
    error_codes.MESSAGE_TOO_LARGE,
    error_codes.RECORD_LIST_TOO_LARGE,
    error_codes.INVALID_TIMESTAMP,
    error_codes.INVALID_RECORD,
    error_codes.INVALID_DIFFERENT_RECORD,
}

# Such as FAIL [rdkafka#producer-1] [thrd:x]: 127.0.0.1:9/bootstrap: Disconnected ...
_FAIL_LINE = re.compile(r"FAIL .*?\]: (.*)", re.DOTALL)


class NativeError(Protocol):
    """What is used of a `confluent_kafka.KafkaError`."""

    def code(self) -> int:
        """Kafka's number of it."""
        ...

    def name(self) -> str:
        """The name that librdkafka has for it."""
        ...

    def str(self) -> str:
        """Its text."""
        ...

    def fatal(self) -> bool:
        """Whether the client can't go on."""
        ...

    def retriable(self) -> bool:
        """Whether the same may succeed later."""
        ...

    def txn_requires_abort(self) -> bool:
        """Whether the transaction must be aborted."""
        ...


class ErrorTranslator:
    """The errors of one client, and what its brokers last complained of.

    Args:
        fatal_error: Gives code and text of the error that ended the client, if any.
        name_of: Gives librdkafka's name of an error's number.
        redact: Returns a text without its secrets.
    """

    def __init__(
        self,
        fatal_error: Callable[[], tuple[int, str] | None],
        name_of: Callable[[int], str],
        redact: Callable[[str], str],
    ) -> None:
        self._fatal_error = fatal_error
        self._name_of = name_of
        self._redact = redact
        #: The last complaint since the last good report, in librdkafka's words.
        self.last_error: str | None = None
        # It came as an error, and not only in the log or as "all brokers down".
        self._is_the_reason = False
        #: Whether any message was delivered.
        self.has_delivered = False
        #: How many messages failed that librdkafka had taken.
        self.failed = 0
        #: How many of them librdkafka dropped. Any of these may have been sent before,
        #: and stored: librdkafka counts a message that waits for a retry as queued.
        self.purged_by_librdkafka = 0
        #: The first failure of a message since this was last set to None. A message
        #: that was dropped gives way to one that failed by itself: most are dropped
        #: because another one has failed.
        self.first_failure: DeliveryError | None = None

    def clear_last_error(self) -> None:
        """Forget the last complaint: a message was delivered."""
        self.has_delivered = True
        self.last_error = None
        self._is_the_reason = False

    def translate(self, error: NativeError) -> BrokerError:
        """Turn librdkafka's error into ours."""
        code, name, text = error.code(), error.name(), self._redact(error.str())
        fatal = error.fatal()
        # The generic code hides the real one, which the client knows.
        real = self._fatal_error() if code == error_codes.FATAL else None
        if real is not None:
            code, text = real[0], self._redact(real[1])
            name, fatal = self._name_of(code), True
        name = kafka_name(name)
        return BrokerError(
            f"{text} ({name}, {code})",
            code=code,
            name=name,
            fatal=fatal,
            # librdkafka says no, although nothing is wrong with the message.
            retriable=error.retriable() or code == error_codes.INVALID_DIFFERENT_RECORD,
            abortable=error.txn_requires_abort(),
        )

    def fatal(self) -> BrokerError | None:
        """Give the error that ended the client, if one has."""
        real = self._fatal_error()
        if real is None:
            return None
        code, text = real
        name = kafka_name(self._name_of(code))
        return BrokerError(f"{text} ({name}, {code})", code=code, name=name, fatal=True)

    def client_error(self, error: NativeError) -> BrokerError:
        """Turn an error of the client as a whole into ours, and remember it."""
        told = self.translate(error)
        # "All brokers are down" comes after, and hides, the reason why.
        if told.code != error_codes.ALL_BROKERS_DOWN:
            self.last_error = str(told)
            self._is_the_reason = True
        elif self.last_error is None:
            self.last_error = str(told)
        return told

    def note_log_line(self, line: str) -> None:
        """Take the reason why a broker is down, if nothing better is known.

        A plaintext client at a TLS port is just cut off: of that librdkafka only logs.
        """
        failure = _FAIL_LINE.match(line)
        if failure is None or self._is_the_reason:
            return
        self.last_error = self._redact(failure[1])
        if "APIVERSION_QUERY" in line or "SSL_HANDSHAKE" in line:
            self.last_error += "; is security.protocol right?"

    def delivery_error(
        self, topic: str, error: NativeError, partition: int | None
    ) -> DeliveryError:
        """Turn, and count, the error of one message into ours."""
        self.failed += 1
        return self._remembered(self._verdict(topic, error, partition))

    def _verdict(
        self, topic: str, error: NativeError, partition: int | None
    ) -> DeliveryError:
        cause = self.translate(error)
        if cause.code in _PURGED:
            self.purged_by_librdkafka += 1
            text = f"{_named(topic)} was dropped, {_PURGED[cause.code]}"
            return _caused(MessagePurgedError, text, cause)
        text = f"{_named(topic)} was not delivered: {cause}"
        if cause.code in _REJECTS_BATCH:
            return _rejected_with_batch(text, cause)
        if self.last_error is not None and self.last_error not in text:
            text += f"; last broker error: {self.last_error}"
        elif cause.code == error_codes.MSG_TIMED_OUT and (
            partition is None or partition < 0
        ):
            # It never got a partition: no broker told of any.
            text += "; the topic is unknown to the brokers, and was not created"
        return _caused(DeliveryError, text, cause)

    def purged(self, topic: str) -> DeliveryError:
        """Make the error of a message that was dropped before librdkafka had it."""
        text = f"{_named(topic)} was dropped, still queued"
        return self._remembered(_caused(MessagePurgedError, text, None))

    def report_lost(self, topic: str) -> ReportLostError:
        """Tell that the report on a message was lost on its way to its handle."""
        text = (
            f"the report on {_named(topic)} was lost to an exception that a signal"
            " handler raised; the broker may have the message"
        )
        return ReportLostError(text)

    def enqueue_error(self, topic: str, cause: Exception) -> DeliveryError:
        """Make the error of a message that librdkafka did not accept."""
        why = _wording.reason(cause)
        if (
            isinstance(cause, BrokerError)
            and cause.code == error_codes.MESSAGE_TOO_LARGE
        ):
            # librdkafka's own text blames the broker, which has not seen it.
            why = (
                "librdkafka counts more bytes than its message.max.bytes allows"
                f" ({cause.name}, {cause.code})"
            )
        text = f"{_named(topic)} was not queued: {why}"
        return self._remembered(_caused(DeliveryError, text, cause))

    def _remembered(self, error: DeliveryError) -> DeliveryError:
        before = self.first_failure
        by_itself = not isinstance(error, MessagePurgedError)
        if before is None or (by_itself and isinstance(before, MessagePurgedError)):
            self.first_failure = error
        return error


def _rejected_with_batch(text: str, cause: BrokerError) -> DeliveryError:
    reason = "for this message or another one in it"
    if cause.code == error_codes.INVALID_DIFFERENT_RECORD:
        reason = "for another message in it"
    text += (
        f"; the broker rejected the whole batch {reason}, and stored none of the batch"
    )
    error = _caused(DeliveryError, text, cause)
    error.batch_rejected = True
    return error


def _named(topic: str) -> str:
    return f"a message to {topic!r}"


def _caused(
    kind: type[DeliveryError], text: str, cause: Exception | None
) -> DeliveryError:
    error = kind(text)
    error.__cause__ = cause
    return error
