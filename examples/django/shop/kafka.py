"""What the project does with its producers when they are made."""

import logging

log = logging.getLogger(__name__)


def prepare_outbox(producer):
    """Log what goes wrong; the relay tries again by itself."""
    producer.monitor.subscribe(
        "error.occurred", lambda event: log.error("outbox: %s", event["error"])
    )
