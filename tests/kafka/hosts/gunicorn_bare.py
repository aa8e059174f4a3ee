"""A configuration of gunicorn's that leaves all to it."""
