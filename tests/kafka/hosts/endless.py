"""A script that sends without waiting until it is interrupted."""

import itertools
import os
import signal
import sys

from greendrop import Producer
from tests.kafka.running import write_facts

topic = os.environ["TOPIC"]
producer = Producer(kafka={"bootstrap.servers": os.environ["SERVERS"]})
producer.produce_sync(topic=topic, payload="first")
handles = []
signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
write_facts(ready=True)

try:
    for number in itertools.count():
        handle = producer.produce_async(topic=topic, payload=str(number))
        handles.append(handle)
finally:
    # One more may have been accepted: the signal may have come after that.
    write_facts(sent=len(handles))
