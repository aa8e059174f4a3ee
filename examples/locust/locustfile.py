"""Users that order, and look at the time that Kafka takes."""

from __future__ import annotations

import os

from locust import between, task

from greendrop.contrib.locust import GreendropUser


class Shopper(GreendropUser):
    """Orders every now and then, and waits until each order is stored."""

    # Without it: --host. All users of the class share one producer.
    kafka = {  # noqa: RUF012 - greendrop.contrib.locust says that it is the class's
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
        """Send some messages and wait for none; they are in the statistics, too."""
        for _ in range(5):
            self.client.produce_async(
                topic="greendrop-locust-clicks", payload=b"click", name="clicks"
            )
