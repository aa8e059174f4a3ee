"""Bindings by ctypes for what confluent-kafka does not offer of librdkafka.

These are the wake-up of the main queue, fatal errors, partitioners, and the check of a
configuration before any client exists. They use the librdkafka that confluent-kafka has
loaded. Beside this module only `testing._mock_brokers` imports ctypes.

Nothing here may crash with a confluent-kafka of another layout: a function that can't
do its work returns None, and greendrop goes on without it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from greendrop import _concurrency
from greendrop.errors import GreendropError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from greendrop.oauth import OAuthToken

_CIMPL = "confluent_kafka.cimpl"

# Short calls keep the GIL: dropping it costs more than the call.
_SHORT: dict[str, tuple[Any, tuple[Any, ...]]] = {
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
# These start or join threads, or ask another thread and wait for its answer.
_BLOCKING: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "rd_kafka_new": (c_void_p, (c_int, c_void_p, c_char_p, c_size_t)),
    "rd_kafka_destroy": (None, (c_void_p,)),
    "rd_kafka_purge": (c_int, (c_void_p, c_int)),
}

_PURGE_ALL = 3  # RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT

_PRODUCER = 0  # RD_KAFKA_PRODUCER
UNKNOWN_PROPERTY = -2  # RD_KAFKA_CONF_UNKNOWN
_TEXT_SIZE = 512
#: eventfd takes 8 bytes in native order; a pipe takes anything.
_ONE = (1).to_bytes(8, sys.byteorder)
#: `rd_kafka_opaque` reads one word at 0x8e0 (2.0.2) to 0xa68 (2.16) behind the pointer.
_PAGE = 0x1000


class Library(NamedTuple):
    """librdkafka as confluent-kafka has loaded it."""

    #: confluent-kafka's producer, as its extension module defines it.
    producer_class: type
    #: Calls that keep the GIL.
    short: ctypes.PyDLL
    #: Calls that let go of it.
    blocking: ctypes.CDLL


@cache
def load_library() -> Library | None:
    """Find librdkafka; None where ctypes can't be trusted to reach it."""
    fits = sys.implementation.name == "cpython"
    if not fits or not sys.platform.startswith(("linux", "darwin")):
        return None
    try:
        # find_spec imports the package, and with it cimpl.
        spec = find_spec(_CIMPL)
        cimpl = sys.modules[_CIMPL]
        producer_class = extension_class(cimpl.Producer)
        if spec is None or spec.origin is None or not _as_known(producer_class):
            return None
        # Symbols are looked up in cimpl's own file: dlsym searches what that file
        # depends on, so a second librdkafka in the process can't be picked by mistake.
        short, blocking = ctypes.PyDLL(spec.origin), ctypes.CDLL(spec.origin)
        library = Library(producer_class, short, blocking)
        declare(library.short, _SHORT)
        declare(library.blocking, _BLOCKING)
    except (ImportError, KeyError, OSError, AttributeError):
        return None
    same = library.short.rd_kafka_version() == cimpl.libversion()[1]
    return library if same else None


def declare(dll: ctypes.CDLL, prototypes: Mapping[str, tuple[Any, Any]]) -> None:
    for name, (restype, argtypes) in prototypes.items():
        function = getattr(dll, name)
        function.restype = restype
        function.argtypes = argtypes


def extension_class(found: Any) -> Any:  # noqa: ANN401 - a producer or a consumer
    """Return the class that confluent-kafka's extension module defines.

    Tracing agents put a subclass of their own into the module. New Relic's, for one,
    keeps only the last one of repeated headers, and hides the class whose layout is
    known here.

    Args:
        found: What the module has. If that is no class, it is returned as it is.
    """
    while isinstance(found, type) and found.__base__ not in {None, object}:
        found = found.__base__
    return found


def _as_known(producer: type) -> bool:
    """Whether a producer's C struct can begin with a pointer to the client."""
    room = object.__basicsize__ + ctypes.sizeof(c_void_p)
    return producer.__base__ is object and producer.__basicsize__ >= room


# -- the native client behind a producer ------------------------------------------


def _kafka_handle(producer: object) -> int | None:
    """Give the address of the rd_kafka_t behind a producer, if it is surely one."""
    library = load_library()
    if library is None:
        return None
    # Not isinstance: that believes an object's own __class__.
    if not issubclass(type(producer), library.producer_class):
        return None
    # Inside the object, so reading it is safe whatever it is.
    address = c_void_p.from_address(id(producer) + object.__basicsize__).value
    if not address or address % ctypes.sizeof(c_void_p) or not _readable(address):
        return None
    # confluent-kafka makes the Python object librdkafka's opaque: only the right
    # pointer leads back to it.
    opaque: int | None = library.short.rd_kafka_opaque(address)
    return address if opaque == id(producer) else None


