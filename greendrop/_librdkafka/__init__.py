"""The boundary to librdkafka: handles, C bindings, configuration checks and error codes."""
