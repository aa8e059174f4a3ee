"""A load: what it gets, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.chaos.records import Sent, Summary


@dataclass
class Setup:
    """The arguments of a load.

    Attributes:
        bootstrap_servers: Addresses of the brokers, behind proxies.
        direct_servers: Their own addresses, for what is not tested.
        topic: A topic of its own.
        folder: A folder of its own, which exists.
        seconds: How long it sends.
        seed: Of its random choices.
        peer: "greendrop", or "raw" for confluent-kafka alone.
        tasks: The number of its greenlets or threads; None for its own number.
    """

    bootstrap_servers: str
    direct_servers: str
    topic: str
    folder: Path
    seconds: float
    seed: int
    peer: str = "greendrop"
    tasks: int | None = None


class Account(NamedTuple):
    """The result of a load.

    Attributes:
        sent: Each message once.
        summary: Of all its programs.
    """

    sent: list[Sent]
    summary: Summary


@dataclass(frozen=True)
class Load:
    """A kind of load.

    Attributes:
        title: For people.
        run: Runs it.
        once: Whether messages are promised to be stored once, and in order.
        partitions: Of its topic.
    """

    title: str
    run: Callable[[Setup], Account]
    once: bool = True
    partitions: int = 12
