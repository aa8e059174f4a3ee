"""Batches: checked as a whole before anything is sent, awaited with one deadline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from greendrop import _concurrency
from greendrop._validation import all_validated
from greendrop.errors import SENDING_ERRORS, MessageInvalidError, ProduceManyError
from greendrop.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from greendrop._validation import SizeLimit
    from greendrop.delivery import DeliveryHandle, DeliveryReport
    from greendrop.errors import ProduceError

_T = TypeVar("_T")

#: Bad messages of one batch that are described in the error.
_BAD_MESSAGES_SHOWN = 20


def validate_all(
    items: Iterable[_T],
    read: Callable[[_T], Message],
    limit: SizeLimit | None = None,
) -> list[Message]:
    """Convert all items of a batch to messages; a long one lets other greenlets run.

    Args:
        items: The batch.
        read: Converts an item to a message.
        limit: The maximum size of a message. With a limit, messages that `validate`
            would not change are taken as they are, and not converted.

    Raises:
        MessageInvalidError: Names every bad field of the first bad messages, as
            `messages[3].topic`; or the items are not a batch at all.
    """
    _check_batch(items)
    batch: list[Message] = []
    errors: dict[str, str] = {}
    bad = 0
    rest = iter(items)
    loop = _concurrency.CooperativeLoop()
    while part := list(islice(rest, loop.CHUNK)):
        loop.checkpoint()
        if limit is not None and all_validated(part, limit):
            batch += part
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
    """Refuse a single message: its fields would be taken for messages.

    Raises:
        MessageInvalidError: The items are a single message, or not iterable.
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


def wait_reports(
    handles: list[DeliveryHandle],
    timeout: float,
    explain: Callable[[ProduceError], ProduceError],
) -> list[DeliveryReport]:
    """Wait for the delivery reports of a batch, all of which was queued.

    Args:
        handles: The handles of all messages.
        timeout: Seconds to wait for all reports together.
        explain: Returns the error to raise in place of one that a handle has raised.

    Raises:
        ProduceManyError: Some messages were not delivered.
    """
    failure: ProduceManyError | None = None
    deadline = _concurrency.Deadline(timeout)
    reports: list[DeliveryReport] = []
    loop = _concurrency.CooperativeLoop()
    for index, handle in enumerate(handles):
        if not index % loop.CHUNK:
            loop.checkpoint()
        # `handle.report`, inlined: a property costs a tenth of all that is done for a
        # message of a batch in Python.
        if handle._reports is None and handle._error is None:  # noqa: SLF001
            reports.append(handle._report())  # noqa: SLF001
            continue
        try:
            reports.append(handle.wait(deadline.remaining()))
        except SENDING_ERRORS as error:
            if failure is None:
                reason = explain(error)
                text = f"message {index} of {len(handles)}: {reason}"
                failure = ProduceManyError(text, dispatched=handles, failed_index=index)
                failure.__cause__ = reason
    if failure is not None:
        raise failure
    return reports
