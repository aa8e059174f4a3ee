"""Two ways to order: a message after the commit, and a message in an outbox."""

import json

from django.db import transaction
from django.http import JsonResponse

from greendrop import ProduceError
from greendrop.contrib.django import get_producer, produce_on_commit
from shop.models import Order, OutgoingMessage

STOCK = 100


def order(request):
    """Store an order, and send its message after the commit.

    The scope waits for the message. The order is stored by then in any case, so this
    view decides what a lost message means. If the process ends between the commit and
    the message, the message is lost.
    """
    fields = json.loads(request.body)
    try:
        with get_producer().scope(timeout=5.0), transaction.atomic():
            created = Order.objects.create(**fields)
            produce_on_commit(
                topic="greendrop-django-orders",
                key=str(created.pk),
                payload=request.body,
            )
            take_from_stock(created)
    except OutOfStockError as error:
        return JsonResponse({"error": str(error)}, status=400)
    except ProduceError as error:
        return JsonResponse({"order": created.pk, "not sent": str(error)}, status=202)
    return JsonResponse({"order": created.pk})


class OutOfStockError(Exception):
    """The stock is too small."""


def take_from_stock(order):
    """Reduce the stock; this may fail after the message was registered."""
    if order.count > STOCK:
        raise OutOfStockError(f"{order.count} are more than {STOCK}")


def order_surely(request):
    """Store an order and its message in one transaction; the relay sends it."""
    fields = json.loads(request.body)
    with transaction.atomic():
        created = Order.objects.create(**fields)
        OutgoingMessage.objects.create(
            topic="greendrop-django-outbox", key=str(created.pk), payload=request.body
        )
    return JsonResponse({"order": created.pk})
