"""Bindings by ctypes for the parts of librdkafka that confluent-kafka doesn't offer.

These are wake-ups of the main queue, fatal errors, OAuth tokens, partitioners, and
configurations without a client. They call the librdkafka that confluent-kafka has
loaded. Apart from this module only `testing._mock_brokers` imports ctypes.

Nothing here may crash with a confluent-kafka of another memory layout: a function that
can't reach librdkafka returns None, and greendrop works without it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Mapping
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from importlib.util import find_spec
from itertools import starmap, tee
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from greendrop import _concurrency
from greendrop.errors import GreendropError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from greendrop.oauth import OAuthToken

#: The types of result and arguments of functions in C, by name.
Prototypes: TypeAlias = Mapping[str, tuple[Any, tuple[Any, ...]]]

_CIMPL = "confluent_kafka.cimpl"

# Short calls keep the GIL, because releasing it costs more than the call.
_SHORT: Prototypes = {
    "rd_kafka_version": (c_int, ()),
    "rd_kafka_opaque": (c_void_p, (c_void_p,)),
    "rd_kafka_yield": (None, (c_void_p,)),
    "rd_kafka_queue_get_main": (c_void_p, (c_void_p,)),
    "rd_kafka_queue_io_event_enable": (None, (c_void_p, c_int, c_char_p, c_size_t)),
    "rd_kafka_queue_yield": (None, (c_void_p,)),
    "rd_kafka_queue_length": (c_size_t, (c_void_p,)),
    "rd_kafka_queue_destroy": (None, (c_void_p,)),
    "rd_kafka_fatal_error": (c_int, (c_void_p, c_char_p, c_size_t)),
    "rd_kafka_test_fatal_error": (c_int, (c_void_p, c_int, c_char_p)),
    "rd_kafka_oauthbearer_set_token": (
        c_int,
        (
            c_void_p,
            c_char_p,
            c_int64,
            c_char_p,
            POINTER(c_char_p),
            c_size_t,
            c_char_p,
            c_size_t,
        ),
    ),
    "rd_kafka_conf_new": (c_void_p, ()),
    "rd_kafka_conf_destroy": (None, (c_void_p,)),
    "rd_kafka_conf_set": (
        c_int,
        (c_void_p, c_char_p, c_char_p, c_char_p, c_size_t),
    ),
    "rd_kafka_conf_get": (c_int, (c_void_p, c_char_p, c_char_p, POINTER(c_size_t))),
    "rd_kafka_conf_properties_show": (None, (c_void_p,)),
    "rd_kafka_get_err_descs": (None, (c_void_p, c_void_p)),
    "rd_kafka_mem_free": (None, (c_void_p, c_void_p)),
    "rd_kafka_clusterid": (c_void_p, (c_void_p, c_int)),
}
# These calls start or join threads, or wait for another thread.
_BLOCKING: Prototypes = {
    "rd_kafka_new": (c_void_p, (c_int, c_void_p, c_char_p, c_size_t)),
    "rd_kafka_destroy": (None, (c_void_p,)),
    "rd_kafka_purge": (c_int, (c_void_p, c_int)),
}

_PURGE_ALL = 3  # RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT

_PRODUCER = 0  # RD_KAFKA_PRODUCER
#: The result of `set_property` for a key that librdkafka does not know.
UNKNOWN_PROPERTY = -2  # RD_KAFKA_CONF_UNKNOWN
_TEXT_SIZE = 512
#: The bytes of a wake-up: an eventfd needs 8 bytes in native order, a pipe any bytes.
_ONE = (1).to_bytes(8, sys.byteorder)
#: `rd_kafka_opaque` reads one word 0x8e0 (2.0.2) to 0xa68 (2.16) bytes after the
#: pointer.
_PAGE = 0x1000

# Producer classes in whose instances the pointer to the client was found. All instances
# of a class have the same layout.
_probed: set[type] = set()

#: Exhausts an iterator in one call into C, which no signal handler can interrupt.
exhaust: Callable[[Iterable[object]], None] = deque[object](maxlen=0).extend


class Library(NamedTuple):
    """The librdkafka that confluent-kafka has loaded."""

    #: The producer class of confluent-kafka's extension module.
    producer_class: type
    #: Its functions, for calls that keep the GIL.
    short: ctypes.PyDLL
    #: Its functions, for calls that release the GIL.
    blocking: ctypes.CDLL


@cache
def load_library() -> Library | None:
    """Find librdkafka; None on platforms where ctypes may not reach it safely."""
    if sys.implementation.name != "cpython":
        return None
    if not sys.platform.startswith(("linux", "darwin")):
        return None
    try:
        # find_spec imports the package, and the package imports cimpl.
        spec = find_spec(_CIMPL)
        cimpl = sys.modules[_CIMPL]
        producer_class = extension_class(cimpl.Producer)
        if spec is None or spec.origin is None or not _has_known_layout(producer_class):
            return None
        # Look up symbols in cimpl's own file. dlsym searches the libraries that this
        # file depends on, and not a second librdkafka in the process.
        short, blocking = ctypes.PyDLL(spec.origin), ctypes.CDLL(spec.origin)
        library = Library(producer_class, short, blocking)
        declare(library.short, _SHORT)
        declare(library.blocking, _BLOCKING)
    except (ImportError, KeyError, OSError, AttributeError):
        return None
    same_version = library.short.rd_kafka_version() == cimpl.libversion()[1]
    return library if same_version else None


def declare(dll: ctypes.CDLL, prototypes: Prototypes) -> None:
    """Set the types of result and arguments of functions, by their names."""
    for name, (restype, argtypes) in prototypes.items():
        function = getattr(dll, name)
        function.restype = restype
        function.argtypes = argtypes


def extension_class(found: Any) -> Any:  # noqa: ANN401 - a producer or a consumer
    """Return the class that confluent-kafka's extension module itself defines.

    Tracing agents replace the module's classes by their own subclasses. New Relic's
    producer, for one, keeps only the last of repeated headers, and its memory layout is
    unknown.

    Args:
        found: The class that is in the module. Any other object is returned unchanged.
    """
    while isinstance(found, type) and found.__base__ not in {None, object}:
        found = found.__base__
    return found


def _has_known_layout(producer: type) -> bool:
    """Return whether a producer's C struct can begin with a pointer to the client."""
    least = object.__basicsize__ + ctypes.sizeof(c_void_p)
    return producer.__base__ is object and producer.__basicsize__ >= least


