"""Orders, and messages that wait until they are in Kafka."""

from typing import ClassVar

from django.db import models


class Order(models.Model):
    """What somebody wants."""

    what = models.CharField(max_length=100)
    count = models.PositiveIntegerField()

    def __str__(self):
        """Tell it."""
        return f"{self.count} {self.what}"


class OutgoingMessage(models.Model):
    """A message of the same transaction as the change that it tells of.

    If that commits the message is here, and the relay sends it: once, or a second time
    if it is interrupted before it could delete it. Readers go by its `outbox-id`.
    """

    topic = models.CharField(max_length=249)
    key = models.CharField(max_length=200)
    payload = models.BinaryField()

    class Meta:
        """They are sent in this order."""

        ordering: ClassVar = ["id"]

    def __str__(self):
        """Tell where it goes."""
        return f"message {self.pk} to {self.topic}"
