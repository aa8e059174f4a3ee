"""Listeners that are ready to be subscribed, one module for each vendor."""