def _readable(address: int) -> bool:
    """Whether the page that starts at an address can be read, without reading it.

    The kernel reads it for us, into a pipe: for memory that is not there it says
    EFAULT, where a look of our own would end the process.
    """
    reader, writer = os.pipe()
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
    """The queue on which a producer's reports, errors and statistics arrive.

    It can tell a file descriptor that something has arrived. Used by one thread at a
    time, and never in a child process after a fork.
    """

    __slots__ = ("_client", "_library", "_queue")

    def __init__(self, library: ctypes.PyDLL, client: int, queue: int) -> None:
        self._library = library
        self._client = client
        self._queue: int | None = queue

    @classmethod
    def of(cls, producer: object) -> MainQueue | None:
        """Reach the main queue of a `confluent_kafka.cimpl.Producer`.

        None for whatever is no such producer, is closed, or is laid out in a way that
        we don't know; never an exception, never a crash.
        """
        try:
            client = _kafka_handle(producer)
        except OSError:  # no file descriptor left for the look at the page
            return None
        library = load_library()
        if client is None or library is None:
            return None
        queue = library.short.rd_kafka_queue_get_main(client)
        return cls(library.short, client, queue) if queue else None

    def signal_on(self, fd: int) -> bool:
        """Have 8 bytes written to a descriptor when the empty queue gets an entry.

        The descriptor must not block: a full one would stop librdkafka for good. It
        must stay open until `release`: librdkafka would write into whatever file gets
        its number next. Entries that are there already are not signalled, so poll
        once afterwards. After that, always drain the descriptor first and poll then:
        the signal comes once and not again until the queue has been polled.

        Returns:
            Whether signals arrive, tried on a descriptor of our own. If False, none
            will come: `release` the queue and poll without it.
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
            works = self._tried(reader, writer)
        finally:
            self._enable(fd if works else -1)
            _concurrency.close_fd(reader)
            _concurrency.close_fd(writer)
        return works

    def _tried(self, reader: int, writer: int) -> bool:
        self._enable(writer)
        self.wake()
        try:
            return os.read(reader, len(_ONE)) == _ONE
        except BlockingIOError:
            # Entries that were there before keep the signal back. Then nothing is
            # known, and nothing is wrong.
            return bool(self._library.rd_kafka_queue_length(self._queue))

    def _enable(self, fd: int) -> None:
        self._library.rd_kafka_queue_io_event_enable(self._queue, fd, _ONE, len(_ONE))

    def wake(self) -> None:
        """Signal the descriptor without an entry, and end a poll that is waiting.

        Does not signal again what was signalled and not yet polled. A poll of 0.2 s or
        more goes on: confluent-kafka makes several of it.
        """
        if self._queue is not None:
            self._library.rd_kafka_queue_yield(self._queue)

    def yield_poll(self) -> None:
        """Make the poll that runs this delivery callback return after it.

        What is left stays in the queue, in order, and is signalled again. Only in a
        callback that a `poll` of this thread is running; elsewhere it would cut short
        some later call, such as `flush`.
        """
        self._library.rd_kafka_yield(self._client)

    def release(self) -> None:
        """End the signals and let go of the queue; a second call does nothing.

        To be called before the descriptor and the producer are closed, when no other
        thread is in a method of this object.
        """
        if self._queue is not None:
            self._enable(-1)
            queue, self._queue = self._queue, None
            self._library.rd_kafka_queue_destroy(queue)


def fatal_error(producer: object) -> tuple[int, str] | None:
    """Give the code and text of the error that ended a producer, if there is one.

    librdkafka answers every call after it with the generic _FATAL (-150).
    """
    client, library = _kafka_handle(producer), load_library()
    if client is None or library is None:
        return None
    text = ctypes.create_string_buffer(_TEXT_SIZE)
    code: int = library.short.rd_kafka_fatal_error(client, text, len(text))
    return (code, _text(text)) if code else None


def has_metadata(producer: object) -> bool | None:
    """Tell whether a broker has described its cluster yet; None if out of reach."""
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

    confluent-kafka's own `purge` either doesn't wait, or does so with the GIL.

    Blocking:
        Blocks the thread until librdkafka's threads have come to it: a fraction of a
        millisecond, unless one is looking up a host's name.
    """
    client, library = _kafka_handle(producer), load_library()
    if client is not None and library is not None:
        library.blocking.rd_kafka_purge(client, _PURGE_ALL)


def set_oauth_token(producer: object, token: OAuthToken) -> int | None:
    """Give a producer the token to log in with, at once and from then on.

    confluent-kafka has only a callback for that, and where there is one, making a
    client takes 1 to 10 s. Without, librdkafka connects when the first token is there.

    Returns:
        librdkafka's code of why it does not take it; 0 if it does; None if the
        producer can't be reached.
    """
    client, library = _kafka_handle(producer), load_library()
    if client is None or library is None:
        return None
    pairs = [part.encode() for pair in token.extensions.items() for part in pair]
    # It quotes the token in its text; so that is thrown away.
    told = ctypes.create_string_buffer(_TEXT_SIZE)
    refused: int = library.short.rd_kafka_oauthbearer_set_token(
        client,
        token.value.encode(),
        int(token.expires_at * 1000),
        token.principal.encode(),
        (c_char_p * len(pairs))(*pairs),
        len(pairs),
        told,
        len(told),
    )
    return refused


def trigger_fatal_error(producer: object, code: int, reason: str) -> int:
    """Make a producer fail for good, as if a broker had said so. For tests.

    Returns:
        0, or -177 (_PREV_IN_PROGRESS) if there had been a fatal error before.

    Raises:
        GreendropError: The producer's native client can't be reached.
    """
    client, library = _kafka_handle(producer), load_library()
    if client is None or library is None:
        raise GreendropError(
            f"can't reach the native client of {type(producer).__name__}"
        )
    raised: int = library.short.rd_kafka_test_fatal_error(client, code, reason.encode())
    return raised


def partitioner(name: str) -> Callable[[bytes, int], int] | None:
    """Give librdkafka's partitioner of a name, such as "murmur2"; None if out of reach.

    It takes a key and the number of partitions. Only for those that look at nothing
    but these two, and only with keys that are not empty: no topic is passed to them.
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
    """Give the number of each error by its name, such as `_MSG_TIMED_OUT`."""
    library = load_library()
    if library is None:
        return {}
    table, count = POINTER(_ErrorDescription)(), c_size_t()
    library.short.rd_kafka_get_err_descs(ctypes.byref(table), ctypes.byref(count))
    rows = (table[index] for index in range(count.value))
    return {row.name.decode(): row.code for row in rows if row.name}
