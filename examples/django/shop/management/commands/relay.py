"""The command `manage.py relay`, which sends the messages of the outbox in order."""

import time

from django.core.management.base import BaseCommand
from django.db import transaction

from greendrop import ProduceError, ProduceManyError
from greendrop.contrib.django import get_producer
from shop.models import OutgoingMessage

BATCH = 500
#: Seconds before the next query of an empty outbox, and after a failure.
PAUSE = 0.5


class Command(BaseCommand):
    """Run one relay at a time: two would send twice, and out of order."""

    help = (
        "Sends the messages of the outbox to Kafka, and deletes those that are stored."
    )

    def add_arguments(self, parser):
        """Add the options of this command."""
        parser.add_argument("--until-empty", action="store_true")

    def handle(self, **options):
        """Send until an interrupt, or until the outbox is empty."""
        sent = 0
        while True:
            try:
                count = self.send_batch()
            except ProduceError as error:
                self.stderr.write(f"retrying soon: {error}")
                count = 0
            sent += count
            if not count:
                if options["until_empty"] and not OutgoingMessage.objects.exists():
                    break
                time.sleep(PAUSE)
        self.stdout.write(f"the relay has sent {sent} messages")

    def send_batch(self):
        """Send a batch, delete its stored messages, and return their number."""
        waiting = list(OutgoingMessage.objects.all()[:BATCH])
        if not waiting:
            return 0
        try:
            get_producer("outbox").produce_many_sync(map(as_message, waiting))
            stored = waiting
        except ProduceManyError as error:
            # Only those before the first failure: later messages must not overtake it.
            stored = waiting[: error.failed_index]
            if not stored:
                raise
        with transaction.atomic():
            ids = [message.pk for message in stored]
            OutgoingMessage.objects.filter(pk__in=ids).delete()
        return len(stored)


def as_message(waiting):
    """Return the message of a row. Consumers skip an `outbox-id` that they know."""
    return {
        "topic": waiting.topic,
        "key": waiting.key,
        "payload": bytes(waiting.payload),
        "headers": {"outbox-id": str(waiting.pk)},
    }
