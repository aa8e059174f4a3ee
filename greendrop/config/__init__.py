"""Configuration: settings, librdkafka's keys and their checks, redaction."""
