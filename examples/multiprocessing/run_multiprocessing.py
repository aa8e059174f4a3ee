"""Counts words in several processes, each of which sends its counts.

    python examples/multiprocessing/run_multiprocessing.py [fork | spawn | forkserver]

Messages go to a built-in mock cluster, or to the brokers in
`GREENDROP_BOOTSTRAP_SERVERS`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from greendrop import Producer
from greendrop.testing import MockCluster

# At module level, so that each child has a producer of its own: a forked child inherits
# it unused, and a spawned child imports this module again.
producer = Producer()


def begin(servers: str) -> None:
    """Configure the producer of the child; it connects at its first message."""
    producer.setup(kafka={"bootstrap.servers": servers})


def count_words(path: Path) -> int:
    """Count the words of a file, and send the counts without waiting."""
    words = Counter(path.read_text().split())
    for word, count in words.items():
        producer.produce_async(
            topic="greendrop-words", key=word, payload=f"{path.name}: {count}"
        )
    return len(words)


def main() -> None:
    """Run the example."""
    method = sys.argv[1] if len(sys.argv) > 1 else "spawn"
    pages = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
    with ExitStack() as stack:
        servers = (
            os.environ.get("GREENDROP_BOOTSTRAP_SERVERS")
            or stack.enter_context(MockCluster.spawn()).bootstrap_servers
        )
        context = multiprocessing.get_context(method)
        with context.Pool(2, begin, (servers,)) as pool:
            counts = pool.map(count_words, pages)
            # The end of the block calls `terminate`, which kills the children before
            # their messages are delivered.
            pool.close()
            pool.join()
        print(f"{method}: {len(pages)} files, {sum(counts)} words sent and delivered")


if __name__ == "__main__":
    main()
