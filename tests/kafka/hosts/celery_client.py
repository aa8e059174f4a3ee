"""Puts tasks of `celery_app` into the queue."""

from tests.kafka.hosts.celery_app import send

for number in range(200):
    send.delay(f"task-{number}")
