"""One connected client: sending, batching, polling and delivery reports."""
