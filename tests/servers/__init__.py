"""Servers that tests, benchmarks and developers work against.

`kafka` starts a real Apache Kafka, `proxy` puts a slow or broken network before a
server, `reading` reads a topic with a client that is not librdkafka. Nothing here
imports greendrop: what it is judged by must not depend on it.
"""