# -- the native client behind a producer ------------------------------------------


def _kafka_handle(producer: object) -> int | None:
    """Return the address of a producer's `rd_kafka_t`, or None if in doubt."""
    library = load_library()
    if library is None:
        return None
    # Not isinstance, which trusts the __class__ that an object claims.
    if not issubclass(type(producer), library.producer_class):
        return None
    # The pointer is inside the object, so reading it is safe in any case.
    address = c_void_p.from_address(id(producer) + object.__basicsize__).value
    if not address or address % ctypes.sizeof(c_void_p):
        return None
    # Once per class: the probe opens a pipe, and a signal handler that raises in the
    # main thread could leave the pipe open. The first producer is created, and so
    # probed, on a native thread.
    if library.producer_class not in _probed and not _is_readable(address):
        return None
    # confluent-kafka passes the Python object to librdkafka as its opaque, so only the
    # right pointer leads back to the object.
    opaque: int | None = library.short.rd_kafka_opaque(address)
    if opaque != id(producer):
        return None
    _probed.add(library.producer_class)
    return address


def _is_readable(address: int) -> bool:
    """Return whether the page that starts at an address can be read.

    The kernel reads the page, by writing it to a pipe. For unmapped memory the kernel
    returns EFAULT, where reading it here would end the process. Without a free file
    descriptor the result is False.
    """
    try:
        reader, writer = os.pipe()
    except OSError:
        return False
    try:
        os.set_blocking(writer, False)
        page = (ctypes.c_char * _PAGE).from_address(address)
        return os.write(writer, page) == _PAGE
    except OSError:
        return False
    finally:
        _concurrency.close_fd(reader)
        _concurrency.close_fd(writer)


