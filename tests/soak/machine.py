"""The programs of the soak: a state machine whose steps hypothesis chooses.

Each program runs some producers, pools and tasks on mock brokers that fail. In the end
all faults are over and everything is closed; then the ledger is compared with what is
stored, and nothing may be left open.
"""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from greendrop import GreendropError, Producer, ProducerPool
from greendrop._client import client as client_module
from greendrop.errors import ProducerUsedInParentProcessError
from greendrop.testing import MockCluster, trigger_fatal_error
from tests.forking import Fork
from tests.resources import Open
from tests.soak.ledger import Ledger
from tests.soak.subjects import (
    PARTITIONS,
    SLACK,
    TOPIC,
    VERBS,
    Job,
    Kind,
    Subject,
    pause,
    within,
)

if TYPE_CHECKING:
    from collections.abc import Callable

BROKERS = 2
#: Seconds for closing a producer after all faults are over.
_CLOSING = 20.0
#: Seconds for tasks to end then.
_JOINING = 120.0
#: Seconds that threads and descriptors may take to close.
_LEAVING = 10.0
#: Broken promises that are printed at once.
_SHOWN = 5
#: Producers of a pool.
_POOL = 2

#: Requests, and errors that brokers answer them with.
_FAILURES = {
    "Produce": (
        "NOT_LEADER_OR_FOLLOWER",
        "REQUEST_TIMED_OUT",
        "NOT_ENOUGH_REPLICAS",
        "MESSAGE_TOO_LARGE",
        "TOPIC_AUTHORIZATION_FAILED",
        "INVALID_RECORD",
        "OUT_OF_ORDER_SEQUENCE_NUMBER",
        "UNKNOWN_PRODUCER_ID",
        "INVALID_PRODUCER_EPOCH",
        "_TRANSPORT",
    ),
    "Metadata": ("LEADER_NOT_AVAILABLE", "_TRANSPORT"),
    "InitProducerId": ("COORDINATOR_LOAD_IN_PROGRESS", "_TRANSPORT"),
    "AddPartitionsToTxn": (
        "CONCURRENT_TRANSACTIONS",
        "INVALID_PRODUCER_EPOCH",
        "TOPIC_AUTHORIZATION_FAILED",
        "_TRANSPORT",
    ),
    "EndTxn": (
        "CONCURRENT_TRANSACTIONS",
        "NOT_COORDINATOR",
        "INVALID_PRODUCER_EPOCH",
        "_TRANSPORT",
    ),
}
failures = st.sampled_from(
    [(request, error) for request, errors in _FAILURES.items() for error in errors]
)
kinds = st.builds(
    Kind,
    guarantee=st.sampled_from(("plain", "idempotent", "transactional")),
    queue=st.sampled_from((5, 100_000)),
    linger=st.sampled_from((0, 5)),
    message_timeout=st.sampled_from((5_000, 1_000)),
    patience=st.sampled_from((2.0, 0.2)),
    listener=st.sampled_from(("none", "raises", "sends", "waits")),
    reloads=st.booleans(),
    statistics=st.sampled_from((0, 20)),
)
counts = st.integers(1, 12)
partitions = st.sampled_from((None, 0, 1, 2))
verbs = st.sampled_from(VERBS)


