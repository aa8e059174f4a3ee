"""The type of a producer's settings, for type checkers and editors.

The table in `settings` describes each setting; a test compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from greendrop.oauth import OAuthToken


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
