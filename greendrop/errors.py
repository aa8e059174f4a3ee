"""Every exception of greendrop, in one tree.

    GreendropError
    ├── ConfigurationInvalidError       settings refused; nothing was built
    ├── MessageInvalidError             message refused; nothing was sent
    ├── VariantInvalidError             a variant refused; the producer stays as it is
    ├── MiddlewareError                 a step failed; nothing was sent
    ├── ProducerNotConfiguredError      used before setup
    ├── ProducerAlreadyConfiguredError  second setup
    ├── ProducerClosedError             used after close; this message was not sent
    ├── ProducerUsedInParentProcessError  used across a fork; call reset() first
    ├── EventNotRegisteredError         no event of that name
    ├── StatisticsNotEnabledError       subscribed to statistics too late
    ├── IllegalWaitError                waiting here could never end
    ├── MessagesAbandonedError          close did not deliver some messages
    ├── PoolTimeoutError                no producer of a pool became free in time
    ├── PoolClosedError                 the pool was closed
    ├── PoolNotConfiguredError          there is no default pool
    ├── AbortTransaction                raised by the program, to roll back silently
    ├── ProducerNotTransactionalError   a transaction without a transactional.id
    ├── TransactionRequiredError        consumed messages marked outside of one
    ├── TransactionalOffsetInvalidError what was to be marked is no consumed message
    ├── ProducerTransactionalCloseAttemptError  closed in its own transaction
    ├── BrokerError                     what librdkafka or a broker said, as a cause
    └── ProduceError                    a message was not sent, or not delivered
        ├── QueueFullError              not queued; try again
        ├── OAuthTokenError             not queued; there was no token to connect with
        ├── DeliveryError               final: not delivered
        │   └── MessagePurgedError      final: dropped before it was acknowledged
        ├── DeliveryTimeoutError        not known yet; may still be delivered
        ├── ReportLostError             never to be known; may have been delivered
        ├── TransactionError            a transaction was not, or maybe not, committed
        │   ├── TransactionAbortedError final: nothing of it will be visible
        │   │   └── TransactionBusyError  it did not begin: another one did not end
        │   └── TransactionUnknownError a commit without an answer: may be committed
        └── ProduceManyError            a batch failed; carries what was dispatched

All of them pickle, with their cause, whatever they carry. JSON results of Celery have
only class and `args`, without cause and handles. No text holds a payload or a secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greendrop import _pickling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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
        """Tell what happened; not what else the error carries."""
        return str(self.args[0]) if self.args else ""

    def add(self, text: str) -> None:
        """Have the text end with something more."""
        self.args = (f"{self}; {text}", *self.args[1:])

    def __reduce__(self) -> tuple[Any, ...]:
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
    """Several fields are wrong; all of them are told at once."""

    #: Field name (dotted for nested ones) -> what is wrong with it.
    errors: dict[str, str]

    def __init__(self, errors: Mapping[str, str], *more: str) -> None:
        self.errors = dict(errors)
        super().__init__(self.errors, *more)

    def __str__(self) -> str:
        """Tell all mistakes in one line."""
        mistakes = (f"{key}: {text}" for key, text in self.errors.items())
        return "; ".join((*mistakes, *self.args[1:]))

    def add(self, text: str) -> None:
        """Have the text end with something more."""
        self.args = (*self.args, text)


class ConfigurationInvalidError(_FieldsError):
    """Settings are wrong. Nothing was opened; `errors` names every bad key."""


class MessageInvalidError(_FieldsError):
    """A message breaks the rules. Nothing was sent; `errors` names every bad field."""


class VariantInvalidError(_FieldsError):
    """A variant may not be so. The producer it was to be made from stays usable."""


class MiddlewareError(GreendropError):
    """A step of the middleware raised, or gave no message. Nothing was sent.

    What it raised is the cause.
    """

    #: The step's name.
    step: str

    def __init__(self, text: str, step: str) -> None:
        self.step = step
        super().__init__(text, step)


class ProducerNotConfiguredError(GreendropError):
    """The producer was used before `setup`. Nothing was sent."""


class ProducerAlreadyConfiguredError(GreendropError):
    """`setup` was called a second time. The first configuration stays."""


class ProducerClosedError(GreendropError):
    """The producer is closing or closed. This message was not sent."""


class ProducerUsedInParentProcessError(GreendropError):
    """The producer was used before this process was forked. Nothing was sent.

    The parent's connection can't be shared. Call `producer.reset()` in the child,
    or use the producer for the first time only after the fork.
    """


class EventNotRegisteredError(GreendropError):
    """There is no event of that name."""


class StatisticsNotEnabledError(GreendropError):
    """Statistics were off when the client was built, so none will be emitted.

    Subscribe to `statistics.emitted` before the first message.
    """


class IllegalWaitError(GreendropError, RuntimeError):
    """Waiting here could never end: in the hub, or in a listener of this producer.

    A message that was being sent is queued all the same, unless the text says that
    nothing was sent.
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