class MainQueue:
    """The main queue of a producer, which gets its reports, errors and statistics.

    The queue can write to a file descriptor when an entry arrives. Use it from one
    thread at a time, and not in a child process after a fork.
    """

    __slots__ = ("_client", "_library", "_queue")

    def __init__(self, library: ctypes.PyDLL, client: int, queue: int) -> None:
        self._library = library
        self._client = client
        self._queue: int | None = queue

    @classmethod
    def of(cls, producer: object) -> MainQueue | None:
        """Return the main queue of a `confluent_kafka.cimpl.Producer`, or None.

        None for any other object, for a closed producer, and for a memory layout that
        greendrop does not know. Never raises or crashes.
        """
        client, library = _kafka_handle(producer), load_library()
        if client is None or library is None:
            return None
        queue = library.short.rd_kafka_queue_get_main(client)
        return cls(library.short, client, queue) if queue else None

    def signal_on(self, fd: int) -> bool:
        """Make the queue write 8 bytes to a descriptor when it gets its first entry.

        The descriptor must not block: if it were full, librdkafka would stop for good.
        It must stay open until `release`: librdkafka would write into the next file
        that gets its number. Entries that are in the queue already cause no signal, so
        poll once afterwards. From then on drain the descriptor before each poll: there
        is one signal, and no other one until the queue has been polled.

        Returns:
            Whether signals arrive, which is tried on a temporary descriptor. If False,
            `release` the queue and poll without it.
        """
        if self._queue is None or os.get_blocking(fd):
            return False
        try:
            reader, writer = os.pipe()
        except OSError:
            return False
        try:
            os.set_blocking(reader, False)
            os.set_blocking(writer, False)
            works = self._signal_arrives(reader, writer)
        finally:
            self._enable(fd if works else -1)
            _concurrency.close_fd(reader)
            _concurrency.close_fd(writer)
        return works

    def _signal_arrives(self, reader: int, writer: int) -> bool:
        self._enable(writer)
        self.wake()
        try:
            return os.read(reader, len(_ONE)) == _ONE
        except BlockingIOError:
            # Entries that were in the queue before suppress the signal. Then the result
            # is unknown, and nothing indicates a fault.
            return bool(self._library.rd_kafka_queue_length(self._queue))

    def _enable(self, fd: int) -> None:
        self._library.rd_kafka_queue_io_event_enable(self._queue, fd, _ONE, len(_ONE))

    def wake(self) -> None:
        """Signal the descriptor without an entry, and end a poll that is waiting.

        Has no effect after a signal until the queue has been polled. A poll of 0.2 s or
        more continues, because confluent-kafka splits it into several polls.
        """
        if self._queue is not None:
            self._library.rd_kafka_queue_yield(self._queue)

    def yield_poll(self) -> None:
        """Make the poll that runs this delivery callback return after the callback.

        The other entries stay in the queue, in order, and are signalled again. Call
        this only in a callback of a `poll` in this thread; otherwise it ends a later
        call early, such as `flush`.
        """
        self._library.rd_kafka_yield(self._client)

    def release(self) -> None:
        """End the signals and release the queue. A second call has no effect.

        Call this before the descriptor and the producer are closed, while no other
        thread is inside a method of this object.
        """
        if self._queue is not None:
            self._enable(-1)
            queue, self._queue = self._queue, None
            self._library.rd_kafka_queue_destroy(queue)


def fatal_error(producer: object) -> tuple[int, str] | None:
    """Return code and text of a producer's fatal error, or None.

    After the error librdkafka returns only the generic _FATAL (-150) from other calls.
    """
    client, library = _kafka_handle(producer), load_library()
    if client is None or library is None:
        return None
    text = ctypes.create_string_buffer(_TEXT_SIZE)
    code: int = library.short.rd_kafka_fatal_error(client, text, len(text))
    return (code, _text(text)) if code else None


def has_metadata(producer: object) -> bool | None:
    """Return whether a producer has metadata of its cluster; None if unknown."""
    client, library = _kafka_handle(producer), load_library()
    if client is None or library is None:
        return None
    text = library.short.rd_kafka_clusterid(client, 0)
    if not text:
        return False
    library.short.rd_kafka_mem_free(client, text)
    return True


def purge(producer: object) -> None:
    """Drop all messages of a producer, and wait until that is done.

    confluent-kafka's own `purge` either doesn't wait, or waits while it holds the GIL.

    Blocking:
        Blocks the thread until librdkafka's threads have done it: a fraction of a
        millisecond, or longer while one of them resolves the name of a host.
    """
    client, library = _kafka_handle(producer), load_library()
    if client is not None and library is not None:
        library.blocking.rd_kafka_purge(client, _PURGE_ALL)


def set_oauth_token(producer: object, token: OAuthToken) -> int | None:
    """Set the OAuth token with which a producer logs in from now on.

    confluent-kafka offers only a callback for tokens, and with a callback creating a
    client takes 1 to 10 s. Without one librdkafka connects as soon as it has a token.

    Returns:
        0, or librdkafka's code if it refuses the token; None if the producer can't be
        reached.
    """
    client, library = _kafka_handle(producer), load_library()
    if client is None or library is None:
        return None
    pairs = [part.encode() for pair in token.extensions.items() for part in pair]
    # librdkafka's text quotes the token, so the text is not used.
    text = ctypes.create_string_buffer(_TEXT_SIZE)
    code: int = library.short.rd_kafka_oauthbearer_set_token(
        client,
        token.value.encode(),
        int(token.expires_at * 1000),
        token.principal.encode(),
        (c_char_p * len(pairs))(*pairs),
        len(pairs),
        text,
        len(text),
    )
    return code


