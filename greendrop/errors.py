"""Every exception of greendrop, in one tree.

    GreendropError
    ├── ProduceError                    a message was not sent, not delivered, or maybe
    │   ├── NotSentError                nothing was sent
    │   │   ├── MessageInvalidError     the message was refused
    │   │   ├── MiddlewareError         a step of the middleware failed
    │   │   ├── QueueFullError          the queue is full; try again
    │   │   ├── OAuthTokenError         there was no token to connect with
    │   │   ├── ConfigurationInvalidError  settings were refused
    │   │   ├── ProducerNotConfiguredError  used before setup
    │   │   ├── ProducerClosedError     used after close
    │   │   ├── ProducerUsedInParentProcessError  used across a fork; call reset()
    │   │   ├── PoolTimeoutError        no producer of a pool became free in time
    │   │   ├── PoolClosedError         the pool was closed
    │   │   └── PoolNotConfiguredError  there is no default pool
    │   ├── NotDeliveredError           final: it will not be delivered
    │   │   └── DeliveryError           librdkafka has given up on the message
    │   │       └── MessagePurgedError  it was dropped before it was acknowledged
    │   ├── OutcomeUnknownError         it may have been delivered, or may be still
    │   │   ├── DeliveryTimeoutError    no delivery report yet
    │   │   │   └── FlushTimeoutError   `flush` ended before all messages had one
    │   │   └── ReportLostError         there will never be one
    │   ├── IllegalWaitError            waiting here could never end
    │   ├── TransactionError            a transaction was not, or maybe not, committed
    │   │   ├── TransactionAbortedError a NotDeliveredError: nothing will be visible
    │   │   │   └── TransactionBusyError  it did not begin: another one did not end
    │   │   └── TransactionUnknownError an OutcomeUnknownError: may be committed
    │   └── ProduceManyError            a batch failed; carries what was dispatched
    ├── VariantInvalidError             a variant refused; the producer stays as it is
    ├── ProducerAlreadyConfiguredError  second setup
    ├── EventNotRegisteredError         no event of that name
    ├── StatisticsNotEnabledError       subscribed to statistics too late
    ├── MessagesAbandonedError          close did not deliver some messages
    ├── AbortTransaction                raised by the program, to roll back silently
    ├── ProducerNotTransactionalError   a transaction without a transactional.id
    ├── TransactionRequiredError        consumed messages marked outside of one
    ├── TransactionalOffsetInvalidError an object to be marked is no consumed message
    ├── ProducerTransactionalCloseAttemptError  closed in its own transaction
    └── BrokerError                     an error of librdkafka or a broker, as a cause

Everything that a produce, tombstone, buffer or flush verb raises about messages is a
`ProduceError`. Its three branches and `message_state` say what became of the message.

All errors pickle, with their cause, whatever they carry. JSON results of Celery have
only class and `args`, without cause and handles. No text holds a payload or a secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from greendrop import _pickling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "AbortTransaction",
    "BrokerError",
    "ConfigurationInvalidError",
    "DeliveryError",
    "DeliveryTimeoutError",
    "EventNotRegisteredError",
    "FlushTimeoutError",
    "GreendropError",
    "IllegalWaitError",
    "MessageInvalidError",
    "MessagePurgedError",
    "MessageState",
    "MessagesAbandonedError",
    "MiddlewareError",
    "NotDeliveredError",
    "NotSentError",
    "OAuthTokenError",
    "OutcomeUnknownError",
    "PoolClosedError",
    "PoolNotConfiguredError",
    "PoolTimeoutError",
    "ProduceError",
    "ProduceManyError",
    "ProducerAlreadyConfiguredError",
    "ProducerClosedError",
    "ProducerNotConfiguredError",
    "ProducerNotTransactionalError",
    "ProducerTransactionalCloseAttemptError",
    "ProducerUsedInParentProcessError",
    "QueueFullError",
    "ReportLostError",
    "StatisticsNotEnabledError",
    "TransactionAbortedError",
    "TransactionBusyError",
    "TransactionError",
    "TransactionRequiredError",
    "TransactionUnknownError",
    "TransactionalOffsetInvalidError",
    "VariantInvalidError",
]

#: The state of a message: see `ProduceError.message_state`.
MessageState: TypeAlias = Literal["not_sent", "not_delivered", "unknown"]


def _rebuild(
    cls: type[GreendropError],
    args: tuple[object, ...],
    state: dict[str, object],
    cause: BaseException | None,
) -> GreendropError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    error.__cause__ = cause
    return error


def _picklable_cause(cause: BaseException | None) -> BaseException | None:
    """Return a cause that pickles: the cause itself, or an error with its text."""
    if cause is None or isinstance(cause, GreendropError) or _pickling.survives(cause):
        return cause
    substitute = GreendropError(_pickling.text_of(cause))
    substitute.__cause__ = cause.__cause__
    return substitute


class GreendropError(Exception):
    """Anything that greendrop raises by itself."""

    _always_pickles = True

    def __str__(self) -> str:
        """Return the text; without the other values that the error carries."""
        return str(self.args[0]) if self.args else ""

    def add(self, text: str) -> None:
        """Have the text end with something more."""
        self.args = (f"{self}; {text}", *self.args[1:])

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with attributes and cause, whatever the constructor takes.

        What does not pickle itself is replaced: attributes by their repr, a cause by a
        `GreendropError` that has the cause's repr as its text.
        """
        state = {key: _pickling.picklable(it) for key, it in self.__dict__.items()}
        cause = _picklable_cause(self.__cause__)
        return _rebuild, (type(self), _pickling.picklable(self.args), state, cause)

    def __copy__(self) -> GreendropError:
        """Return another error with the same attributes and cause."""
        return _rebuild(type(self), self.args, self.__dict__, self.__cause__)


