"""A script whose children, of multiprocessing, send with the script's own producer."""

import os
import sys

if os.environ.get("PATCHED"):
    from gevent import monkey

    monkey.patch_all()

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from greendrop import Producer

topic = os.environ["TOPIC"]
producer = Producer(kafka={"bootstrap.servers": os.environ["SERVERS"]})


def send(name):
    """Send in all ways, and end without closing."""
    producer.produce_sync(topic=topic, payload=f"{name}-sync")
    producer.buffer(topic=topic, payload=f"{name}-buffered")
    producer.produce_async(topic=topic, payload=f"{name}-async")


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    processes = [context.Process(target=send, args=(f"p{n}",)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if not os.environ.get("PATCHED"):  # gevent can't be combined with these
        with context.Pool(2) as pool:
            pool.map(send, [f"pool{number}" for number in range(20)])
            pool.close()
            pool.join()
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            list(executor.map(send, [f"executor{number}" for number in range(20)]))
    send("parent")
