"""The core of a producer: dispatch, the buffer, disconnecting and shutdown."""
