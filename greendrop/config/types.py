"""The types of a producer's settings and of a message's fields, for type checkers.

The table in `settings` describes each setting, and `Message` each field. A test
compares them with these types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from greendrop.message import Headers
    from greendrop.oauth import OAuthToken

__all__ = ["MessageFields", "ProducerSettings"]


class ProducerSettings(TypedDict, total=False):
    """The keyword arguments of `Producer` and `Producer.setup`, except `kafka`.

    Use it to type a mapping of settings: `settings: ProducerSettings = {...}`, then
    `Producer(kafka, **settings)`. Durations are in seconds. docs/reference/settings.md
    describes each setting.
    """

    id: str
    max_payload_size: int
    max_wait_timeout: float
    wait_on_queue_full: bool
    wait_timeout_on_queue_full: float
    instrument_on_wait_queue_full: bool
    max_serve_time: float
    idle_disconnect_timeout: float
    reload_on_idempotent_fatal_error: bool
    wait_backoff_on_idempotent_fatal_error: float
    max_attempts_on_idempotent_fatal_error: int
    wait_backoff_on_transaction_command: float
    max_attempts_on_transaction_command: int
    reload_on_transaction_fatal_error: bool
    wait_backoff_on_transaction_fatal_error: float
    max_attempts_on_transaction_fatal_error: int
    wait_timeout_on_transaction_abort: float
    non_reloadable_errors: Iterable[str]
    statistics_deltas: Iterable[str]
    stall_alarm: float
    oauth_token_provider: Callable[[], OAuthToken] | None
    exit_timeout: float


class _RequiredFields(TypedDict):
    topic: str
    payload: bytes | str | None


class MessageFields(_RequiredFields, total=False):
    """The fields of a `Message`, as keyword arguments or as a mapping in a batch.

    Use it to type a function that passes them on: `def send(**fields:
    Unpack[MessageFields]): producer.produce_async(**fields)`.
    """

    key: bytes | str | None
    headers: Headers | None
    partition: int | None
    partition_key: bytes | str | None
    timestamp: int | datetime | None
    label: object
