"""Chaos: programs that run while brokers die, and a foreign reader that checks them."""
