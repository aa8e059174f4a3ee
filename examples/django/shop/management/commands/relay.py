"""`manage.py relay`: sends what is in the outbox, in order."""

import time

from django.core.management.base import BaseCommand
from django.db import transaction

from greendrop import ProduceError, ProduceManyError
from greendrop.contrib.django import get_producer
from shop.models import OutgoingMessage

BATCH = 500
#: Seconds between two looks at an empty outbox, and after a failure.
PAUSE = 0.5


class Command(BaseCommand):
    """One relay at a time: two would send twice, and out of order."""

    help = (
        "Sends the messages of the outbox to Kafka, and deletes those that are stored."
    )

    def add_arguments(self, parser):
        """Add ours."""
        parser.add_argument("--until-empty", action="store_true")

    def handle(self, **options):
        """Run until it is interrupted."""
        sent = 0
        while True:
            try:
                count = self.send_batch()
            except ProduceError as error:
                self.stderr.write(f"tries again soon: {error}")
                count = 0
            sent += count
            if not count:
                if options["until_empty"] and not OutgoingMessage.objects.exists():
                    break
                time.sleep(PAUSE)
        self.stdout.write(f"the relay has sent {sent} messages")

    def send_batch(self):
        """Send some, and delete those that Kafka has; give how many these are."""
        waiting = list(OutgoingMessage.objects.all()[:BATCH])
        if not waiting:
            return 0
        try:
            get_producer("outbox").produce_many_sync(map(as_message, waiting))
            stored = waiting
        except ProduceManyError as error:
            # Those up to the first that failed: what comes later must not overtake it.
            stored = waiting[: error.failed_index]
            if not stored:
                raise
        with transaction.atomic():
            ids = [message.pk for message in stored]
            OutgoingMessage.objects.filter(pk__in=ids).delete()
        return len(stored)


def as_message(waiting):
    """Make a message of a row. Readers that find its id twice skip the second one."""
    return {
        "topic": waiting.topic,
        "key": waiting.key,
        "payload": bytes(waiting.payload),
        "headers": {"outbox-id": str(waiting.pk)},
    }
