"""Configuration: settings, librdkafka's keys, redaction and placeholders."""
