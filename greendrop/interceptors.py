"""Who stands between the verbs and the queue: sees each message as it is sent.

For tracing, which has to change a message, to know at once when it was not queued, and
to find it again when its verdict is told. Knows neither producers nor clients: it
wraps the two functions by which all messages are queued. Without interceptors they
are not wrapped, so there is nothing to pay for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from greendrop import _concurrency

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greendrop.delivery import DeliveryHandle
    from greendrop.message import Message

_log = logging.getLogger("greendrop")
# How a message is sent: of no interest here.
_Slot = TypeVar("_Slot", contravariant=True)  # noqa: PLC0105 - nobody else's
_P = ParamSpec("_P")
_R = TypeVar("_R")


class Interceptor(Protocol):
    """Sees messages when they are sent. What it raises is logged, and hurts nobody.

    The verdict on a message is told by `message.acknowledged`, and by `error.occurred`
    of type `librdkafka.dispatch_error`. Their `topic` is the very object that
    `on_send` has put into the message: a `str` of a class of its own may bring along
    what belongs to the message. (Of several interceptors that do so the one that was
    there first has the last word.)
    """

    def on_send(self, message: Message) -> Message:
        """Give the message to be queued: this one, or another in its place.

        It has passed middleware and checks, and is in wire form: payload and key are
        bytes, headers a list of pairs, which may also be the caller's. So nothing of
        it may be changed in place. In the caller's greenlet or thread.
        """
        ...

    def on_batch(self, messages: Sequence[Message]) -> None:
        """Take note that these, each of which `on_send` gave, go as one batch."""
        ...

    def on_send_error(self, message: Message, error: BaseException) -> None:
        """Take note that this one, which `on_send` gave, was not queued after all.

        Not always is that a `ProduceError`: a closed producer, a kill while waiting
        for room. No verdict follows.
        """
        ...


class DispatchMany(Protocol[_Slot]):
    """Queues a batch, as `Core.dispatch_many`."""

    def __call__(
        self,
        slot: _Slot,
        messages: Sequence[Message],
        verb: str,
        handles: list[DeliveryHandle] | None = None,
        end: int | None = None,
    ) -> list[DeliveryHandle]:
        """Queue it, or raise, with a handle for each that was queued."""
        ...


def wrapped(
    interceptor: Interceptor,
    dispatch: Callable[Concatenate[_Slot, Message, _P], DeliveryHandle],
) -> Callable[Concatenate[_Slot, Message, _P], DeliveryHandle]:
    """Have messages that are sent one by one, as by `Core.dispatch`, pass by."""

    def send(
        slot: _Slot, message: Message, /, *more: _P.args, **named: _P.kwargs
    ) -> DeliveryHandle:
        message = _safety_timer_runs(interceptor.on_send, message) or message
        try:
            return dispatch(slot, message, *more, **named)
        except BaseException as error:
            _safety_timer_runs(interceptor.on_send_error, message, error)
            raise

    return send


def wrapped_many(
    interceptor: Interceptor, dispatch_many: DispatchMany[_Slot]
) -> DispatchMany[_Slot]:
    """Have batches pass by."""

    def send(
        slot: _Slot,
        messages: Sequence[Message],
        verb: str,
        handles: list[DeliveryHandle] | None = None,
        end: int | None = None,
    ) -> list[DeliveryHandle]:
        handles = [] if handles is None else handles
        end = len(messages) if end is None else end
        first = len(handles)
        batch: list[Message] = []
        turns = _concurrency.CooperativeLoop()
        try:
            for message in messages[first:end]:
                if not len(batch) % turns.CHUNK:
                    turns.checkpoint()
                batch.append(
                    _safety_timer_runs(interceptor.on_send, message) or message
                )
            _safety_timer_runs(interceptor.on_batch, batch)
            # In the place that they have in the whole: errors tell it.
            whole = [*messages[:first], *batch, *messages[end:]]
            return dispatch_many(slot, whole, verb, handles, end)
        except BaseException as error:
            for message in batch[len(handles) - first :]:
                _safety_timer_runs(interceptor.on_send_error, message, error)
            raise

    return send


def _safety_timer_runs(function: Callable[..., _R], *arguments: object) -> _R | None:
    try:
        return function(*arguments)
    except Exception:  # noqa: BLE001 - whoever traces must not hurt who sends
        _log.exception("an interceptor raised")
        return None
