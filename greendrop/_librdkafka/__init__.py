"""The boundary to librdkafka: handles, C bindings, checks and error codes."""
