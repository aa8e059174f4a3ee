"""Transactions: their coordinator, their clients and their calls into librdkafka."""
