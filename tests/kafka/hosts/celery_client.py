"""Has the tasks of `celery_app` done, and tells their results."""

from celery import group

from tests.kafka.hosts.celery_app import send
from tests.kafka.running import tell

results = group(send.s(f"task-{number}") for number in range(200)).apply_async()
tell(results=results.get(timeout=45, interval=0.05))
