"""Interceptors: hooks that see each message as it is sent.

They are for tracing, which changes a message, learns at once that a message was not
queued, and finds the message again when its delivery report arrives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greendrop.message import Message

__all__ = ["Interceptor"]


class Interceptor(Protocol):
    """Sees messages when they are sent. Its exceptions are logged and swallowed.

    The outcome of a message is emitted as `message.acknowledged`, or as
    `error.occurred` of type `librdkafka.dispatch_error`. The `topic` of these events is
    the very object that `on_send` has put into the message: an instance of a subclass
    of `str` can carry data of the message. (If several interceptors do so, the one that
    was added first wins.)
    """

    def on_send(self, message: Message) -> Message:
        """Return the message to queue: this one, or another one in its place.

        The message has passed middleware and checks, and is normalized: payload and key
        are bytes, headers a list of pairs. That list may be the caller's, so nothing in
        the message may be changed in place. Called in the caller's greenlet or thread.
        """

    def on_batch(self, messages: Sequence[Message]) -> None:
        """Handle a batch: these messages, returned by `on_send`, are sent together."""

    def on_send_error(self, message: Message, error: BaseException) -> None:
        """Handle a message, returned by `on_send`, that was not queued after all.

        The error is not always a `ProduceError`: the producer may be closed, or the
        greenlet killed while it waits for space. No delivery report follows.
        """
