"""Soak: random programs on brokers that fail, and a long run that counts resources."""
