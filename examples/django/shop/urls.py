"""Paths of the views."""

from django.urls import path

from shop import views

urlpatterns = [
    path("order", views.order),
    path("order-surely", views.order_surely),
]
