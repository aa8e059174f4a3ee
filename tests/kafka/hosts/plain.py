"""A plain script: no gevent, no threads of its own."""

import os
import sys

from greendrop import Producer
from tests.kafka.running import write_facts

topic = os.environ["TOPIC"]

with Producer(kafka={"bootstrap.servers": os.environ["SERVERS"]}) as producer:
    for number in range(100):
        producer.produce_sync(topic=topic, payload=f"sync-{number}")
    producer.produce_many_sync(
        {"topic": topic, "payload": f"many-{number}"} for number in range(1000)
    )
    for number in range(1000):
        producer.produce_async(topic=topic, payload=f"async-{number}")
    polling = producer.polling

write_facts(polling=polling, gevent="gevent" in sys.modules)
