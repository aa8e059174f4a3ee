"""A program that becomes a daemon, by forking twice, before or after it has sent."""

import os
import sys

from greendrop import Producer
from tests.kafka.running import write_facts

topic = os.environ["TOPIC"]
producer = Producer(kafka={"bootstrap.servers": os.environ["SERVERS"]})
used = sys.argv[1:] == ["used"]

if used:
    # Waited for: who forks while librdkafka looks up an address leaves a lock of the C
    # library's to the child that nobody releases.
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
