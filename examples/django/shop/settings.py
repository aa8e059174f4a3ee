"""The project's settings; those of greendrop are at the end."""

import os
from pathlib import Path

SECRET_KEY = "only an example"  # noqa: S105 - not a secret
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "shop.urls"
INSTALLED_APPS = ["shop", "greendrop.contrib.django"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP_DATABASE", Path(__file__).parent / "shop.db"),
        # One writer at a time: take the lock at once, and wait for it.
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
    }
}

_KAFKA = {
    "bootstrap.servers": os.environ.get("GREENDROP_BOOTSTRAP_SERVERS", "localhost:9092")
}
GREENDROP = {
    "default": {
        "KAFKA": _KAFKA,
        "OPTIONS": {"max_wait_timeout": 10.0},
    },
    # The relay must keep the order and avoid duplicates, also when Kafka retries.
    "outbox": {
        "KAFKA": {**_KAFKA, "enable.idempotence": True},
        "PREPARE": "shop.kafka.prepare_outbox",
    },
}
