"""The buffer of a producer, and one flush of it.

A buffered message has passed middleware and checks and waits for a flush. It has no
handle yet, so only the buffer can report its loss. A flush therefore accounts for every
message that it takes: the message is queued, refused for good and reported, or put
back.
"""

from __future__ import annotations

import itertools
from operator import attrgetter
from typing import TYPE_CHECKING

from greendrop import _concurrency, _wording
from greendrop._validation import snapshot
from greendrop.errors import DeliveryError, GreendropError, ProduceManyError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Self

    from greendrop._connections.client_slots import ClientSlot
    from greendrop._interception import SendMany
    from greendrop.delivery import DeliveryHandle
    from greendrop.message import Message

#: librdkafka's name for a call that the state of a transaction does not allow.
_WRONG_STATE = "_STATE"


class BufferedMessage:
    """A buffered message.

    Args:
        message: The message as the caller wrote it.
        prepared: The message after middleware and checks, normalized.
        slot: The slot of the producer, or the variant, that buffered it.
    """

    __slots__ = ("message", "number", "prepared", "slot")

    def __init__(self, message: Message, prepared: Message, slot: ClientSlot) -> None:
        #: The place in the order of buffering; set by the buffer.
        self.number = 0
        self.message = snapshot(message)
        self.prepared = prepared
        self.slot = slot


class Buffer:
    """Messages that wait to be flushed, in order. Safe for all greenlets and threads.

    In a forked child it is empty: the parent sends its buffered messages itself.
    """

    def __init__(self) -> None:
        self._entries: list[BufferedMessage] = []
        self._numbers = itertools.count()
        # Running flushes, which may still put messages back.
        self._flushes: list[Flush] = []
        # Held only over code that can't switch greenlets.
        self._lock = _concurrency.new_lock()
        self._mark: _concurrency.ForkMarker | None = None
        self._stopped = False

    def append(self, entries: Iterable[BufferedMessage]) -> bool:
        """Append messages; return False if the buffer accepts no more."""
        self._forget_parents()
        with self._lock:
            if self._mark is None:
                self._mark = _concurrency.fork_marker()
            if not self._stopped:
                numbered = list(entries)
                for entry in numbered:
                    entry.number = next(self._numbers)
                self._entries += numbered
            return not self._stopped

    def stop(self) -> None:
        """Accept no more messages; flushes may still put some back."""
        self._forget_parents()
        with self._lock:
            self._stopped = True

    def clear(self) -> tuple[Message, ...]:
        """Drop and return all messages, except those that are being flushed."""
        self._forget_parents()
        with self._lock:
            dropped, self._entries = self._entries, []
        return tuple(entry.message for entry in dropped)

    def messages(self) -> tuple[Message, ...]:
        """Return the messages in the buffer, as the caller wrote them."""
        self._forget_parents()
        with self._lock:
            return tuple(entry.message for entry in self._entries)

    @property
    def unsent(self) -> int:
        """The number of messages that were not queued, in running flushes as well."""
        self._forget_parents()
        with self._lock:
            taken = sum(flush.unsent for flush in self._flushes)
            return len(self._entries) + taken

    def __len__(self) -> int:
        self._forget_parents()
        return len(self._entries)

    def take_into(self, flush: Flush) -> None:
        """Move all messages to a flush that holds none."""
        self._forget_parents()
        with self._lock:
            # An interrupt may have kept a flush from removing itself from the list.
            self._flushes = [each for each in self._flushes if each.unsent]
            self._flushes.append(flush)
            # One statement without a call: a signal handler that raises runs before or
            # after it, and either way the messages are in the buffer or in the flush.
            self._entries, flush.entries = flush.entries, self._entries

    def end(self, flush: Flush) -> None:
        """Remove a flush from the running ones."""
        with self._lock:
            if flush in self._flushes:
                self._flushes.remove(flush)

    def put_back(
        self,
        flush: Flush,
        back: list[BufferedMessage],
        kept: list[BufferedMessage],
        handles: list[DeliveryHandle],
    ) -> None:
        """Move messages of a flush back to their places in the buffer.

        Several flushes may return messages, in any order.

        Args:
            flush: The flush.
            back: The messages to move.
            kept: The messages that the flush keeps.
            handles: The handles of these.
        """
        with self._lock:
            entries = sorted(back + self._entries, key=attrgetter("number"))
            # Without a call, as in `take_into`: no message is lost or doubled.
            self._entries, flush.entries, flush.handles[:] = entries, kept, handles

    def _forget_parents(self) -> None:
        if self._mark is not None and not self._mark.same_process:
            self._mark = None
            self._entries = []
            self._flushes = []
            # A thread of the parent may have held the lock at the moment of the fork.
            self._lock = _concurrency.new_lock()


