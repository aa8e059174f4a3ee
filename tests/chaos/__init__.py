"""Chaos.

Programs that run while brokers die, and an independent reader that checks them.
"""
