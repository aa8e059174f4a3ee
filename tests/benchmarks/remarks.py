"""Remarks on the limits of greendrop in a cell, shown below the goals of a table."""

REMARKS = {
    "keys-10": "aiokafka puts all partitions of a broker into one request. librdkafka"
    " sends one request for each partition, and each answer wakes the hub.",
    "keys-30": "As with 10 greenlets: one request for each partition.",
    "fire-200k": "A handle, a report and the checks of a message are Python objects and"
    " bytecode. The raw callback keeps nothing of a message but a counter.",
    "batch-1000": "As without waiting: a handle and a report for each message. aiokafka"
    " has futures, `flush()` has neither.",
}
