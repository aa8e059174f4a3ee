"""Transaction blocks: either all messages of a block become visible, or none.

A `Transaction` is the object that a program has inside the block. The `coordinator`
begins and ends the transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

from greendrop import _concurrency, _pickling
from greendrop._transactions.coordinator import Offset
from greendrop.errors import (
    AbortTransaction,
    TransactionalOffsetInvalidError,
    TransactionRequiredError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Self

    from greendrop._transactions.coordinator import (
        OpenTransaction,
        Outcome,
        Transactions,
    )

__all__ = ["ConsumedMessage", "GroupConsumer", "Transaction"]

#: The type of the producer that made the transaction.
_P = TypeVar("_P")


class GroupConsumer(Protocol):
    """The part of a `confluent_kafka.Consumer` that transactions use."""

    def consumer_group_metadata(self) -> Any:  # noqa: ANN401 - an object of librdkafka
        """Return the metadata of the consumer group, for the brokers."""


class ConsumedMessage(Protocol):
    """The part of a consumed `confluent_kafka.Message` that transactions use."""

    def topic(self) -> str | None:
        """Return the topic of the message."""

    def partition(self) -> int | None:
        """Return the partition of the message."""

    def offset(self) -> int | None:
        """Return the offset of the message in its partition."""


class Transaction(_pickling.PerProcess, Generic[_P]):
    """A block whose messages are committed at its end, or rolled back.

    `Producer.transaction` makes the object, which can be entered once. All messages
    that the greenlet or thread sends in the block are part of the transaction,
    whichever method or variant of the producer sends them. A block inside of another
    transaction joins that one, and only the outer block commits.
    """

    def __init__(
        self,
        producer: _P,
        transactions: Transactions,
        seconds: float,
    ) -> None:
        #: The producer that made the transaction. Send with it if a pool chose the
        #: producer.
        self.producer = producer
        self._transactions = transactions
        self._seconds = seconds
        self._current: OpenTransaction | None = None
        self._joined = False

    def __enter__(self) -> Self:
        """Wait until no other task has a transaction, and begin.

        Raises:
            TransactionBusyError: The transaction of another greenlet or thread did not
                end within `max_wait_timeout`.
            TransactionAbortedError: The brokers refused to begin the transaction; the
                cause says why. The next transaction may succeed.
            ProducerClosedError, ProducerUsedInParentProcessError: See there.
            IllegalWaitError: In the hub itself, or in a listener of this producer.
            RuntimeError: The transaction was entered before.

        Blocking:
            Waits while another transaction is open, in the order of arrival. The first
            time, also waits until the brokers have ended a transaction that an earlier
            producer with the same `transactional.id` left open. Lets other greenlets
            run where the thread has a hub, else blocks the thread. For
            `max_wait_timeout` at most.
        """
        if self._current is not None:
            text = "a transaction can be entered once; transaction() makes a new one"
            raise RuntimeError(text)
        joined = self._transactions.current_for_task()
        if joined is None:
            self._current = self._transactions.begin(self._seconds)
        else:
            self._current = joined
            self._joined = True
        return self

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> bool:
        """Commit, or roll back if an exception leaves the block.

        The exception is raised again, even if the rollback fails. Only an
        `AbortTransaction` ends here.

        Raises:
            TransactionAbortedError: The transaction could not be committed, and was
                rolled back.
            TransactionUnknownError: The commit failed, and may have happened.

        Blocking:
            Waits for the delivery reports of all messages, and then for the brokers:
            for `max_wait_timeout` each at most. Lets other greenlets run where the
            thread has a hub, else blocks the thread. Delays an interrupt (Ctrl-C, a
            `gevent.Timeout`, the end of a greenlet) by 2 s at most.
        """
        if self._current is None:
            return False
        if self._joined:
            if error is not None:
                self._current.abort_reason = self._current.abort_reason or error
            return False
        try:
            return self._transactions.end(self._current, error)
        except BaseException:
            # A signal handler may have raised before `end` did anything.
            self.__del__()
            raise

    def __del__(self) -> None:
        """Abandon a transaction that was not ended when its block was left.

        A signal handler that raises at the very start of `__exit__` has this effect,
        since Python does not call that method again.
        """
        current = getattr(self, "_current", None)
        if current is not None and not self._joined and not current.is_over:
            self._transactions.abandon(current)

    @property
    def outcome(self) -> Outcome | None:
        """The outcome: "committed", "aborted" or "unknown"; None while it is open.

        "unknown" after a `TransactionUnknownError`, or when the commit was interrupted.
        """
        current = self._current
        return current.outcome if current is not None and current.is_over else None

    def abort(self) -> NoReturn:
        """Leave the block by raising `AbortTransaction`, and roll back.

        The exception ends with the block. If code inside of the block catches the
        exception, the transaction is still rolled back at the end of the block. Inside
        of an outer transaction, that one is rolled back.

        Raises:
            AbortTransaction: Always.
            TransactionRequiredError: The transaction is not open, or it is that of
                another greenlet or thread.
        """
        current = self._open("abort")
        text = "the program has aborted the transaction"
        # A second exception: the traceback of the one raised here would keep this
        # object alive.
        current.abort_reason = current.abort_reason or AbortTransaction(text)
        raise AbortTransaction(text)

    def mark_as_consumed(
        self,
        consumer: GroupConsumer,
        message: ConsumedMessage,
        metadata: str | None = None,
    ) -> None:
        """Commit the offset of a consumed message with the transaction.

        If the transaction is committed, the consumer's group continues after the
        message. The consumer must not commit offsets itself (`enable.auto.commit` is
        False).

        Args:
            consumer: The `confluent_kafka.Consumer` that has read the message.
            message: The message that the consumer returned.
            metadata: Text to be stored with the offset.

        Raises:
            TransactionRequiredError: The caller is outside of the block, or in another
                greenlet or thread.
            TransactionalOffsetInvalidError: Names each bad argument. The transaction
                goes on.
            TransactionAbortedError: The brokers refused, for example because another
                consumer has the partition by now. The transaction will be rolled back.

        Blocking:
            Waits for the brokers, for `max_wait_timeout` at most. Lets other greenlets
            run where the thread has a hub, else blocks the thread.
        """
        self.mark_many_as_consumed(consumer, (message,), metadata)

    def mark_many_as_consumed(
        self,
        consumer: GroupConsumer,
        messages: Iterable[ConsumedMessage],
        metadata: str | None = None,
    ) -> None:
        """Commit the offsets of many consumed messages with the transaction.

        One request covers the messages of all partitions. In each partition the message
        with the highest offset counts, in whatever order the messages are passed.

        Raises, Blocking:
            As `mark_as_consumed`.
        """
        current = self._open("mark messages as consumed in")
        last = _last_of_each(consumer, messages, metadata)
        if not last:
            return
        started = _concurrency.monotonic()
        try:
            group = consumer.consumer_group_metadata()
        except RuntimeError as error:  # the consumer is closed
            errors = {"consumer": str(error)}
            raise TransactionalOffsetInvalidError(errors) from error
        self._transactions.send_offsets(current, list(last), group)
        for message in last.values():
            self._transactions.emit_consumed(message, metadata, started)

    def _open(self, action: str) -> OpenTransaction:
        current = self._current
        if current is None or current.is_over or current.ending:
            text = f"can't {action} a transaction that is not open"
            raise TransactionRequiredError(text)
        if self._transactions.current_for_task() is not current:
            text = f"can't {action} a transaction of another greenlet or thread"
            raise TransactionRequiredError(text)
        return current

    def __repr__(self) -> str:
        begun = self._current is not None
        state = self.outcome or ("open" if begun else "not begun")
        return f"<Transaction {state}>"


def _last_of_each(
    consumer: object, messages: Iterable[ConsumedMessage], metadata: object
) -> dict[Offset, ConsumedMessage]:
    """Return the next offset of each partition, and the message before that offset.

    Raises:
        TransactionalOffsetInvalidError: Names each bad argument.
    """
    errors: dict[str, str] = {}
    if not callable(getattr(consumer, "consumer_group_metadata", None)):
        kind = type(consumer).__name__
        errors["consumer"] = f"needs a confluent_kafka.Consumer, not {kind}"
    if metadata is not None and not isinstance(metadata, str):
        errors["metadata"] = f"needs text or None, not {type(metadata).__name__}"
    last: dict[tuple[str, int], tuple[int, ConsumedMessage]] = {}
    for message in messages:
        position = _position(message)
        if position is None:
            kind = type(message).__name__
            errors["message"] = f"needs a consumed message, not {kind}"
            break
        topic, partition, offset = position
        if offset >= last.get((topic, partition), (-1, None))[0]:
            last[topic, partition] = (offset, message)
    if errors:
        raise TransactionalOffsetInvalidError(errors)
    text = metadata if isinstance(metadata, str) else None
    return {
        Offset(topic, partition, offset + 1, text): message
        for (topic, partition), (offset, message) in last.items()
    }


def _position(message: Any) -> tuple[str, int, int] | None:  # noqa: ANN401
    try:
        topic, partition, offset = (
            message.topic(),
            message.partition(),
            message.offset(),
        )
    except (AttributeError, TypeError):
        return None
    if not isinstance(topic, str) or not isinstance(partition, int):
        return None
    if not isinstance(offset, int) or partition < 0 or offset < 0:
        return None
    return topic, partition, offset
