"""Chaos: programs that run while brokers die, and a reader that checks them."""
