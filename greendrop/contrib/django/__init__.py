"""Producers for a Django project, from its settings.

    INSTALLED_APPS = [..., "greendrop.contrib.django"]

    GREENDROP = {
        "default": {
            "KAFKA": {"bootstrap.servers": "localhost:9092"},
            "OPTIONS": {"max_wait_timeout": 10.0},
        },
    }

In a view: `get_producer().produce_sync(topic="events", payload=b"x")`. Nothing is made
when settings are read, and nothing opened before the first message.
"""

from greendrop.contrib.django._producers import (
    close_producers,
    get_producer,
    produce_on_commit,
)

__all__ = ["close_producers", "get_producer", "produce_on_commit"]
