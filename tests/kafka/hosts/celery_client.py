"""Puts tasks of `celery_app` into the queue, by name and number."""

import sys

from tests.kafka.hosts import celery_app

task, count = sys.argv[1:]
for number in range(int(count)):
    getattr(celery_app, task).delay(f"task-{number}")
