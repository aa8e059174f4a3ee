"""Preparation of the project's producers."""

import logging

log = logging.getLogger(__name__)


def prepare_outbox(producer):
    """Log errors; the relay retries by itself."""
    producer.monitor.subscribe(
        "error.occurred", lambda event: log.error("outbox: %s", event["error"])
    )
