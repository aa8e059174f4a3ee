"""Users that place orders, and measure how long Kafka takes."""

from __future__ import annotations

import os

from locust import between, task

from greendrop.contrib.locust import GreendropUser


class Shopper(GreendropUser):
    """A user that waits until each of its orders is stored."""

    # Without this: --host. All users of the class share one producer.
    kafka = {  # noqa: RUF012 - shared by all users of the class
        "bootstrap.servers": os.environ.get(
            "GREENDROP_BOOTSTRAP_SERVERS", "localhost:9092"
        )
    }
    wait_time = between(0.1, 0.5)

    @task(10)
    def order(self) -> None:
        """Wait for one message."""
        self.client.produce_sync(topic="greendrop-locust-orders", payload=b"x" * 200)

    @task(1)
    def look_around(self) -> None:
        """Send some messages without waiting; Locust's table has them, too."""
        for _ in range(5):
            self.client.produce_async(
                topic="greendrop-locust-clicks", payload=b"click", name="clicks"
            )
