"""Batches: read as a whole before anything is sent, awaited with one deadline.

Knows neither producers nor clients; who sends is a function that it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from greendrop import _concurrency
from greendrop.errors import SENDING_ERRORS, MessageInvalidError, ProduceManyError
from greendrop.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from greendrop.delivery import DeliveryHandle, DeliveryReport
    from greendrop.errors import ProduceError

_T = TypeVar("_T")

#: Bad messages of one batch that are described in the error.
_BAD_MESSAGES_SHOWN = 20


def validate_all(
    items: Iterable[_T],
    read: Callable[[_T], Message],
    are_ready: Callable[[list[Any]], bool] = lambda _: False,
) -> list[Message]:
    """Make messages of all items of a batch; a long one lets other greenlets run.

    Args:
        items: The batch.
        read: Makes a message of an item.
        are_ready: Tells of some items at once that they need no reading.

    Raises:
        MessageInvalidError: Names every bad field of the first bad messages, as
            `messages[3].topic`; or this is no batch at all.
    """
    _check_batch(items)
    batch: list[Message] = []
    errors: dict[str, str] = {}
    bad = 0
    left = iter(items)
    turns = _concurrency.CooperativeLoop()
    while part := list(islice(left, turns.CHUNK)):
        turns.checkpoint()
        if are_ready(part):
            batch += part  # type: ignore[arg-type]  # so they are messages
            continue
        for item in part:
            try:
                batch.append(read(item))
            except MessageInvalidError as error:
                if bad < _BAD_MESSAGES_SHOWN:
                    for name, text in error.errors.items():
                        errors[f"messages[{len(batch) + bad}].{name}"] = text
                bad += 1
    if bad > _BAD_MESSAGES_SHOWN:
        errors["messages"] = f"and {bad - _BAD_MESSAGES_SHOWN} more bad messages"
    if errors:
        raise MessageInvalidError(errors)
    return batch


def _check_batch(items: object) -> None:
    """Refuse one message where several belong; its fields are no messages.

    Raises:
        MessageInvalidError: So it is, or there is nothing to iterate over.
    """
    kind = type(items).__name__
    if isinstance(items, (Mapping, Message)):
        text = (
            f"needs a list of messages, not a single one ({kind}); put it in a list, or"
            " use the verb for one message"
        )
    elif isinstance(items, (str, bytes, bytearray)) or not isinstance(items, Iterable):
        text = f"needs a list or another iterable of messages, not {kind}"
    else:
        return
    raise MessageInvalidError({"messages": text})


def send_and_wait(
    send: Callable[[], list[DeliveryHandle]],
    count: int,
    timeout: float,
    explain: Callable[[ProduceError], ProduceError] = lambda error: error,
) -> list[DeliveryReport]:
    """Send a batch, and wait for all that was queued, whatever becomes of the rest.

    Args:
        send: Queues the batch, as `Core.dispatch_many`.
        count: Messages in the batch.
        timeout: Seconds to wait after that.
        explain: Returns the error to be raised for one that a handle has raised.

    Raises:
        ProduceManyError: Some were not queued or not delivered.
    """
    failure: ProduceManyError | None = None
    try:
        handles = send()
    except ProduceManyError as error:
        failure = error
        handles = list(error.dispatched)
    deadline = _concurrency.monotonic() + timeout
    reports: list[DeliveryReport] = []
    turns = _concurrency.CooperativeLoop()
    for index, handle in enumerate(handles):
        if not index % turns.CHUNK:
            turns.checkpoint()
        report = handle.report
        try:
            if report is None:
                report = handle.wait(max(deadline - _concurrency.monotonic(), 0.0))
            reports.append(report)
        except SENDING_ERRORS as error:
            if failure is None:
                reason = explain(error)
                text = f"message {index} of {count}: {reason}"
                failure = ProduceManyError(text, dispatched=handles, failed_index=index)
                failure.__cause__ = reason
    if failure is not None:
        raise failure
    return reports
