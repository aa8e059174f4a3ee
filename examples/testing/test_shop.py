"""What the shop sends, and what it says when that fails."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import shop

from greendrop.testing import MemoryCluster, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from greendrop.testing import Record


def test_an_order_is_sent(greendrop_records: Callable[[str], list[Record]]) -> None:
    """By its customer, so that one customer's orders stay in order."""
    answer = shop.order("ada", "tea")

    (record,) = greendrop_records("orders")
    assert record.key == b"ada"
    assert json.loads(record.payload or b"") == {"customer": "ada", "what": "tea"}
    assert f"{record.partition}-{record.offset}" in answer


def test_an_order_that_is_refused(greendrop_cluster: MemoryCluster) -> None:
    """The customer is told, and the next order goes through."""
    greendrop_cluster.fail_messages("TOPIC_AUTHORIZATION_FAILED", times=1)

    assert shop.order("ada", "tea") == "Sorry, try again later."
    assert shop.order("ada", "tea").startswith("Thank you!")
    assert len(greendrop_cluster.records("orders")) == 1


def test_brokers_that_are_away(greendrop_cluster: MemoryCluster) -> None:
    """Nobody waits for ever."""
    impatient = shop.producer.variant(max_wait_timeout=0.1)
    shop.producer, before = impatient, shop.producer
    greendrop_cluster.broker_down()
    try:
        assert shop.order("ada", "tea") == "Sorry, try again later."
    finally:
        shop.producer = before


def test_orders_are_told_of(greendrop_cluster: MemoryCluster) -> None:
    """Whoever listens to the shop's producer hears of each order."""
    with Recorder(shop.producer) as recorder:
        shop.order("ada", "tea")
        shop.order("bob", "coffee")

    assert len(recorder.named("message.acknowledged")) == 2
    assert recorder.errors == []
    assert len(greendrop_cluster.records()) == 2