class PoolTimeoutError(GreendropError, TimeoutError):
    """All producers of a pool were in use for too long. Nothing was sent."""


class PoolClosedError(GreendropError):
    """The pool was closed, before or while waiting for a producer. Nothing was sent."""


class PoolNotConfiguredError(GreendropError):
    """There is no default pool. Nothing was sent; call `set_default_pool` first."""


class AbortTransaction(GreendropError):  # noqa: N818 - a word of the program, no error
    """Raised in the block of a transaction, to roll it back and leave the block.

    It ends there: the block is left as if nothing had been raised.
    """


class ProducerNotTransactionalError(GreendropError):
    """A transaction on a producer without a `transactional.id`. Nothing was begun."""


class TransactionRequiredError(GreendropError):
    """A message was marked as consumed outside of a transaction. Nothing was sent."""


class TransactionalOffsetInvalidError(_FieldsError):
    """What was to be marked as consumed can't be. Nothing was sent.

    The transaction goes on; `errors` names each bad argument.
    """


class ProducerTransactionalCloseAttemptError(GreendropError):
    """The producer was to be closed inside its own transaction. It stays open."""


class BrokerError(GreendropError):
    """What librdkafka or a broker said. Found as the cause of other errors.

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
    """A message was not sent or not delivered; the subclass says which.

    `code`, `name`, `fatal`, `retriable` and `abortable` are those of the
    `BrokerError` behind it, if there is one, else None and False.
    """

    #: True if the broker rejected the whole batch that librdkafka had put the message
    #: in, for this message or another one, and stored none of the batch. Sending the
    #: message again, by itself, can't duplicate it.
    batch_rejected: bool = False

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


class QueueFullError(ProduceError):
    """librdkafka's queue is full. Nothing was queued; try the message again."""


class OAuthTokenError(ProduceError):
    """No OAuth token was to be had, so no connection. Nothing was queued; try again.

    What the provider raised is the cause: its text is in no other place.
    """


class DeliveryError(ProduceError):
    """The verdict is "not delivered": librdkafka has given up on the message.

    If it had been sent by then, and only the broker's answer was lost, the broker may
    have stored it all the same.
    """


class MessagePurgedError(DeliveryError):
    """The message was dropped: by a forced close, a purge or an aborted transaction."""


class DeliveryTimeoutError(ProduceError, TimeoutError):
    """No verdict yet. The message may still be delivered.

    Sending it again may therefore deliver it twice.
    """


class ReportLostError(ProduceError):
    """What became of the message will not be known. It may have been delivered.

    A signal handler, such as that of Ctrl-C, raised an exception at the moment when the
    message's report came in.
    """


class TransactionError(ProduceError):
    """A transaction, with all of its messages, was not committed; or maybe it was.

    The subclass says which. The cause is what librdkafka or a broker said.
    """


class TransactionAbortedError(TransactionError):
    """Nothing of the transaction is visible to `read_committed` consumers, for good.

    It was rolled back, or never begun. If rolling back failed, the brokers do it when
    the next transaction begins, or after `transaction.timeout.ms`.
    """


class TransactionBusyError(TransactionAbortedError, TimeoutError):
    """The transaction did not begin: that of another task did not end in time.

    Raised at once when that other task is waiting for this one.
    """


class TransactionUnknownError(TransactionError):
    """The commit was under way when it failed: nobody knows whether it happened.

    All of the transaction is visible, or nothing. Doing the same again may do it twice.
    """


class ProduceManyError(ProduceError):
    """A batch failed, in part or as a whole. The cause is the first error met.

    Attributes:
        dispatched: The handles of the messages that were queued, in order. Each
            tells its own verdict. Empty if the batch was rolled back.
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
