"""What all variants of one producer share: dispatch, the buffer, disconnecting and shutdown."""
