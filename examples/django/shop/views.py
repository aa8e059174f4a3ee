"""Two ways to order: one tells Kafka after the commit, one surely."""

import json

from django.db import transaction
from django.http import JsonResponse

from greendrop import ProduceError
from greendrop.contrib.django import get_producer, produce_on_commit
from shop.models import Order, OutgoingMessage

STOCK = 100


def order(request):
    """Store an order; tell Kafka of it once it is committed.

    The scope waits for the message. By then the order is stored in any case: what a
    lost message means is to be decided here. A process that ends between the commit and
    the message tells nobody.
    """
    wanted = json.loads(request.body)
    try:
        with get_producer().scope(timeout=5.0), transaction.atomic():
            made = Order.objects.create(**wanted)
            produce_on_commit(
                topic="greendrop-django-orders", key=str(made.pk), payload=request.body
            )
            take_from_stock(made)
    except OutOfStockError as error:
        return JsonResponse({"error": str(error)}, status=400)
    except ProduceError as error:
        return JsonResponse({"order": made.pk, "not told": str(error)}, status=202)
    return JsonResponse({"order": made.pk})


class OutOfStockError(Exception):
    """So many are not there."""


def take_from_stock(order):
    """Do what may fail after the message was to be sent."""
    if order.count > STOCK:
        raise OutOfStockError(f"{order.count} are more than {STOCK}")


def order_surely(request):
    """Store an order with its message, in one transaction; the relay sends it."""
    wanted = json.loads(request.body)
    with transaction.atomic():
        made = Order.objects.create(**wanted)
        OutgoingMessage.objects.create(
            topic="greendrop-django-outbox", key=str(made.pk), payload=request.body
        )
    return JsonResponse({"order": made.pk})
