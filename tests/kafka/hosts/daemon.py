"""A program that forks twice to become a daemon, before or after its first message."""

import os
import sys

from greendrop import Producer
from tests.kafka.running import write_facts

topic = os.environ["TOPIC"]
producer = Producer(kafka={"bootstrap.servers": os.environ["SERVERS"]})
used = sys.argv[1:] == ["used"]

if used:
    # Wait: a fork while librdkafka looks up an address leaves a lock of the C library
    # locked in the child for ever.
    producer.produce_sync(topic=topic, payload="parent")
if os.fork():
    sys.exit()
os.setsid()
if os.fork():
    os._exit(0)

write_facts(daemon=os.getpid())
if used:
    producer.reset()
for number in range(100):
    producer.produce_sync(topic=topic, payload=f"sync-{number}")
for number in range(1000):
    producer.produce_async(topic=topic, payload=f"async-{number}")
