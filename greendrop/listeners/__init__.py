"""Listeners that turn events into logs, metrics and traces."""
