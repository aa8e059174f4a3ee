"""Orders, and the outbox: messages that are not yet in Kafka."""

from typing import ClassVar

from django.db import models


class Order(models.Model):
    """An order of a customer."""

    what = models.CharField(max_length=100)
    count = models.PositiveIntegerField()

    def __str__(self):
        """Return count and article."""
        return f"{self.count} {self.what}"


class OutgoingMessage(models.Model):
    """A message that is stored in the transaction of the change that it announces.

    After the commit the relay sends the message. It sends it again if it is interrupted
    before it can delete the row. Consumers deduplicate by the header `outbox-id`.
    """

    topic = models.CharField(max_length=249)
    key = models.CharField(max_length=200)
    payload = models.BinaryField()

    class Meta:
        """Messages are sent in this order."""

        ordering: ClassVar = ["id"]

    def __str__(self):
        """Return number and topic."""
        return f"message {self.pk} to {self.topic}"
