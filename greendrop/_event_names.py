"""The names of events, for type checkers. Made by docs/generate.py."""

from __future__ import annotations

from typing import Literal, TypeAlias

EventName: TypeAlias = Literal[
    "producer.connected",
    "producer.disconnecting",
    "producer.disconnected",
    "producer.reload",
    "producer.reloaded",
    "buffer.purged",
    "producer.closing",
    "producer.closed",
    "message.produced_async",
    "message.produced_sync",
    "messages.produced_async",
    "messages.produced_sync",
    "message.buffered",
    "messages.buffered",
    "buffer.flushed_async",
    "buffer.flushed_sync",
    "message.acknowledged",
    "message.purged",
    "transaction.started",
    "transaction.marked_as_consumed",
    "transaction.committed",
    "transaction.aborted",
    "transaction.finished",
    "oauthbearer.token_refresh",
    "statistics.emitted",
    "hub.stalled",
    "error.occurred",
    "producer.created",
    "producer.configured",
    "connection_pool.created",
    "connection_pool.setup",
    "connection_pool.reload",
    "connection_pool.reloaded",
    "connection_pool.shutdown",
]