def trigger_fatal_error(producer: object, code: int, reason: str) -> int:
    """Cause a fatal error of a producer, as if a broker had returned it. For tests.

    Returns:
        0, or -177 (_PREV_IN_PROGRESS) if the producer has a fatal error already.

    Raises:
        GreendropError: The producer's native client can't be reached.
    """
    client, library = _kafka_handle(producer), load_library()
    if client is None or library is None:
        raise GreendropError(
            f"can't reach the native client of {type(producer).__name__}"
        )
    result: int = library.short.rd_kafka_test_fatal_error(client, code, reason.encode())
    return result


def partitioner(name: str) -> Callable[[bytes, int], int] | None:
    """Return librdkafka's partitioner of a name such as "murmur2"; None if unreachable.

    The function takes a key and the number of partitions. It passes no topic to
    librdkafka, so it works only for partitioners that need nothing else, and only with
    keys that are not empty.
    """
    library = load_library()
    function: Any = library and getattr(
        library.short, f"rd_kafka_msg_partitioner_{name}", None
    )
    if function is None:
        return None
    function.restype = c_int32
    function.argtypes = (c_void_p, c_char_p, c_size_t, c_int32, c_void_p, c_void_p)

    def partition_of(key: bytes, count: int) -> int:
        partition: int = function(None, key, len(key), count, None, None)
        return partition

    return partition_of


# -- configurations -----------------------------------------------------------------


def set_property(library: Library, conf: int, key: str, value: str) -> tuple[int, str]:
    """Set one property of an `rd_kafka_conf_t`.

    Returns:
        0, or librdkafka's code and text for why it refuses the value.
    """
    text = ctypes.create_string_buffer(_TEXT_SIZE)
    code: int = library.short.rd_kafka_conf_set(
        conf, key.encode(), value.encode(), text, len(text)
    )
    return code, _text(text) if code else ""


def get_property(library: Library, conf: int, key: str) -> str:
    """Return the value that a property of an `rd_kafka_conf_t` has now."""
    text, size = ctypes.create_string_buffer(_TEXT_SIZE), c_size_t(_TEXT_SIZE)
    library.short.rd_kafka_conf_get(conf, key.encode(), text, ctypes.byref(size))
    return _text(text)


def new_client(library: Library, conf: int) -> tuple[int | None, str]:
    """Create a client, and free its configuration if that fails.

    Returns:
        The address of the client, or None and librdkafka's reason.
    """
    text = ctypes.create_string_buffer(_TEXT_SIZE)
    client: int | None = library.blocking.rd_kafka_new(_PRODUCER, conf, text, len(text))
    if not client:
        # rd_kafka_new frees the configuration only if it succeeds.
        library.short.rd_kafka_conf_destroy(conf)
    return client or None, _text(text)


def try_client(library: Library, conf: int) -> str | None:
    """Create a client and destroy it, to see whether a configuration is good.

    Args:
        library: Where to create it.
        conf: The configuration, which is freed.

    Returns:
        librdkafka's reason for refusing the configuration, or None.
    """
    text = ctypes.create_string_buffer(_TEXT_SIZE)
    arguments = (_PRODUCER, conf, text, len(text))
    # Both steps in one call into C: if a signal handler raised in between, the client
    # and its threads would stay for ever.
    clients, results = tee(starmap(library.blocking.rd_kafka_new, (arguments,)))
    exhaust(map(library.blocking.rd_kafka_destroy, filter(None, clients)))
    if next(results):
        return None
    library.short.rd_kafka_conf_destroy(conf)
    return _text(text)


def properties_table() -> str:
    """Return librdkafka's table of all properties; empty if librdkafka is out of reach.

    librdkafka can only print the table to a C file, so this opens a temporary one.
    """
    library = load_library()
    if library is None:
        return ""
    libc = ctypes.PyDLL(None)
    libc.tmpfile.restype = c_void_p
    file = libc.tmpfile()
    if not file:
        return ""
    for function in (libc.fileno, libc.fflush, libc.fclose):
        function.argtypes = (c_void_p,)
    library.short.rd_kafka_conf_properties_show(file)
    libc.fflush(file)
    descriptor = libc.fileno(file)
    table = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()
    libc.fclose(file)
    return table


def _text(buffer: ctypes.Array[ctypes.c_char]) -> str:
    return buffer.value.decode(errors="replace")


# -- error names --------------------------------------------------------------------


class _ErrorDescription(ctypes.Structure):
    _fields_ = (("code", c_int), ("name", c_char_p), ("text", c_char_p))


@cache
def error_codes() -> Mapping[str, int]:
    """Return all error codes by librdkafka's names, such as `_MSG_TIMED_OUT`."""
    library = load_library()
    if library is None:
        return {}
    table, count = POINTER(_ErrorDescription)(), c_size_t()
    library.short.rd_kafka_get_err_descs(ctypes.byref(table), ctypes.byref(count))
    rows = (table[index] for index in range(count.value))
    return {row.name.decode(): row.code for row in rows if row.name}
