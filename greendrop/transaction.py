"""One transaction: a block whose messages are all visible in the end, or none.

What happens at its begin and its end is for `coordinator`; what is here is what the
program holds meanwhile.
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
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from typing_extensions import Self

    from greendrop._transactions.coordinator import (
        OpenTransaction,
        Outcome,
        Transactions,
    )

#: The kind of producer that it was made by.
_P = TypeVar("_P")


class GroupConsumer(Protocol):
    """What is used of a `confluent_kafka.Consumer`."""

    def consumer_group_metadata(self) -> Any:  # noqa: ANN401 - an object of librdkafka
        """Give what tells the brokers on behalf of which group offsets are sent."""
        ...


class ConsumedMessage(Protocol):
    """What is used of a `confluent_kafka.Message` that a consumer has read."""

    def topic(self) -> str | None:
        """Where it was read."""
        ...

    def partition(self) -> int | None:
        """Where it was read."""
        ...

    def offset(self) -> int | None:
        """Its place there."""
        ...


class Transaction(_pickling.PerProcess, Generic[_P]):
    """A block whose messages are committed at its end, or rolled back.

    Made by `Producer.transaction`, and entered once. All that the greenlet or thread
    that entered it sends in the block is part of it, by whichever verb and variant of
    the producer. Inside of another one it joins that: only the outer one commits.
    """

    def __init__(
        self,
        producer: _P,
        transactions: Transactions,
        seconds: float,
        tell: Callable[..., None],
    ) -> None:
        #: What it was made by: to send with, where a pool gave it.
        self.producer = producer
        self._transactions = transactions
        self._seconds = seconds
        self._tell = tell
        self._current: OpenTransaction | None = None
        self._joined = False

    def __enter__(self) -> Self:
        """Wait for the caller's turn, and begin.

        Raises:
            TransactionBusyError: The transaction of another greenlet or thread did not
                end within `max_wait_timeout`.
            TransactionAbortedError: The brokers did not let it begin; the cause says
                why. The next one may.
            ProducerClosedError, ProducerUsedInParentProcessError: See there.
            IllegalWaitError: In the hub itself, or in a listener of this producer.
            RuntimeError: It was entered before.

        Blocking:
            While another one is open, first come, first served; the first time also
            until the brokers have ended what a producer of the same `transactional.id`
            has left open. Lets other greenlets run where the thread has a hub, else
            blocks the thread. For `max_wait_timeout` at most.
        """
        if self._current is not None:
            text = "a transaction is entered once; transaction() makes a new one"
            raise RuntimeError(text)
        joined = self._transactions.current_for_task()
        if joined is None:
            self._current = self._transactions.begin(self._seconds)
        else:
            self._current = joined
            self._joined = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Commit, or roll back if an exception leaves the block.

        That exception goes on, whatever else goes wrong, but for an `AbortTransaction`:
        that one ends here.

        Raises:
            TransactionAbortedError: It could not be committed, and was rolled back.
            TransactionUnknownError: The commit failed, and may have happened.

        Blocking:
            Until all messages are reported and the brokers have answered: for
            `max_wait_timeout` each at most. Lets other greenlets run where the thread
            has a hub, else blocks the thread. An exception that interrupts (Ctrl-C, a
            `gevent.Timeout`, the end of a greenlet) is held up for 2 s at most.
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
            # A signal handler may have raised before the end had begun.
            self.__del__()
            raise

    def __del__(self) -> None:
        """Give up a transaction whose block was left without its end.

        So it is when a signal handler raises at the very start of `__exit__`: Python
        doesn't call that twice.
        """
        current = getattr(self, "_current", None)
        if current is not None and not self._joined and not current.is_over:
            self._transactions.abandon(current)

    @property
    def outcome(self) -> Outcome | None:
        """How it ended: "committed", "aborted", "unknown"; None while it is open.

        "unknown" after a `TransactionUnknownError`, or when the commit was interrupted.
        """
        current = self._current
        return current.outcome if current is not None and current.is_over else None

    def abort(self) -> NoReturn:
        """Roll back, and leave the block: raises `AbortTransaction`, which ends there.

        If something in between catches that, it is rolled back all the same, at the
        end. The outer one, too, if it is in another one.

        Raises:
            AbortTransaction: Always.
            TransactionRequiredError: It is not open, or it is that of another greenlet
                or thread.
        """
        current = self._open("aborted")
        text = "the program has aborted the transaction"
        # Not the one that is raised: with its traceback it would keep this alive.
        current.abort_reason = current.abort_reason or AbortTransaction(text)
        raise AbortTransaction(text)

    def mark_as_consumed(
        self,
        consumer: GroupConsumer,
        message: ConsumedMessage,
        metadata: str | None = None,
    ) -> None:
        """Make it part of the transaction that a message was read and dealt with.

        The consumer's group goes on after it if the transaction is committed. The
        consumer must not commit offsets itself (`enable.auto.commit` is False).

        Args:
            consumer: The `confluent_kafka.Consumer` that has read it.
            message: As it has given it.
            metadata: Text to be stored with the offset.

        Raises:
            TransactionRequiredError: Outside of the block, or by another greenlet or
                thread than has entered it.
            TransactionalOffsetInvalidError: Names each bad argument. The transaction
                goes on.
            TransactionAbortedError: The brokers refused, for example since another
                consumer has the partition by now. The transaction will be rolled back.

        Blocking:
            Until the brokers have answered, for `max_wait_timeout` at most. Lets other
            greenlets run where the thread has a hub, else blocks the thread.
        """
        self.mark_many_as_consumed(consumer, (message,), metadata)

    def mark_many_as_consumed(
        self,
        consumer: GroupConsumer,
        messages: Iterable[ConsumedMessage],
        metadata: str | None = None,
    ) -> None:
        """Do so for many messages, of any partitions, at the cost of one.

        Of each partition the message that comes last counts, in whatever order they
        are given.

        Raises, Blocking:
            As `mark_as_consumed`.
        """
        current = self._open("marked in")
        last = _last_of_each(consumer, messages, metadata)
        if not last:
            return
        began = _concurrency.monotonic()
        try:
            group = consumer.consumer_group_metadata()
        except RuntimeError as error:  # closed
            wrong = {"consumer": str(error)}
            raise TransactionalOffsetInvalidError(wrong) from error
        self._transactions.send_offsets(current, list(last), group)
        for message in last.values():
            self._tell(
                "transaction.marked_as_consumed",
                began,
                message=message,
                offset_metadata=metadata,
            )

    def _open(self, verb: str) -> OpenTransaction:
        current = self._current
        if current is None or current.is_over or current.ending:
            raise TransactionRequiredError(f"only an open transaction can be {verb}")
        if self._transactions.current_for_task() is not current:
            text = f"a transaction is {verb} by the task that has begun it"
            raise TransactionRequiredError(text)
        return current

    def __repr__(self) -> str:
        begun = self._current is not None
        state = self.outcome or ("open" if begun else "not begun")
        return f"<Transaction {state}>"


def _last_of_each(
    consumer: object, messages: Iterable[Any], metadata: object
) -> dict[Offset, Any]:
    """Give where each partition is to be read on, and the message before that.

    Raises:
        TransactionalOffsetInvalidError: Names each bad argument.
    """
    errors: dict[str, str] = {}
    if not callable(getattr(consumer, "consumer_group_metadata", None)):
        kind = type(consumer).__name__
        errors["consumer"] = f"needs a confluent_kafka.Consumer, not {kind}"
    if metadata is not None and not isinstance(metadata, str):
        errors["metadata"] = f"needs text or None, not {type(metadata).__name__}"
    last: dict[tuple[str, int], tuple[int, Any]] = {}
    for message in messages:
        place = _place(message)
        if place is None:
            kind = type(message).__name__
            errors["message"] = f"needs what a consumer has read, not {kind}"
            break
        topic, partition, offset = place
        if offset >= last.get((topic, partition), (-1, None))[0]:
            last[topic, partition] = (offset, message)
    if errors:
        raise TransactionalOffsetInvalidError(errors)
    text = metadata if isinstance(metadata, str) else None
    return {
        Offset(topic, partition, offset + 1, text): message
        for (topic, partition), (offset, message) in last.items()
    }


def _place(message: Any) -> tuple[str, int, int] | None:  # noqa: ANN401
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
