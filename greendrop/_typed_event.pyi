# The types of the payloads of events: what `event[key]` returns.
# Made by docs/generate.py; changes here are lost.

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, overload
from greendrop.errors import BrokerError, MessagePurgedError
from greendrop.events import EventName
from greendrop.message import Message
from greendrop.delivery import DeliveryHandle, DeliveryReport
from greendrop.oauth import OAuthBearer
from greendrop._transactions.coordinator import Outcome
from greendrop.transaction import ConsumedMessage
from greendrop.producer import Producer
from greendrop.pool import ProducerPool

from typing_extensions import TypeVar

EventName_co = TypeVar("EventName_co", bound=EventName, covariant=True, default=Any)

class TypedEvent(Generic[EventName_co]):
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "error.occurred",
            "producer.reload",
            "producer.reloaded"
        ]],
        key: Literal["attempt"],
    ) -> int: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "oauthbearer.token_refresh"
        ]],
        key: Literal["bearer"],
    ) -> OAuthBearer: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "message.buffered",
            "messages.buffered"
        ]],
        key: Literal["buffer"],
    ) -> tuple[Message, ...]: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "producer.configured"
        ]],
        key: Literal["config"],
    ) -> Mapping[str, object]: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "message.acknowledged"
        ]],
        key: Literal["delivery_report"],
    ) -> DeliveryReport: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "error.occurred",
            "message.purged"
        ]],
        key: Literal["delivery_report"],
    ) -> None: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "error.occurred"
        ]],
        key: Literal["dispatched"],
    ) -> tuple[DeliveryHandle, ...]: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "error.occurred"
        ]],
        key: Literal["error"],
    ) -> BaseException: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "producer.reload"
        ]],
        key: Literal["error"],
    ) -> BrokerError: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "message.purged"
        ]],
        key: Literal["error"],
    ) -> MessagePurgedError: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "error.occurred"
        ]],
        key: Literal["event"],
    ) -> str: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "producer.reload"
        ]],
        key: Literal["kafka"],
    ) -> dict[str, str]: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "error.occurred",
            "message.acknowledged",
            "message.purged"
        ]],
        key: Literal["label"],
    ) -> Any: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "error.occurred"
        ]],
        key: Literal["left_out"],
    ) -> int: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "error.occurred",
            "message.buffered",
            "message.produced_async",
            "message.produced_sync"
        ]],
        key: Literal["message"],
    ) -> Message: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "transaction.marked_as_consumed"
        ]],
        key: Literal["message"],
    ) -> ConsumedMessage: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "buffer.flushed_async",
            "buffer.flushed_sync",
            "buffer.purged",
            "error.occurred",
            "messages.buffered",
            "messages.produced_async",
            "messages.produced_sync"
        ]],
        key: Literal["messages"],
    ) -> Sequence[Message]: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "error.occurred",
            "message.acknowledged",
            "message.purged"
        ]],
        key: Literal["offset"],
    ) -> int | None: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "transaction.marked_as_consumed"
        ]],
        key: Literal["offset_metadata"],
    ) -> str | None: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "transaction.finished"
        ]],
        key: Literal["outcome"],
    ) -> Outcome: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "message.acknowledged"
        ]],
        key: Literal["partition"],
    ) -> int: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "error.occurred",
            "message.purged"
        ]],
        key: Literal["partition"],
    ) -> int | None: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "connection_pool.created",
            "connection_pool.reload",
            "connection_pool.reloaded",
            "connection_pool.setup",
            "connection_pool.shutdown"
        ]],
        key: Literal["pool"],
    ) -> ProducerPool: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "producer.configured",
            "producer.created"
        ]],
        key: Literal["producer"],
    ) -> Producer: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "buffer.flushed_async",
            "buffer.flushed_sync",
            "buffer.purged",
            "error.occurred",
            "hub.stalled",
            "message.acknowledged",
            "message.buffered",
            "message.produced_async",
            "message.produced_sync",
            "message.purged",
            "messages.buffered",
            "messages.produced_async",
            "messages.produced_sync",
            "oauthbearer.token_refresh",
            "producer.closed",
            "producer.closing",
            "producer.configured",
            "producer.connected",
            "producer.disconnected",
            "producer.disconnecting",
            "producer.reload",
            "producer.reloaded",
            "statistics.emitted",
            "transaction.aborted",
            "transaction.committed",
            "transaction.finished",
            "transaction.marked_as_consumed",
            "transaction.started"
        ]],
        key: Literal["producer_id"],
    ) -> str: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "producer.created"
        ]],
        key: Literal["producer_id"],
    ) -> None: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "error.occurred"
        ]],
        key: Literal["retry"],
    ) -> bool: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "hub.stalled"
        ]],
        key: Literal["seconds"],
    ) -> float: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "connection_pool.created",
            "connection_pool.setup"
        ]],
        key: Literal["size"],
    ) -> int: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "hub.stalled"
        ]],
        key: Literal["stack"],
    ) -> str | None: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "statistics.emitted"
        ]],
        key: Literal["statistics"],
    ) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "buffer.flushed_async",
            "buffer.flushed_sync",
            "buffer.purged",
            "message.buffered",
            "message.produced_async",
            "message.produced_sync",
            "messages.buffered",
            "messages.produced_async",
            "messages.produced_sync",
            "producer.closed",
            "producer.disconnected",
            "producer.reloaded",
            "transaction.aborted",
            "transaction.committed",
            "transaction.finished",
            "transaction.marked_as_consumed",
            "transaction.started"
        ]],
        key: Literal["time"],
    ) -> float: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "connection_pool.created",
            "connection_pool.setup"
        ]],
        key: Literal["timeout"],
    ) -> float: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "error.occurred",
            "message.acknowledged",
            "message.purged"
        ]],
        key: Literal["topic"],
    ) -> str: ...
    @overload
    def __getitem__(
        self: TypedEvent[Literal[
            "error.occurred",
            "message.purged"
        ]],
        key: Literal["type"],
    ) -> str: ...