class Flush:
    """The messages that one flush has taken out of a buffer.

    A context manager. However it is left, the messages that were not queued are at the
    front of the buffer afterwards, in order. Messages that librdkafka refused for good
    are reported instead, since no flush would ever succeed with them. Errors of
    greendrop say how many messages were put back.
    """

    def __init__(self, buffer: Buffer) -> None:
        #: The messages that were taken and not put back.
        self.entries: list[BufferedMessage] = []
        #: The handles of the first entries, which were queued or refused for good.
        self.handles: list[DeliveryHandle] = []
        #: Handles of messages that were put back all the same.
        self.returned: list[DeliveryHandle] = []
        #: Whether the transaction of the flush was rolled back.
        self.is_undone = False
        self._buffer = buffer
        self._batch: list[Message] = []
        # The number of messages that were put back.
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        """Put back the messages that were not queued."""
        if self.unsent:
            self._put_back(error)
        self._buffer.end(self)
        if self.is_undone:
            # The transaction's error replaced the one that has the count already.
            _add_count(error, self._count)

    @property
    def unsent(self) -> int:
        """The number of messages that were not queued yet."""
        return max(len(self.entries) - len(self.handles), 0)

    def take(self) -> list[Message]:
        """Take all messages out of the buffer; return them normalized."""
        self._buffer.take_into(self)
        self._batch = [entry.prepared for entry in self.entries]
        return self._batch

    def send(self, send_many: SendMany[ClientSlot], verb: str) -> list[DeliveryHandle]:
        """Queue the messages, in order; neighbours with the same slot as one batch.

        A message that librdkafka refuses for good does not stop the others.

        Args:
            send_many: Queues the messages of one slot, as `Core.send_many`.
            verb: The name of the verb in events.

        Raises:
            ProduceManyError: Some messages were refused or not queued; `dispatched` has
                the handles of the others, and of those that were refused for good.
        """
        try:
            self._send_all(send_many, verb)
        except BaseException as error:
            # Now, and not after the wait for the messages that were queued.
            self._put_back(error)
            raise
        failure = self._failure()
        if failure is not None:
            self._put_back(failure)
            raise failure from failure.__cause__
        return self.handles

    def _send_all(self, send_many: SendMany[ClientSlot], verb: str) -> None:
        end = 0
        for slot, run in itertools.groupby(self.entries, attrgetter("slot")):
            end += sum(1 for _ in run)
            send_many(slot, self._batch, verb, self.handles, end, skip_refused=True)

    def _failure(self) -> ProduceManyError | None:
        """Return the error that counts the refused messages; None without any."""
        count, first = 0, -1
        cause: DeliveryError | None = None
        for index, handle in enumerate(self.handles):
            if (refusal := handle.refusal) is not None:
                count += 1
                if cause is None:
                    first, cause = index, refusal
        if cause is None:
            return None
        were = "was" if count == 1 else "were"
        batch = _wording.count(len(self._batch), "message")
        text = (
            f"{count:,} of {batch} {were} refused; the first, message {first}: {cause}"
        )
        failure = ProduceManyError(text, dispatched=self.handles, failed_index=first)
        failure.__cause__ = cause
        return failure

    def undo(self) -> None:
        """Put back the queued messages, since their transaction was rolled back."""
        self.is_undone = True
        self._return([not _is_dropped(handle) for handle in self.handles])

    def return_undelivered(self, *, unknown: bool = False) -> DeliveryError | None:
        """Put back the undelivered messages, for the program to read; no flush follows.

        Args:
            unknown: Whether the transaction may not have been committed: then the
                messages with a report are put back as well.

        Returns:
            The error of the first undelivered message, if it has one.
        """
        first = None
        for handle in self.handles:
            error = handle.error
            if isinstance(error, DeliveryError) and first is None:
                first = error
        self._return([unknown or handle.report is None for handle in self.handles])
        return first

    def _put_back(self, error: BaseException | None) -> None:
        """Put back the messages that were not queued, or refused only for now."""
        before = self._count
        self._return([_is_refused_for_now(handle) for handle in self.handles])
        if count := self._count - before:
            _add_count(error, count)
            if isinstance(error, ProduceManyError):
                error.dispatched = tuple(self.handles)

    def _return(self, is_unsent: list[bool]) -> None:
        """Put entries back, and remove them and their handles from the flush.

        Args:
            is_unsent: Whether to put an entry back, for each entry with a handle.
                Entries without one are put back, too.
        """
        back: list[BufferedMessage] = []
        kept: list[BufferedMessage] = []
        returned: list[DeliveryHandle] = []
        handles: list[DeliveryHandle] = []
        for entry, handle, unsent in zip(
            self.entries, self.handles, is_unsent, strict=False
        ):
            (back if unsent else kept).append(entry)
            (returned if unsent else handles).append(handle)
        back += self.entries[len(self.handles) :]
        if back:
            self.returned += returned
            self._buffer.put_back(self, back, kept, handles)
            self._count += len(back)


def is_final(refusal: DeliveryError) -> bool:
    """Return whether librdkafka would refuse the message in any case.

    If the client or the transaction has failed, another one may accept the message.
    """
    temporary = refusal.fatal or refusal.abortable or refusal.retriable
    return not temporary and refusal.name != _WRONG_STATE


def _is_dropped(handle: DeliveryHandle) -> bool:
    refusal = handle.refusal
    return refusal is not None and is_final(refusal)


def _is_refused_for_now(handle: DeliveryHandle) -> bool:
    refusal = handle.refusal
    return refusal is not None and not is_final(refusal)


def _add_count(error: BaseException | None, count: int) -> None:
    if isinstance(error, GreendropError):
        are = "is" if count == 1 else "are"
        error.add(f"{_wording.count(count, 'message')} {are} back in the buffer")