class _FieldsError(GreendropError):
    """Several fields are wrong; the text names all of them."""

    #: Field name (dotted for nested ones) -> what is wrong with it.
    errors: dict[str, str]

    def __init__(self, errors: Mapping[str, str], *more: str) -> None:
        self.errors = dict(errors)
        super().__init__(self.errors, *more)

    def __str__(self) -> str:
        """Return all mistakes in one line."""
        mistakes = (f"{key}: {text}" for key, text in self.errors.items())
        return "; ".join((*mistakes, *self.args[1:]))

    def add(self, text: str) -> None:
        """Have the text end with something more."""
        self.args = (*self.args, text)


class BrokerError(GreendropError):
    """An error that librdkafka or a broker reported; the cause of other errors.

    Attributes:
        code: Kafka's error number; negative for librdkafka's own.
        name: Kafka's name of it, such as `MESSAGE_TOO_LARGE`; of librdkafka's own
            errors its name, such as `_MSG_TIMED_OUT`.
        fatal: The client can't go on; it must be replaced.
        retriable: The same operation may succeed later.
        abortable: The transaction must be aborted; then the client can go on.
    """

    code: int
    name: str
    fatal: bool
    retriable: bool
    abortable: bool

    def __init__(
        self,
        text: str,
        code: int,
        name: str,
        *,
        fatal: bool = False,
        retriable: bool = False,
        abortable: bool = False,
    ) -> None:
        self.code = code
        self.name = name
        self.fatal = fatal
        self.retriable = retriable
        self.abortable = abortable
        super().__init__(text, code, name)


class ProduceError(GreendropError):
    """A message was not sent, was not delivered, or perhaps was.

    `message_state` and the subclass say which. `code`, `name`, `fatal`, `retriable` and
    `abortable` are those of the `BrokerError` that caused it, or None and False.
    """

    #: True if the broker rejected the whole batch that librdkafka had put the message
    #: in, for this message or another one, and stored none of the batch. Sending the
    #: message again, by itself, can't duplicate it.
    batch_rejected: bool = False

    _message_state: MessageState = "unknown"

    @property
    def message_state(self) -> MessageState:
        """The state of the message.

        - "not_sent": nothing was sent, so sending it again can't duplicate it.
        - "not_delivered": it will not be delivered. As far as the error shows, no
          broker has stored it: it was refused, or never sent.
        - "unknown": it may have been delivered, or may be still. Sending it again may
          store it twice.
        """
        return self._message_state

    @property
    def code(self) -> int | None:
        """Kafka's number of the error that caused this one."""
        reason = _broker_error_behind(self)
        return None if reason is None else reason.code

    @property
    def name(self) -> str | None:
        """Kafka's name of the error that caused this one."""
        reason = _broker_error_behind(self)
        return None if reason is None else reason.name

    @property
    def fatal(self) -> bool:
        """Whether the client behind it can't go on."""
        reason = _broker_error_behind(self)
        return reason is not None and reason.fatal

    @property
    def retriable(self) -> bool:
        """Whether the same operation may succeed later."""
        reason = _broker_error_behind(self)
        return reason is not None and reason.retriable

    @property
    def abortable(self) -> bool:
        """Whether the transaction around it must be aborted."""
        reason = _broker_error_behind(self)
        return reason is not None and reason.abortable


