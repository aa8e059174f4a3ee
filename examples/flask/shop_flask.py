"""A Flask application made by a factory, with two producers from its configuration."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, request

from greendrop import ProduceError
from greendrop.contrib.flask import Greendrop

greendrop = Greendrop()
audit = Greendrop(name="audit")


def create_app(**config: object) -> Flask:
    """Make an application; tests pass their own producer, see the README."""
    app = Flask(__name__)
    kafka = {"bootstrap.servers": os.environ.get("GREENDROP_BOOTSTRAP_SERVERS", "")}
    app.config.update(
        GREENDROP_KAFKA=kafka,
        GREENDROP_SETTINGS={"max_wait_timeout": 10.0},
        # The audit log is in no hurry: librdkafka makes larger batches.
        AUDIT_KAFKA=kafka | {"linger.ms": 100},
    )
    app.config.update(config)
    greendrop.init_app(app)
    audit.init_app(app)
    app.add_url_rule("/orders", view_func=order, methods=["POST"])
    app.register_error_handler(ProduceError, not_stored)
    return app


def order() -> dict[str, Any]:
    """Take an order, and answer when Kafka has stored it."""
    customer = request.remote_addr or ""
    audit.producer.produce_async(topic="greendrop-flask-audit", payload=customer)
    report = greendrop.producer.produce_sync(
        topic="greendrop-flask-orders", payload=request.get_data()
    )
    return {"order": f"{report.partition}-{report.offset}"}


def not_stored(error: ProduceError) -> tuple[dict[str, Any], int]:
    """Answer a request whose message may not be stored."""
    return {"error": str(error)}, 503