class Programs(RuleBasedStateMachine):
    """Random programs; see the module."""

    subjects = Bundle("subjects")
    pools = Bundle("pools")
    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self._errors = Unhandled()
        self._before = Open.now()
        self.ledger = Ledger()
        self._cluster = MockCluster(BROKERS)
        self._cluster.create_topic(TOPIC, PARTITIONS)
        self._servers = self._cluster.bootstrap_servers
        self._subjects: list[Subject] = []
        self._numbers = itertools.count()
        self._pools: list[ProducerPool] = []
        self._jobs: list[Job] = []

    # --- producers, pools and tasks ----------------------------------------------

    @initialize(target=subjects, kind=kinds)
    def construct_first(self, kind: Kind) -> Subject:
        """Construct the first producer: most rules need one."""
        return self._subject(kind)

    @rule(target=subjects, kind=kinds)
    def construct(self, kind: Kind) -> Subject:
        """Construct a producer."""
        return self._subject(kind)

    def _subject(self, kind: Kind) -> Subject:
        producer = kind.producer(self._servers, next(self._numbers))
        subject = Subject(self.ledger, producer, kind.listener)
        self._subjects.append(subject)
        return subject

    @rule(target=pools, kind=kinds)
    def construct_pool(self, kind: Kind) -> ProducerPool:
        """Construct a pool."""
        pool = ProducerPool(lambda: self._subject(kind).producer, size=_POOL, timeout=1)
        self._pools.append(pool)
        return pool

    def _start(self, function: Callable[[], object], *, native: bool) -> Job:
        job = Job(self.ledger, function, native=native)
        self._jobs.append(job)
        return job

    @rule(
        target=jobs,
        subject=subjects,
        verb=verbs,
        tasks=st.integers(1, 6),
        count=counts,
        native=st.booleans(),
    )
    def send_in_tasks(
        self, subject: Subject, verb: str, tasks: int, count: int, *, native: bool
    ) -> Any:
        """Send from several tasks, which go on beside the program."""
        started = []
        for _ in range(tasks):
            name = f"task {len(self._jobs)}"
            send = partial(subject.send, verb, count, name)
            started.append(self._start(send, native=native))
        return multiple(*started)

    @rule(job=consumes(jobs))
    def kill(self, job: Job) -> None:
        """Kill a greenlet wherever it is."""
        job.kill()

    @rule(pool=pools, verb=verbs, tasks=st.integers(1, 4), native=st.booleans())
    def send_with_pool(
        self, pool: ProducerPool, verb: str, tasks: int, *, native: bool
    ) -> None:
        """Send with producers of a pool, from several tasks."""
        for _ in range(tasks):
            name = f"task {len(self._jobs)}"
            self._start(partial(self._check_out, pool, verb, name), native=native)

    def _check_out(self, pool: ProducerPool, verb: str, name: str) -> None:
        try:
            with pool.producer() as producer:
                subjects = [
                    each for each in self._subjects if each.producer is producer
                ]
                subjects[0].send(verb, 3, name)
        except GreendropError as error:
            self.ledger.count_error(error)

    @rule(job=consumes(jobs))
    def join(self, job: Job) -> None:
        """Wait for a task."""
        job.join(_JOINING)

    @rule(seconds=st.sampled_from((0.0, 0.01, 0.2)))
    def wait(self, seconds: float) -> None:
        """Let tasks and pollers run."""
        pause(seconds)

    # --- verbs -------------------------------------------------------------------

    @rule(subject=subjects, verb=verbs, count=counts, partition=partitions)
    def send(self, subject: Subject, verb: str, count: int, partition: Any) -> None:
        """Send by one verb."""
        subject.send(verb, count, "main", partition=partition)

    @rule(subject=subjects, verb=verbs, key=st.sampled_from(("a", "b", "c")))
    def send_with_partition_key(self, subject: Subject, verb: str, key: str) -> None:
        """Send to the partition of a key."""
        subject.send(verb, 2, "main", partition_key=key)

    @rule(subject=subjects, verb=verbs)
    def send_to_a_missing_partition(self, subject: Subject, verb: str) -> None:
        """Send a message that can't be delivered, beside others that can."""
        subject.send(verb, 2, "main", partition=PARTITIONS + 5)

    @rule(
        subject=subjects, verb=verbs, acks=st.sampled_from((1, -1)), wait=st.booleans()
    )
    def send_by_variant(
        self, subject: Subject, verb: str, acks: int, *, wait: bool
    ) -> None:
        """Send by a variant, which may have a client of its own."""
        with suppress(GreendropError):
            variant = subject.producer.variant(
                max_wait_timeout=0.1 if wait else None, topic_config={"acks": acks}
            )
            subject.send(verb, 3, "main", producer=variant)

    @rule(subject=subjects, count=counts, timeout=st.sampled_from((0.0, 0.01, 1.0)))
    def send_in_scope(self, subject: Subject, count: int, timeout: float) -> None:
        """Send in a scope, which waits at its end."""

        def block() -> None:
            with subject.producer.scope(timeout):
                subject.send("async", count, "main")
                subject.send("many_async", count, "main")

        subject.call("scope", block, patience=2 * count * subject.patience)

    @rule(
        subject=subjects,
        sizes=st.lists(st.integers(1, 4), max_size=3),
        ending=st.sampled_from(("commit", "abort", "raise")),
        in_task=st.booleans(),
        native=st.booleans(),
    )
    def transact(
        self,
        subject: Subject,
        sizes: list[int],
        ending: str,
        *,
        in_task: bool,
        native: bool,
    ) -> None:
        """Run a transaction, here or in a task."""
        if not subject.producer.transactional:
            return
        if in_task:
            name = f"task {len(self._jobs)}"
            run = partial(subject.transact, name, sizes, ending)
            self._start(run, native=native)
        else:
            subject.transact("main", sizes, ending)

    @rule(
        subject=subjects, verb=st.sampled_from(("flush_sync", "flush_async", "flush"))
    )
    def flush(self, subject: Subject, verb: str) -> None:
        """Flush the buffer, or everything."""
        subject.call(verb, getattr(subject.producer, verb))

    @rule(
        subject=subjects,
        verb=st.sampled_from(("sync", "many_sync")),
        seconds=st.sampled_from((0.0, 0.005, 0.1)),
    )
    def interrupt(self, subject: Subject, verb: str, seconds: float) -> None:
        """Interrupt a verb by a `gevent.Timeout`, where there is gevent."""
        gevent = sys.modules.get("gevent")
        if gevent is None:
            return
        with gevent.Timeout(seconds, exception=False):
            subject.send(verb, 5, "main")

    @rule(subject=subjects)
    def purge(self, subject: Subject) -> None:
        """Drop all messages."""
        subject.call("purge", subject.producer.purge)

    @rule(subject=subjects)
    def disconnect(self, subject: Subject) -> None:
        """Disconnect until the next message."""
        subject.call("disconnect", subject.producer.disconnect)

    @rule(
        subject=subjects,
        timeout=st.sampled_from((0.0, 0.3, None)),
        force=st.booleans(),
        in_task=st.booleans(),
    )
    def close(
        self, subject: Subject, timeout: float | None, *, force: bool, in_task: bool
    ) -> None:
        """Close a producer, while others use it; and use it afterwards."""
        if in_task:
            self._start(partial(subject.close, timeout, force=force), native=False)
        else:
            subject.close(timeout, force=force)

    @rule(pool=pools, force=st.booleans())
    def close_pool(self, pool: ProducerPool, *, force: bool) -> None:
        """Close a pool, while others use it."""
        self._close_pool(pool, force=force)

    def _close_pool(self, pool: ProducerPool, *, force: bool) -> None:
        with within(self.ledger, "the close of a pool", 2 * _CLOSING + SLACK):
            try:
                pool.close(_CLOSING, force=force)
            except GreendropError as error:
                self.ledger.count_error(error)

    # --- forks -------------------------------------------------------------------

    @rule(subject=subjects)
    def fork(self, subject: Subject) -> None:
        """Use a producer in a forked child, after a reset."""
        if subject.producer.transactional or subject.producer.status == "closed":
            return
        # In the child of an unpatched program they would go on, too.
        self._join_all()
        (attempt,) = self.ledger.begin(subject.producer, "child", 1)
        used = subject.producer.status == "connected"
        in_child = partial(_use_in_child, subject.producer, attempt.label, used=used)
        with within(self.ledger, "a forked child", subject.patience + 2 * SLACK):
            problem = Fork(in_child).result(subject.patience + 2 * SLACK)
        attempt.state = "interrupted" if problem else "delivered"
        if problem and problem[0] != "error":
            self.ledger.note_broken(f"in a forked child: {problem}")

    # --- faults ------------------------------------------------------------------

    @rule(broker=st.sampled_from((1, 2, None)))
    def stop_broker(self, broker: int | None) -> None:
        """Stop one broker, or all of them."""
        self.ledger.expect_lost_answers()
        self._cluster.broker_down(broker)
        self.ledger.expect_lost_answers()

    @rule(broker=st.sampled_from((1, 2, None)))
    def start_broker(self, broker: int | None) -> None:
        """Start one broker, or all of them."""
        self._cluster.broker_up(broker)

    @rule(seconds=st.sampled_from((0.0, 0.01, 0.1, 1.0)))
    def change_round_trip(self, seconds: float) -> None:
        """Change how long all answers take."""
        self._cluster.round_trip(seconds)

    @rule(failure=failures, times=st.integers(1, 4))
    def fail_requests(self, failure: tuple[str, str], times: int) -> None:
        """Have the next requests of a kind fail."""
        request, error = failure
        if error == "_TRANSPORT":  # connections break at any time from now on
            self.ledger.may_double = True
            self.ledger.expect_lost_answers()
        if request == "Produce":
            self.ledger.may_delay = True
            self.ledger.expect_delays()
        self._cluster.fail_requests(request, error, times)

    @rule(seconds=st.sampled_from((0.05, 0.5)), broker=st.integers(1, BROKERS))
    def delay_requests(self, seconds: float, broker: int) -> None:
        """Have a broker answer the next messages late."""
        self._cluster.delay_requests("Produce", seconds, 2, broker=broker)

    @rule(partition=st.integers(0, PARTITIONS - 1), broker=st.integers(1, BROKERS))
    def move_partition(self, partition: int, broker: int) -> None:
        """Give a partition another leader."""
        # librdkafka sends to the new leader what the old one has not answered yet.
        self.ledger.may_delay = True
        self.ledger.expect_lost_answers()
        self._cluster.lead_partition(TOPIC, partition, broker)

    @rule(subject=subjects, code=st.sampled_from((45, 47, 64, 90)))
    def cause_fatal_error(self, subject: Subject, code: int) -> None:
        """Cause a fatal error in the client of a producer."""
        with suppress(GreendropError):
            trigger_fatal_error(subject.producer, code)

    # --- rules that always hold --------------------------------------------------

    @invariant()
    def nothing_is_broken(self) -> None:
        """No promise was broken so far."""
        assert not self.ledger.broken, "\n".join(self.ledger.broken)

    @invariant()
    def counts_are_possible(self) -> None:
        """No producer has a negative number of messages in flight."""
        assert all(each.producer.in_flight >= 0 for each in self._subjects)

    def teardown(self) -> None:
        """End all faults and close everything; check what is stored, and left."""
        try:
            self._heal()
            self._join_all()
            for pool in self._pools:
                self._close_pool(pool, force=False)
            for subject in self._subjects:
                subject.close(_CLOSING, force=False)
            stored = self._cluster.records(TOPIC, uncommitted=True, timeout=30)
        finally:
            self._cluster.close()
        broken = self.ledger.check(stored)
        TOTALS.add(self.ledger)
        self._subjects.clear()
        self._pools.clear()
        self._jobs.clear()
        broken += self._errors.end()
        broken += self._left()
        if broken:  # before hypothesis makes the program smaller, which takes minutes
            print(*broken[:_SHOWN], sep="\n", file=sys.stderr, flush=True)
        assert not broken, "\n".join(broken)

    def _heal(self) -> None:
        self._cluster.broker_up()
        self._cluster.round_trip(0)
        for request in _FAILURES:
            self._cluster.forgive_requests(request)
        for partition in range(PARTITIONS):
            self._cluster.lead_partition(TOPIC, partition, 1 + partition % BROKERS)

    def _join_all(self) -> None:
        for job in self._jobs:
            job.join(_JOINING)

    def _left(self) -> list[str]:
        left = self._before.left_open(_LEAVING)
        clients = [
            each for each in client_module._clients if not each.kafka_handle.closed
        ]
        left += [f"the client of {each.settings.id}" for each in clients]
        return [f"left open: {each}" for each in left]


