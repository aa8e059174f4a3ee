"""The wrapping of the functions that queue messages, for interceptors.

They are wrapped only while there are interceptors, so programs without them pay
nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol, TypeVar

from greendrop import _concurrency

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greendrop.delivery import DeliveryHandle
    from greendrop.interceptors import Interceptor
    from greendrop.message import Message

_log = logging.getLogger("greendrop")
# The slot of a topic configuration, which is passed on unchanged.
_Slot = TypeVar("_Slot", contravariant=True)  # noqa: PLC0105 - private
_R = TypeVar("_R")


class SendMany(Protocol[_Slot]):
    """The signature of `Core.send_many`, which queues a batch."""

    def __call__(
        self,
        slot: _Slot,
        messages: Sequence[Message],
        verb: str,
        handles: list[DeliveryHandle] | None = None,
        end: int | None = None,
        *,
        skip_refused: bool = False,
    ) -> list[DeliveryHandle]:
        """Queue the batch; on an error `handles` has those that were queued."""


def wrap_send(
    interceptor: Interceptor,
    send: Callable[[_Slot, Message, str, float], DeliveryHandle],
) -> Callable[[_Slot, Message, str, float], DeliveryHandle]:
    """Wrap `Core.send`, which queues one message, with an interceptor."""

    def intercepted(
        slot: _Slot, message: Message, verb: str, seconds: float
    ) -> DeliveryHandle:
        message = _call(interceptor.on_send, message) or message
        try:
            return send(slot, message, verb, seconds)
        except BaseException as error:
            _call(interceptor.on_send_error, message, error)
            raise

    return intercepted


def wrap_send_many(
    interceptor: Interceptor, send_many: SendMany[_Slot]
) -> SendMany[_Slot]:
    """Wrap `Core.send_many`, which queues a batch, with an interceptor."""

    def intercepted(
        slot: _Slot,
        messages: Sequence[Message],
        verb: str,
        handles: list[DeliveryHandle] | None = None,
        end: int | None = None,
        *,
        skip_refused: bool = False,
    ) -> list[DeliveryHandle]:
        handles = [] if handles is None else handles
        end = len(messages) if end is None else end
        first = len(handles)
        batch: list[Message] = []
        loop = _concurrency.CooperativeLoop()
        try:
            for message in messages[first:end]:
                if not len(batch) % loop.CHUNK:
                    loop.checkpoint()
                batch.append(_call(interceptor.on_send, message) or message)
            _call(interceptor.on_batch, batch)
            # At their index in the whole batch, which errors name.
            whole = [*messages[:first], *batch, *messages[end:]]
            return send_many(slot, whole, verb, handles, end, skip_refused=skip_refused)
        except BaseException as error:
            for message in batch[len(handles) - first :]:
                _call(interceptor.on_send_error, message, error)
            raise

    return intercepted


def _call(function: Callable[..., _R], *args: object) -> _R | None:
    try:
        return function(*args)
    except Exception:  # noqa: BLE001 - tracing must not disturb sending
        _log.exception("an interceptor raised")
        return None
