"""Messages that wait to be flushed, and a flush: they are sent, or are back again.

Knows neither producers nor clients; how its messages are prepared and sent is told by
functions that come with them.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, Protocol

from greendrop import _process, _threads
from greendrop._batches import read_all
from greendrop.errors import GreendropError
from greendrop.message import detached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from greendrop.delivery import DeliveryHandle
    from greendrop.message import Message


class Dispatch(Protocol):
    """Queues messages, as `Core.dispatch_many`."""

    def __call__(
        self,
        messages: Sequence[Message],
        verb: str,
        handles: list[DeliveryHandle],
        end: int,
    ) -> list[DeliveryHandle]:
        """Queue `messages` up to index `end`, from the one after `handles` on."""
        ...


class Sender(NamedTuple):
    """How messages are sent by the producer, or the variant, that buffered them."""

    prepare: Callable[[Message], Message]
    dispatch: Dispatch


class Entry:
    """A buffered message; `prepared` is there once it has passed middleware and checks.

    Args:
        message: As the caller wrote it.
        sender: How it will be sent.
    """

    __slots__ = ("message", "prepared", "sender")

    def __init__(self, message: Message, sender: Sender) -> None:
        self.message = detached(message)
        self.prepared: Message | None = None
        self.sender = sender

    def prepare(self) -> Message:
        """Have it pass middleware and checks, once."""
        if self.prepared is None:
            self.prepared = self.sender.prepare(self.message)
        return self.prepared


class Buffer:
    """Messages that wait to be flushed, in order. For all greenlets and threads.

    In a forked child it is empty: what the parent buffered is for the parent to send.
    """

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        # Held only over code that can't switch greenlets.
        self._lock = _threads.new_lock()
        self._mark: _process.Mark | None = None
        self._shut = False

    def append(self, entries: Iterable[Entry]) -> bool:
        """Add messages at the end; False if it was shut before."""
        self._forget_parents()
        with self._lock:
            if self._mark is None:
                self._mark = _process.mark()
            if not self._shut:
                self._entries += entries
            return not self._shut

    def shut(self) -> None:
        """Take no more messages; flushes may still put some back."""
        self._forget_parents()
        with self._lock:
            self._shut = True

    def clear(self) -> None:
        """Drop all messages. Those that are being flushed are not here."""
        self._forget_parents()
        with self._lock:
            self._entries = []

    def messages(self) -> tuple[Message, ...]:
        """Give the messages that are here now, as they were buffered."""
        self._forget_parents()
        with self._lock:
            return tuple(entry.message for entry in self._entries)

    def __len__(self) -> int:
        self._forget_parents()
        return len(self._entries)

    def take_into(self, flush: Flush) -> None:
        """Let a flush that holds nothing have all messages."""
        self._forget_parents()
        with self._lock:
            # One statement without a call: a signal handler that raises comes before
            # it or after it, and either way the messages are in one of the two.
            self._entries, flush.entries = flush.entries, self._entries

    def put_back(self, entries: list[Entry]) -> None:
        """Add messages at the front."""
        with self._lock:
            self._entries[:0] = entries

    def _forget_parents(self) -> None:
        if self._mark is not None and not self._mark[0]:
            self._mark = None
            self._entries = []
            # A thread of the parent may have held it at the moment of the fork.
            self._lock = _threads.new_lock()


class Flush:
    """Messages on their way out of a buffer. What did not get out is put back.

    A context manager. Whatever ends it, those messages that were not queued are at the
    front of the buffer afterwards, in order, and errors of greendrop say how many.
    """

    def __init__(self, buffer: Buffer) -> None:
        #: What was taken and not put back.
        self.entries: list[Entry] = []
        #: One for each message that was queued, in order.
        self.handles: list[DeliveryHandle] = []
        self._buffer = buffer
        self._batch: list[Message] = []
        # It was undone.
        self._undone = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put back, if there is anything left."""
        self._put_back(error)
        if self._undone:
            _add_text(error, len(self._batch))

    def prepare(self) -> list[Message]:
        """Take all messages, and have them pass middleware and checks.

        Raises:
            MessageInvalidError, MiddlewareError: Nothing will be sent.
        """
        self._buffer.take_into(self)
        self._batch = read_all(self.entries, Entry.prepare)
        return self._batch

    def dispatch(self, verb: str) -> list[DeliveryHandle]:
        """Queue the messages, in order, each as its sender does it.

        Raises:
            ProduceManyError: Some were queued: those that it has handles of.
        """
        end = 0
        try:
            for sender, run in groupby(self.entries, lambda entry: entry.sender):
                end += sum(1 for _ in run)
                sender.dispatch(self._batch, verb, self.handles, end)
        except BaseException as error:
            # At once, and not after the wait for what was queued.
            self._put_back(error)
            raise
        return self.handles

    def undo(self) -> None:
        """Put all back: what was queued was rolled back."""
        self.handles.clear()
        self._put_back(None)
        self._undone = True

    def _put_back(self, error: BaseException | None) -> None:
        queued = len(self.handles)
        left = self.entries[queued:]
        if not left:
            return
        self._buffer.put_back(left)
        del self.entries[queued:]
        _add_text(error, len(left))


def _add_text(error: BaseException | None, count: int) -> None:
    if isinstance(error, GreendropError):
        error.add(f"{count} messages are back in the buffer")