def _broker_error_behind(error: BaseException) -> BrokerError | None:
    cause = error.__cause__
    while cause is not None and not isinstance(cause, BrokerError):
        cause = cause.__cause__
    return cause


class NotSentError(ProduceError):
    """Nothing was sent. Sending the message again can't duplicate it."""

    _message_state = "not_sent"


class MessageInvalidError(_FieldsError, NotSentError):
    """A message breaks the rules. Nothing was sent; `errors` names every bad field."""


class MiddlewareError(NotSentError):
    """A step of the middleware raised or returned no message. Nothing was sent.

    The exception that it raised is the cause.
    """

    #: The step's name.
    step: str

    def __init__(self, text: str, step: str) -> None:
        self.step = step
        super().__init__(text, step)


class QueueFullError(NotSentError):
    """librdkafka's queue is full. Nothing was queued; try the message again."""


class OAuthTokenError(NotSentError):
    """There was no OAuth token to connect with. Nothing was queued; try again.

    The exception that the provider raised is the cause: its text is in no other place.
    """


class ConfigurationInvalidError(_FieldsError, NotSentError):
    """Settings are wrong. Nothing was opened; `errors` names every bad key."""


class ProducerNotConfiguredError(NotSentError):
    """The producer was used before `setup`. Nothing was sent."""


class ProducerClosedError(NotSentError):
    """The producer is closing or closed. This message was not sent."""


class ProducerUsedInParentProcessError(NotSentError):
    """The producer was used before this process was forked. Nothing was sent.

    The parent's connection can't be shared. Call `producer.reset()` in the child,
    or use the producer for the first time only after the fork.
    """


class PoolTimeoutError(NotSentError, TimeoutError):
    """All producers of a pool were in use for too long. Nothing was sent."""


class PoolClosedError(NotSentError):
    """The pool was closed, before or while waiting for a producer. Nothing was sent."""


class PoolNotConfiguredError(NotSentError):
    """There is no default pool. Nothing was sent; call `set_default_pool` first."""


class NotDeliveredError(ProduceError):
    """The message was not acknowledged, and will not be sent any more.

    `message_state` is "not_delivered"; or "unknown" if the message may have been sent,
    so that a broker may have stored it and only the acknowledgement was lost.
    """

    _message_state: MessageState = "not_delivered"


class DeliveryError(NotDeliveredError):
    """librdkafka has given up on the message and will not send it any more.

    `message_state` is "not_delivered" if a broker refused the message or librdkafka
    never sent it, and "unknown" if a broker may have stored it, as after a lost
    connection or a timeout.
    """

    def __init__(
        self, text: str, message_state: MessageState = "not_delivered"
    ) -> None:
        self._message_state = message_state
        super().__init__(text, message_state)


class MessagePurgedError(DeliveryError):
    """The message was dropped: by a forced close, a purge or an aborted transaction."""


class OutcomeUnknownError(ProduceError):
    """The message may have been delivered, or may be still.

    Sending it again may therefore deliver it twice.
    """

    _message_state = "unknown"


class DeliveryTimeoutError(OutcomeUnknownError, TimeoutError):
    """No delivery report yet. The message may still be delivered.

    Sending it again may therefore deliver it twice.
    """


class FlushTimeoutError(DeliveryTimeoutError):
    """`flush` ended with messages in flight. They may still be delivered."""

    #: How many messages have no delivery report yet.
    count: int

    def __init__(self, text: str, count: int) -> None:
        self.count = count
        super().__init__(text, count)


class ReportLostError(OutcomeUnknownError):
    """The delivery report was lost. The message may have been delivered.

    A signal handler, such as that of Ctrl-C, raised an exception at the moment when the
    message's report came in.
    """


class IllegalWaitError(ProduceError, RuntimeError):
    """Waiting here could never end: in the hub, or in a listener of this producer.

    `message_state` is "not_sent", or "unknown" if the message was queued: then only the
    wait for its delivery was refused.
    """

    def __init__(self, text: str, message_state: MessageState = "not_sent") -> None:
        self._message_state = message_state
        super().__init__(text, message_state)


class TransactionError(ProduceError):
    """A transaction, with all of its messages, was not committed; or maybe it was.

    The subclass says which. The cause is what librdkafka or a broker said.
    """


