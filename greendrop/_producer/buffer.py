"""The buffer of a producer, and one flush of it.

A buffered message has passed middleware and checks and waits for a flush. Nothing but
its producer knows about it: it has no handle yet. So a flush accounts for every message
that it takes: the message is queued, refused for good and reported, or put back.

Knows neither producers nor clients; each message comes with the functions that send it.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from greendrop import _concurrency, _wording
from greendrop.errors import DeliveryError, GreendropError, ProduceManyError
from greendrop.message import detached

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from greendrop.delivery import DeliveryHandle
    from greendrop.message import Message

#: librdkafka's name for a call that the state of a transaction does not allow.
_WRONG_STATE = "_STATE"


class Dispatch(Protocol):
    """Queues messages, as `Core.dispatch_many` that skips refused ones.

    Equal for messages of the same producer, or variant: a run of them is one batch.
    """

    def __call__(
        self,
        messages: Sequence[Message],
        verb: str,
        handles: list[DeliveryHandle],
        end: int,
    ) -> list[DeliveryHandle]:
        """Queue `messages` up to index `end`, from the one after `handles` on."""
        ...


class Entry:
    """A buffered message.

    Args:
        message: As the caller wrote it.
        prepared: The same in wire form: it has passed middleware and checks.
        dispatch: Sends it as the producer, or the variant, that buffered it does.
    """

    __slots__ = ("dispatch", "message", "prepared")

    def __init__(self, message: Message, prepared: Message, dispatch: Dispatch) -> None:
        self.message = detached(message)
        self.prepared = prepared
        self.dispatch = dispatch


class Buffer:
    """Messages that wait to be flushed, in order. For all greenlets and threads.

    In a forked child it is empty: the parent sends what it has buffered.
    """

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        # Flushes under way, which may still put messages back.
        self._flushes: list[Flush] = []
        # Held only over code that can't switch greenlets.
        self._lock = _concurrency.new_lock()
        self._mark: _concurrency.ForkMarker | None = None
        self._stopped = False

    def append(self, entries: Iterable[Entry]) -> bool:
        """Add messages at the end; False if the buffer was shut before."""
        self._forget_parents()
        with self._lock:
            if self._mark is None:
                self._mark = _concurrency.fork_marker()
            if not self._stopped:
                self._entries += entries
            return not self._stopped

    def shut(self) -> None:
        """Take no more messages; flushes may still put some back."""
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
        """Return the messages that are here now, as they were buffered."""
        self._forget_parents()
        with self._lock:
            return tuple(entry.message for entry in self._entries)

    @property
    def unsent(self) -> int:
        """Messages that were not handed over, those of flushes under way included."""
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
            # An interrupt may have kept one from taking itself off the list.
            self._flushes = [each for each in self._flushes if each.unsent]
            self._flushes.append(flush)
            # One statement without a call: a signal handler that raises comes before
            # it or after it, and either way the messages are in one of the two.
            self._entries, flush.entries = flush.entries, self._entries

    def end(self, flush: Flush) -> None:
        """Count a flush as under way no more."""
        with self._lock:
            if flush in self._flushes:
                self._flushes.remove(flush)

    def put_back(
        self,
        flush: Flush,
        back: list[Entry],
        kept: list[Entry],
        handles: list[DeliveryHandle],
    ) -> None:
        """Move messages of a flush to the front.

        Args:
            flush: Which flush.
            back: The messages.
            kept: The others that it has.
            handles: Theirs.
        """
        with self._lock:
            entries = back + self._entries
            # Without a call, as in `take_into`: a message is in one of the two.
            self._entries, flush.entries, flush.handles[:] = entries, kept, handles

    def _forget_parents(self) -> None:
        if self._mark is not None and not self._mark.same_process:
            self._mark = None
            self._entries = []
            self._flushes = []
            # A thread of the parent may have held it at the moment of the fork.
            self._lock = _concurrency.new_lock()


class Flush:
    """The messages that one flush has taken out of a buffer.

    A context manager. Whatever ends it, the messages that were not handed over are at
    the front of the buffer afterwards, in order. Those that librdkafka refused for good
    are not: each is reported, and no flush would ever succeed with them. Errors of
    greendrop say how many messages were put back.
    """

    def __init__(self, buffer: Buffer) -> None:
        #: What was taken and not put back.
        self.entries: list[Entry] = []
        #: One for each of the first entries: queued, or refused for good.
        self.handles: list[DeliveryHandle] = []
        #: Handles of messages that were put back all the same.
        self.returned: list[DeliveryHandle] = []
        #: The transaction of the flush was rolled back.
        self.is_undone = False
        self._buffer = buffer
        self._batch: list[Message] = []
        # Messages that were put back.
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put back what was not handed over."""
        if self.unsent:
            self._put_back(error)
        self._buffer.end(self)
        if self.is_undone:
            # The error of a transaction: it replaced the one that says so already.
            _add_count(error, self._count)

    @property
    def unsent(self) -> int:
        """Messages that were not handed over yet."""
        return max(len(self.entries) - len(self.handles), 0)

    def take(self) -> list[Message]:
        """Take all messages out of the buffer; return them in wire form."""
        self._buffer.take_into(self)
        self._batch = [entry.prepared for entry in self.entries]
        return self._batch

    def dispatch(self, verb: str) -> list[DeliveryHandle]:
        """Queue the messages, in order, each by its sender.

        A message that librdkafka refuses for good doesn't keep back the others.

        Raises:
            ProduceManyError: Some were refused, or not handed over; `dispatched` has
                the handles of the others, and of those that were refused for good.
        """
        try:
            self._dispatch_all(verb)
        except BaseException as error:
            # At once, and not after the wait for what was queued.
            self._put_back(error)
            raise
        failure = self._failure()
        if failure is not None:
            self._put_back(failure)
            raise failure from failure.__cause__
        return self.handles

    def _dispatch_all(self, verb: str) -> None:
        end = 0
        for dispatch, run in groupby(self.entries, lambda entry: entry.dispatch):
            end += sum(1 for _ in run)
            dispatch(self._batch, verb, self.handles, end)

    def _failure(self) -> ProduceManyError | None:
        """Make the error that tells of refused messages, if there are any."""
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
        """Put back what was queued, since its transaction was rolled back."""
        self.is_undone = True
        self._return([not _is_dropped(handle) for handle in self.handles])

    def return_undelivered(self, *, unknown: bool = False) -> DeliveryError | None:
        """Put back what was not delivered, for the program to read: no flush follows.

        Args:
            unknown: So were the others, maybe: nobody knows whether their transaction
                was committed.

        Returns:
            Why the first of them was not delivered, if that is known.
        """
        first = None
        for handle in self.handles:
            error = handle.error
            if isinstance(error, DeliveryError) and first is None:
                first = error
        self._return([unknown or handle.report is None for handle in self.handles])
        return first

    def _put_back(self, error: BaseException | None) -> None:
        """Put back what was not handed over, or refused only for the time being."""
        before = self._count
        self._return([_is_refused_for_now(handle) for handle in self.handles])
        if count := self._count - before:
            _add_count(error, count)
            if isinstance(error, ProduceManyError):
                error.dispatched = tuple(self.handles)

    def _return(self, is_unsent: list[bool]) -> None:
        """Put entries back, and forget them and their handles.

        Args:
            is_unsent: For each handle. Entries without one are put back, too.
        """
        back: list[Entry] = []
        kept: list[Entry] = []
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
    """Whether librdkafka would refuse the message again, whatever happens.

    Not if the client or the transaction has failed: another one may accept it.
    """
    passing = refusal.fatal or refusal.abortable or refusal.retriable
    return not passing and refusal.name != _WRONG_STATE


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
