"""Logging: structlog if the program uses it, else the standard library's logging."""
