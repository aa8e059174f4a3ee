"""The types of payloads, by the name of the event. Only type-checked, like `api`."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import assert_type

import greendrop
from greendrop import (
    BrokerError,
    ConsumedMessage,
    DeliveryReport,
    Event,
    EventName,
    Message,
    MessagePurgedError,
    OAuthBearer,
    Outcome,
    Producer,
    ProducerPool,
)


def on_acknowledged(event: Event[Literal["message.acknowledged"]]) -> int | None:
    """Read the payload of an acknowledgement."""
    assert_type(event["producer_id"], str)
    assert_type(event["topic"], str)
    assert_type(event["partition"], int)
    assert_type(event["offset"], int | None)
    assert_type(event["label"], Any)
    assert_type(event["delivery_report"], DeliveryReport)
    event["ofset"]  # type: ignore[call-overload]
    event["error"]  # type: ignore[call-overload]
    return event["offset"]


def on_error(event: Event[Literal["error.occurred"]]) -> None:
    """Read the payload of an error, with keys that some types have."""
    assert_type(event["type"], str)
    assert_type(event["error"], BaseException)
    assert_type(event["message"], Message)
    assert_type(event["partition"], int | None)
    assert_type(event["attempt"], int)
    event["pool"]  # type: ignore[call-overload]


def on_failure(
    event: Event[Literal["message.purged", "error.occurred"]],
) -> str:
    """Read what two events have in common."""
    assert_type(event["partition"], int | None)
    event["attempt"]  # type: ignore[call-overload]
    return event["topic"]


def on_any(event: Event) -> None:
    """Read an event without knowing its name: any event's keys are accepted."""
    assert_type(event.name, str)
    assert_type(event["delivery_report"], DeliveryReport)
    assert_type(event["message"], Message)
    assert_type(event["error"], BaseException)
    event["ofset"]  # type: ignore[call-overload]
    print(event.payload["anything"])


class Listener:
    """A listener with the types of its events."""

    def on_message_purged(self, event: Event[Literal["message.purged"]]) -> None:
        """Read the payload of a purged message."""
        assert_type(event["error"], MessagePurgedError)

    def on_producer_reload(self, event: Event[Literal["producer.reload"]]) -> None:
        """Read the payload of a reload, and change it."""
        assert_type(event["error"], BrokerError)
        event["kafka"]["client.id"] = "other"

    def on_transaction_finished(
        self, event: Event[Literal["transaction.finished"]]
    ) -> None:
        """Read the payload of a transaction."""
        assert_type(event["outcome"], Outcome)
        assert_type(event["time"], float)

    def on_transaction_marked_as_consumed(
        self, event: Event[Literal["transaction.marked_as_consumed"]]
    ) -> None:
        """Read the payload of a consumed message."""
        assert_type(event["message"], ConsumedMessage)

    def on_oauthbearer_token_refresh(
        self, event: Event[Literal["oauthbearer.token_refresh"]]
    ) -> None:
        """Read the payload of a token's refresh."""
        assert_type(event["bearer"], OAuthBearer)


def subscribe(producer: Producer, name: EventName) -> None:
    """Subscribe listeners to events that they fit, and to others."""
    monitor = producer.monitor
    monitor.subscribe("message.acknowledged", on_acknowledged)
    monitor.subscribe("error.occurred", on_error)
    monitor.subscribe("error.occurred", on_failure)
    monitor.subscribe("message.purged", on_failure)
    monitor.subscribe(name, on_any)
    assert_type(monitor.subscribe(Listener()), Listener)
    monitor.subscribe("message.purged", on_error)  # type: ignore[call-overload]
    monitor.subscribe(name, on_acknowledged)  # type: ignore[arg-type]

    @monitor.subscribe("buffer.purged")
    def on_purged(event: Event[Literal["buffer.purged"]]) -> int:
        return len(event["messages"])

    @monitor.subscribe("buffer.purged")  # type: ignore[arg-type]
    def on_another(event: Event[Literal["producer.closed"]]) -> None:
        print(event)

    print(on_purged, on_another)


def subscribe_to_the_process() -> None:
    """Read the payloads of events of the process."""

    @greendrop.monitor.subscribe("producer.configured")
    def on_configured(event: Event[Literal["producer.configured"]]) -> None:
        assert_type(event["producer"], Producer)
        event["producer"].monitor.subscribe(Listener())

    @greendrop.monitor.subscribe("connection_pool.created")
    def on_pool(event: Event[Literal["connection_pool.created"]]) -> None:
        assert_type(event["pool"], ProducerPool)
        assert_type(event["size"], int)

    print(on_configured, on_pool)
