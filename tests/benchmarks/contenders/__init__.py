"""The contenders: each a way to send to Kafka, behind one interface.

All of them ask for all acknowledgements, compress nothing and are not idempotent.
Settings that aren't named in a constructor are the library's defaults.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import cells
from tests.benchmarks.contenders.confluent import (
    Flush,
    PollGreenlet,
    PollThread,
    Raw,
    RawTransactions,
)
from tests.benchmarks.contenders.others import AioKafka, AioProducer, KafkaPython
from tests.benchmarks.contenders.ours import Greendrop, Unbatched

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.contenders.base import Contender, Place

CONTENDERS: dict[str, Callable[[Place], Contender]] = {
    cells.GREENDROP: Greendrop,
    cells.UNBATCHED: partial(Unbatched, linger=0),
    cells.LINGER_1: partial(Greendrop, linger=1),
    cells.ONE_PRODUCER: partial(Greendrop, most_producers=1),
    cells.FLUSH: Flush,
    cells.FLUSH_LINGER_0: partial(Flush, linger=0),
    cells.POLL_THREAD: partial(PollThread, linger=0),
    cells.POLL_THREAD_LINGER_5: partial(PollThread, linger=5),
    cells.POLL_GREENLET: partial(PollGreenlet, linger=0),
    cells.CALLBACK: Raw,
    cells.CALLBACK_LINGER_0: partial(Raw, linger=0),
    cells.TRANSACTIONS: RawTransactions,
    cells.TRANSACTIONS_LINGER_0: partial(RawTransactions, linger=0),
    cells.KAFKA_PYTHON: KafkaPython,
    cells.AIO_PRODUCER: AioProducer,
    cells.AIO_PRODUCER_1_MS: partial(AioProducer, buffer_timeout=0.001, linger=0),
    cells.AIOKAFKA: AioKafka,
    # librdkafka's `batch.size`; aiokafka's own limit is 16 KiB.
    cells.AIOKAFKA_1_MB: partial(AioKafka, max_batch_size=1_000_000),
}

#: Contenders for a program that calls `gevent.monkey.patch_all()` first of all.
PATCHED = frozenset({cells.KAFKA_PYTHON})