def _use_in_child(producer: Producer, label: str, *, used: bool) -> Any:
    """Use a producer in a forked child; return what went wrong, or None."""
    message = {"topic": TOPIC, "payload": label, "label": label}
    try:
        if used:
            with suppress(ProducerUsedInParentProcessError):
                producer.produce_async(**message)
                return "promise", "it did not refuse to work before the reset"
        producer.reset()
        producer.produce_sync(**message)
    except GreendropError as error:
        return "error", repr(error)
    finally:
        producer.close(force=True)
    return None


class Unhandled:
    """Errors that only a hub, a thread or Python's own hook has seen."""

    def __init__(self) -> None:
        self._seen: list[str] = []
        sys.unraisablehook = lambda hook: self._note(hook.exc_value)
        threading.excepthook = lambda hook: self._note(hook.exc_value)
        hub_class = getattr(sys.modules.get("gevent.hub"), "Hub", None)
        if hub_class is not None:
            hub_class.print_exception = lambda _, __, *error: self._note(error[1])

    def _note(self, error: object) -> None:
        self._seen.append(f"unhandled: {error!r}")

    def end(self) -> list[str]:
        """Return what was seen, with what destructors raise now."""
        gc.collect()
        return self._seen


@dataclass
class Totals:
    """Numbers of messages and errors of all programs of this process."""

    programs: int = 0
    sent: int = 0
    acknowledged: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def add(self, ledger: Ledger) -> None:
        """Add a program that has ended."""
        self.programs += 1
        self.sent += ledger.sent
        self.acknowledged += ledger.acknowledged
        for name, count in ledger.errors.items():
            self.errors[name] = self.errors.get(name, 0) + count


TOTALS = Totals()
