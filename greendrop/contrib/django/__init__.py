"""A Django app: producers from the settings of the project.

    INSTALLED_APPS = [..., "greendrop.contrib.django"]

    GREENDROP = {
        "default": {
            "KAFKA": {"bootstrap.servers": "localhost:9092"},
            "OPTIONS": {"max_wait_timeout": 10.0},
        },
    }

In a view: `get_producer().produce_sync(topic="events", payload=b"x")`. Producers are
made at first use, and connect at the first message.
"""

from greendrop.contrib.django._producers import (
    AliasSettings,
    close_producers,
    get_producer,
    produce_on_commit,
)

__all__ = ["AliasSettings", "close_producers", "get_producer", "produce_on_commit"]
