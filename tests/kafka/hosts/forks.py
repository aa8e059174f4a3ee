"""A script that forks after it has used its producer."""

import os
import sys

from greendrop import Producer, ProducerUsedInParentProcessError
from tests.kafka.running import write_facts

topic = os.environ["TOPIC"]
producer = Producer(kafka={"bootstrap.servers": os.environ["SERVERS"]})
producer.produce_sync(topic=topic, payload="before")
refusals = []

for number in range(3):
    if os.fork() == 0:
        try:
            producer.produce_sync(topic=topic, payload="refused")
        except ProducerUsedInParentProcessError as error:
            write_facts(**{f"refusal{number}": str(error)})
        producer.reset()
        producer.produce_sync(topic=topic, payload=f"child-{number}")
        # Nothing is closed here: the child's producer ends with the child.
        producer.produce_async(topic=topic, payload=f"child-{number}-late")
        sys.exit()
    producer.produce_sync(topic=topic, payload=f"parent-{number}")
    _, status = os.wait()
    write_facts(**{f"status{number}": os.waitstatus_to_exitcode(status)})

producer.produce_sync(topic=topic, payload="after")
