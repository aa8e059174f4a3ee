"""Remarks on the limits of greendrop in a cell, shown below the goals of a table.

Figures without a source were measured in December 2026 on the machine of the page, with
real-time priority for the client and the broker, so that other programs did not count.
"""

REMARKS = {
    "wait-1": "Of 240 µs librdkafka and the broker take 200. greendrop queues the"
    " message within 4 µs. From the hub's wake-up to the return of the call it takes"
    " 34 µs, for a poll, the report and two switches of greenlets; `flush()` waits in"
    " C, and takes 3. With real-time priority for client and broker it is 1.20 times"
    " raw flush, and 1.09 times the rate of the poll thread: another program on the"
    " same processors delays each of the wake-ups.",
    "wait-10": "Ten messages share a round of 320 µs. Of these the hub works 140, for"
    " one poll, ten reports and ten sends; the rest is one request through librdkafka"
    " and the broker, on the same two processors. 0.96 to 1.25 times aiokafka in five"
    " runs.",
    "wait-30": "As with 10 greenlets: 0.97, 1.05 and 1.24 times in three runs.",
    "wait-100": "With 100 greenlets and more the hub's thread is busy all the time:"
    " 670 bytecodes of Python for each message, half of them for its wait, and two"
    " switches of greenlets. With real-time priority 1.15 times aiokafka while little"
    " else runs; while tens of other programs run 0.8 times: a message then takes 16"
    " instead of 9 µs of processor time, and with aiokafka 10 instead of 8.5.",
    "wait-300": "As with 100 greenlets: the processor time of Python. 0.85 to 1.05"
    " times aiokafka in three runs with real-time priority.",
    "wait-1000": "The hub's thread works all the time: some 7 µs of Python for each"
    " message, as with 100 greenlets. With 1 MB batches aiokafka's event loop takes as"
    " long: 0.87 to 1.27 times in five runs.",
    "keys-10": "aiokafka puts all partitions of a broker into one request. librdkafka"
    " sends one request for each partition, and each answer wakes the hub.",
    "keys-30": "As with 10 greenlets: one request for each partition.",
    "threads-1": "About 30 µs of Python for each message, beside 200 in librdkafka"
    " and the broker. With real-time priority 1.14 times raw flush.",
    "threads-8": "The thread that polls wakes the others, on the processors that the"
    " broker needs as well. With real-time priority 3.7 times raw flush; without it"
    " 1.7, 2.4, 2.5 and 3.4 times in four runs of one day.",
    "trap-5ms-100": "The hub works on reports and sends one after another, for 1.3 of"
    " 6 ms; in between it waits for the broker. With the poll thread another thread"
    " takes the reports, so that each message waits for fewer others. With real-time"
    " priority 0.98 times the poll thread.",
    "trap-20ms-100": "As with a round trip of 5 ms.",
    "trap-20ms-1000": "As with a round trip of 5 ms; the hub works for half of the"
    " time.",
    "fire-200k": "A handle, a report and the checks of a message are Python objects"
    " and bytecode: 250 bytecodes for each message. The raw callback keeps nothing of"
    " a message but a counter.",
    "batch-1000": "As without waiting: a handle and a report for each message, of 180"
    " bytecodes. aiokafka has futures, `flush()` has neither. The ticker waits"
    " longest when a batch ends and the next one is checked, queued and handed to"
    " librdkafka. With real-time priority 2.3 times aiokafka while little else runs,"
    " and 1.9 ms.",
    "transact-100": "With real-time priority 3.6 ms, 1.3 times raw with `linger.ms=5`"
    " and 0.95 times raw with 0. Of the 0.8 ms beyond raw, beginning takes 0.2, the"
    " reports and the check of their offsets 0.25, and the native thread of the"
    " commit 0.25: a commit that blocked the hub would save 0.2. librdkafka itself"
    " waits for 1 ms before it adds the first partition to a transaction, and tries"
    " again after 20 ms if the coordinator is still busy with the previous"
    " transaction; on a busy machine that happens to 5 to 25 of 100 transactions,"
    " with raw as well.",
}
