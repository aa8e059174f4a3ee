"""A shop: its orders are rows of a database, and messages in Kafka."""