class TransactionAbortedError(TransactionError, NotDeliveredError):
    """Nothing of the transaction is visible to `read_committed` consumers, for good.

    It was rolled back, or never begun. If rolling back failed, the brokers do it when
    the next transaction begins, or after `transaction.timeout.ms`.
    """


class TransactionBusyError(TransactionAbortedError, TimeoutError):
    """The transaction did not begin: that of another task did not end in time.

    Raised at once when that other task is waiting for this one.
    """


class TransactionUnknownError(TransactionError, OutcomeUnknownError):
    """The commit failed while it was under way, and may have happened all the same.

    All of the transaction is visible, or nothing. Running it again may do it twice.
    """


class ProduceManyError(ProduceError):
    """A batch failed, in part or as a whole. The cause is the first error met.

    Attributes:
        dispatched: The handles of the messages that were queued, in order. Each
            has its own outcome. Empty if the batch was rolled back.
        rolled_back: The handles of messages that were queued in a transaction of the
            batch's own, which was rolled back: whatever they say, nothing is visible.
        failed_index: Index in the batch of the message that the cause is about; 0 if
            it is about all of them.
    """

    dispatched: tuple[Any, ...]
    rolled_back: tuple[Any, ...]
    failed_index: int

    def __init__(
        self,
        text: str,
        failed_index: int,
        dispatched: Sequence[Any] = (),
        rolled_back: Sequence[Any] = (),
    ) -> None:
        self.dispatched = tuple(dispatched)
        self.rolled_back = tuple(rolled_back)
        self.failed_index = failed_index
        super().__init__(text, failed_index)

    @property
    def message_state(self) -> MessageState:
        """The state that is true of all messages of the batch.

        "unknown" if some were delivered, or are still in flight: each handle of
        `dispatched` has its own outcome.
        """
        if self.rolled_back:
            return "not_delivered"
        states = [_state_of(self.__cause__)] if self.__cause__ is not None else []
        states += [_state_of(handle.error) for handle in self.dispatched]
        return max(states, default="unknown", key=_STATES.index)


# From the most to the least certain.
_STATES: tuple[MessageState, ...] = ("not_sent", "not_delivered", "unknown")


def _state_of(error: BaseException | None) -> MessageState:
    return error.message_state if isinstance(error, ProduceError) else "unknown"


# Errors of an attempt to send. An event reports each, and a batch raises them as the
# cause of a `ProduceManyError`. The other `ProduceError`s say that nothing was tried.
SENDING_ERRORS: tuple[type[ProduceError], ...] = (
    QueueFullError,
    OAuthTokenError,
    NotDeliveredError,
    OutcomeUnknownError,
    TransactionError,
    ProduceManyError,
)


class VariantInvalidError(_FieldsError):
    """The settings of a variant are wrong. The producer itself stays usable."""


class ProducerAlreadyConfiguredError(GreendropError):
    """`setup` was called a second time. The first configuration stays."""


class EventNotRegisteredError(GreendropError):
    """There is no event of that name."""


class StatisticsNotEnabledError(GreendropError):
    """Statistics were off when the client was built, so none will be emitted.

    Subscribe to `statistics.emitted` before the first message.
    """


class MessagesAbandonedError(GreendropError):
    """`close` did not deliver some messages. The producer is closed all the same.

    These are messages that had no outcome when `close` began, and buffered ones. What
    was dropped since the time was over fails with `MessagePurgedError`; if it was in
    flight the broker may have stored it. The cause is the first error among the others.
    """

    #: How many messages were not delivered.
    count: int
    #: The buffered ones among them, as they were buffered: nothing else knows of them.
    buffered: tuple[Any, ...]

    def __init__(self, text: str, count: int, buffered: Sequence[Any] = ()) -> None:
        self.count = count
        self.buffered = tuple(buffered)
        super().__init__(text, count)


class AbortTransaction(GreendropError):  # noqa: N818 - a word of the program, no error
    """Raised in the block of a transaction, to roll it back and leave the block.

    It ends there: the block is left as if nothing had been raised.
    """


class ProducerNotTransactionalError(GreendropError):
    """A transaction on a producer without a `transactional.id`. Nothing was begun."""


class TransactionRequiredError(GreendropError):
    """A message was marked as consumed outside of a transaction. Nothing was sent."""


class TransactionalOffsetInvalidError(_FieldsError):
    """An object can't be marked as consumed, or its consumer is none. Nothing was sent.

    The transaction goes on; `errors` names each bad argument.
    """


class ProducerTransactionalCloseAttemptError(GreendropError):
    """`close` was called inside the producer's own transaction. It stays open."""
