"""A script whose threads share a producer."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from greendrop import Producer
from tests.kafka.running import write_facts

topic = os.environ["TOPIC"]
producer = Producer(kafka={"bootstrap.servers": os.environ["SERVERS"]})


def send(name):
    """Send and wait, a hundred times."""
    return [
        producer.produce_sync(topic=topic, payload=f"{name}-{number}").offset
        for number in range(100)
    ]


with ThreadPoolExecutor(32) as pool:
    offsets = list(pool.map(send, range(32)))
polling = producer.polling
producer.close()

write_facts(
    polling=polling,
    gevent="gevent" in sys.modules,
    delivered=sum(map(len, offsets)),
)
