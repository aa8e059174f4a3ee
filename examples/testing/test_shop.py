"""Tests of the shop: its messages, and its answers when a message fails."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import shop

from greendrop.testing import MemoryCluster, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from greendrop.testing import Record


def test_an_order_is_sent(greendrop_records: Callable[[str], list[Record]]) -> None:
    """The key is the customer, so that the orders of a customer stay in order."""
    answer = shop.order("ada", "tea")

    (record,) = greendrop_records("orders")
    assert record.key == b"ada"
    assert json.loads(record.payload or b"") == {"customer": "ada", "what": "tea"}
    assert f"{record.partition}-{record.offset}" in answer


def test_a_refused_order(greendrop_cluster: MemoryCluster) -> None:
    """The customer gets an apology, and the next order succeeds."""
    greendrop_cluster.fail_messages("TOPIC_AUTHORIZATION_FAILED", times=1)

    assert shop.order("ada", "tea") == "Sorry, try again later."
    assert shop.order("ada", "tea").startswith("Thank you!")
    assert len(greendrop_cluster.records("orders")) == 1


def test_unreachable_brokers(greendrop_cluster: MemoryCluster) -> None:
    """The customer gets an apology after a limited time."""
    impatient = shop.producer.variant(max_wait_timeout=0.1)
    shop.producer, before = impatient, shop.producer
    greendrop_cluster.broker_down()
    try:
        assert shop.order("ada", "tea") == "Sorry, try again later."
    finally:
        shop.producer = before


def test_each_order_is_reported(greendrop_cluster: MemoryCluster) -> None:
    """A listener of the shop's producer gets an event for each order."""
    with Recorder(shop.producer) as recorder:
        shop.order("ada", "tea")
        shop.order("bob", "coffee")

    assert len(recorder.named("message.acknowledged")) == 2
    assert recorder.errors == []
    assert len(greendrop_cluster.records()) == 2
