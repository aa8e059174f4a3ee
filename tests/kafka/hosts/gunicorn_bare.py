"""A configuration of gunicorn without greendrop's hook."""
