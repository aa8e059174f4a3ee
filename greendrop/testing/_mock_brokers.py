"""Bindings by ctypes for librdkafka's mock cluster, which confluent-kafka lacks."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_int16, c_int32, c_size_t, c_void_p
from typing import TYPE_CHECKING, Any

from greendrop._librdkafka.bindings import (
    Prototypes,
    declare,
    load_library,
    new_client,
    set_property,
)
from greendrop.errors import GreendropError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOCK: Prototypes = {
    "cluster_new": (c_void_p, (c_void_p, c_int)),
    "cluster_destroy": (None, (c_void_p,)),
    "cluster_bootstraps": (c_char_p, (c_void_p,)),
    "topic_create": (c_int, (c_void_p, c_char_p, c_int, c_int)),
    "topic_set_error": (None, (c_void_p, c_char_p, c_int)),
    "partition_set_leader": (c_int, (c_void_p, c_char_p, c_int32, c_int32)),
    "broker_set_down": (c_int, (c_void_p, c_int32)),
    "broker_set_up": (c_int, (c_void_p, c_int32)),
    "broker_set_rtt": (c_int, (c_void_p, c_int32, c_int)),
    "coordinator_set": (c_int, (c_void_p, c_char_p, c_char_p, c_int32)),
    "push_request_errors_array": (
        None,
        (c_void_p, c_int16, c_size_t, POINTER(c_int)),
    ),
    "clear_request_errors": (None, (c_void_p, c_int16)),
    # Variadic: pairs of int follow.
    "broker_push_request_error_rtts": (c_int, (c_void_p, c_int32, c_int16, c_size_t)),
    "start_request_tracking": (None, (c_void_p,)),
    "stop_request_tracking": (None, (c_void_p,)),
    "clear_requests": (None, (c_void_p,)),
    "get_requests": (c_void_p, (c_void_p, POINTER(c_size_t))),
    "request_api_key": (c_int16, (c_void_p,)),
    "request_id": (c_int32, (c_void_p,)),
    "request_destroy": (None, (c_void_p,)),
}
_ALL_BROKERS = -1


class MockBrokers:
    """librdkafka's mock cluster: brokers on local ports, with faults on demand.

    Brokers are numbered from 1; -1 means all of them. Error and request numbers are
    those of the Kafka protocol, negative ones librdkafka's own.

    Raises:
        GreendropError: librdkafka can't be called, or can't start the brokers.
    """

    __slots__ = ("_blocking", "_client", "_cluster", "_short")

    def __init__(self, brokers: int) -> None:
        library = load_library()
        if library is None:
            raise GreendropError(
                "no mock cluster: can't call the librdkafka of confluent-kafka"
            )
        self._short, self._blocking = library.short, library.blocking
        mock = {f"rd_kafka_mock_{name}": kind for name, kind in _MOCK.items()}
        declare(self._blocking, mock)
        conf = self._short.rd_kafka_conf_new()
        set_property(library, conf, "log_level", "0")
        # A client without brokers: with test.mock.num.brokers it would connect to the
        # cluster itself, and its requests would be among those that a test counts.
        client, problem = new_client(library, conf)
        if client is None:
            raise GreendropError(problem)
        self._cluster = self._function("cluster_new")(client, brokers)
        if not self._cluster:
            self._blocking.rd_kafka_destroy(client)
            raise GreendropError(f"librdkafka can't start {brokers} mock brokers")
        self._client: int | None = client

    def _function(self, name: str) -> Any:  # noqa: ANN401 - a function of C
        return getattr(self._blocking, f"rd_kafka_mock_{name}")

    def _call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401 - as C has it
        if self._client is None:
            raise GreendropError("the mock cluster is closed")
        return self._function(name)(self._cluster, *arguments)

    def _call_checked(self, name: str, *arguments: object) -> None:
        code = self._call(name, *arguments)
        if code:
            raise GreendropError(
                f"the mock cluster refused {name}{arguments!r}: error {code}"
            )

    @property
    def bootstraps(self) -> str:
        """The addresses of the brokers, for `bootstrap.servers`."""
        addresses: bytes = self._call("cluster_bootstraps")
        return addresses.decode()

    def topic_create(self, topic: str, partitions: int, replicas: int = 1) -> None:
        """Create a topic; others get 4 partitions at first use."""
        self._call_checked("topic_create", topic.encode(), partitions, replicas)

    def topic_set_error(self, topic: str, code: int) -> None:
        """Let metadata and AddPartitionsToTxn requests for a topic fail; 0 ends it."""
        self._call("topic_set_error", topic.encode(), code)

    def partition_set_leader(self, topic: str, partition: int, broker: int) -> None:
        """Move a partition to another broker, -1 for none."""
        self._call_checked("partition_set_leader", topic.encode(), partition, broker)

    def coordinator_set(self, kind: str, key: str, broker: int) -> None:
        """Choose the coordinator of a "transaction" or "group"."""
        self._call_checked("coordinator_set", kind.encode(), key.encode(), broker)

    def broker_set_down(self, broker: int = _ALL_BROKERS) -> None:
        """Close all connections of a broker and refuse new ones."""
        self._call_checked("broker_set_down", broker)

    def broker_set_up(self, broker: int = _ALL_BROKERS) -> None:
        """Accept connections again."""
        self._call_checked("broker_set_up", broker)

    def set_rtt(self, milliseconds: int, broker: int = _ALL_BROKERS) -> None:
        """Answer each request after as many milliseconds."""
        self._call_checked("broker_set_rtt", broker, milliseconds)

    def push_request_errors(self, request: int, codes: Sequence[int]) -> None:
        """Let the next requests of a kind fail, one per code, on any broker."""
        array = (c_int * len(codes))(*codes)
        self._call("push_request_errors_array", request, len(codes), array)

    def clear_request_errors(self, request: int) -> None:
        """Cancel the errors that have not happened yet."""
        self._call("clear_request_errors", request)

    def push_request_error_rtts(
        self, broker: int, request: int, answers: Sequence[tuple[int, int]]
    ) -> None:
        """Answer the next requests of a kind with (code, delay in milliseconds)."""
        pairs = [c_int(number) for answer in answers for number in answer]
        self._call_checked(
            "broker_push_request_error_rtts", broker, request, len(answers), *pairs
        )

    def start_request_tracking(self) -> None:
        """Start recording requests."""
        self._call("start_request_tracking")

    def stop_request_tracking(self) -> None:
        """Stop recording requests; the recorded ones stay."""
        self._call("stop_request_tracking")

    def clear_requests(self) -> None:
        """Forget the recorded requests."""
        self._call("clear_requests")

    def requests(self) -> list[tuple[int, int]]:
        """Return broker and kind of each recorded request, in order."""
        count = c_size_t()
        listed = self._call("get_requests", ctypes.byref(count))
        if not listed:
            return []
        kind, broker = (
            self._function("request_api_key"),
            self._function("request_id"),
        )
        requests = (c_void_p * count.value).from_address(listed)
        recorded = [(broker(each), kind(each)) for each in requests]
        for each in requests:
            self._function("request_destroy")(each)
        self._short.rd_kafka_mem_free(None, listed)
        return recorded

    def destroy(self) -> None:
        """Stop the brokers; a second call does nothing."""
        if self._client is not None:
            self._call("cluster_destroy")
            client, self._client = self._client, None
            self._blocking.rd_kafka_destroy(client)
