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
import re
import sys
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from greendrop import _concurrency
from greendrop.errors import GreendropError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

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
_UNKNOWN_PROPERTY = -2  # RD_KAFKA_CONF_UNKNOWN
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


# -- configuration ------------------------------------------------------------------

# Left out of the trial: it must not connect, start brokers or write to the log.
_NOT_TRIED = {
    "bootstrap.servers",
    "metadata.broker.list",
    "test.mock.num.brokers",
    "debug",
    "log_level",
    "log.queue",
    "statistics.interval.ms",
}
# Mechanisms that a trial can't have: one runs kinit, the other asks for a token.
_MECHANISMS_NOT_TRIED = {"GSSAPI", "OAUTHBEARER"}
_SASL_WITHOUT = {"SASL_SSL": "ssl", "SASL_PLAINTEXT": "plaintext"}
_NAME = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*")
# A row of librdkafka's table of properties: the name; C for consumers, P for producers
# or * for both; and the type at the end of the description, if it is not the version.
_ROW = re.compile(
    rf"^({_NAME.pattern})\s*\|\s*([CP*])\s*\|(?:.*\*Type: ([^*\n]*)\*)?", re.MULTILINE
)
# librdkafka reads as much of a number as it understands: "1e+06" as 1, "100k" as 100,
# "010" as 8. Names of values, such as `all` for acks, don't begin like a number.
_LIKE_A_NUMBER = re.compile(r"\s*[-+.]?\d")
_PLAIN_NUMBER = {
    "integer": (re.compile(r"-?(?:0|[1-9]\d*)", re.ASCII), "a whole number"),
    "float": (re.compile(r"-?\d+(?:\.\d*)?(?:e[-+]?\d+)?", re.ASCII), "a number"),
}
_SHORT_SECRET = 4


def check_configuration(
    kafka: Mapping[str, str], secrets: Collection[str]
) -> dict[str, str]:
    """Ask librdkafka whether it would take a configuration.

    Opens no connection. Each key by itself first; if all are good, how they go
    together, which librdkafka tells only when it makes a client: one is made and
    thrown away.

    Args:
        kafka: Keys and values as librdkafka takes them.
        secrets: Keys whose values must not appear in a text.

    Returns:
        What is wrong, by key; under "kafka" what can't be put down to one. Nothing
        when librdkafka can't be asked; then making the client will tell.

    Blocking:
        One to three milliseconds, with TLS about ten; the thread and its hub stand
        still meanwhile.
    """
    library = load_library()
    # Plugins may bring keys of their own, and loading one runs its code.
    if library is None or "plugin.library.paths" in kafka:
        return {}
    errors: dict[str, str] = {}
    conf = library.short.rd_kafka_conf_new()
    for key, value in kafka.items():
        told = set_property(library, conf, key, value)
        if told is None:
            told = _misread_number(library, conf, key, value)
        if told is not None:
            errors[key] = told
    if _lacks_kerberos(library, conf, kafka):
        errors["sasl.mechanisms"] = (
            "this build of librdkafka has no GSSAPI (Kerberos): the wheels of"
            " confluent-kafka come without it; use another mechanism, or build"
            " confluent-kafka from source with libsasl2"
        )
    library.short.rd_kafka_conf_destroy(conf)
    if not errors:
        errors = _try_out(library, _trial(kafka))
    # librdkafka's texts quote some values, and leave out others that would help. Not
    # that of a key that it doesn't know: that may be a secret's, misspelt.
    hidden = [kafka[key] for key in secrets if kafka.get(key)]
    shown = _property_names().difference(secrets)
    return {
        key: _without(text, hidden)
        + (_given(key, kafka) if key in kafka and key in shown else "")
        for key, text in errors.items()
    }


def _given(key: str, kafka: Mapping[str, str]) -> str:
    return f" ({key} is {kafka[key]!r:.200})"


def set_property(library: Library, conf: int, key: str, value: str) -> str | None:
    """Set one property; what librdkafka has against it, or None."""
    told = ctypes.create_string_buffer(_TEXT_SIZE)
    result = library.short.rd_kafka_conf_set(
        conf, key.encode(), value.encode(), told, len(told)
    )
    if result == _UNKNOWN_PROPERTY:
        near = get_close_matches(_with_dots(key), _property_names(), 1, 0.75)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"librdkafka has no such property{hint}"
    return _text(told) if result else None


def _with_dots(key: str) -> str:
    return re.sub("[_ -]", ".", key.strip().lower())


def _misread_number(library: Library, conf: int, key: str, value: str) -> str | None:
    """Describe a number that librdkafka has taken for another one, or None."""
    plain, meant = _PLAIN_NUMBER.get(_properties().get(key, ("", ""))[1], (None, ""))
    if plain is None:
        return None
    if meant == "a number" and value.strip().lower() == "nan":
        return f"needs {meant}"
    if not _LIKE_A_NUMBER.match(value):
        return None
    buffer, size = ctypes.create_string_buffer(_TEXT_SIZE), c_size_t(_TEXT_SIZE)
    library.short.rd_kafka_conf_get(conf, key.encode(), buffer, ctypes.byref(size))
    got = _text(buffer)
    if plain.fullmatch(value) and (meant == "a number" or int(value) == int(got)):
        return None
    return f"needs {meant}; librdkafka would read it as {got}"


def _lacks_kerberos(library: Library, conf: int, kafka: Mapping[str, str]) -> bool:
    """Whether a configuration needs Kerberos and librdkafka was built without."""
    mechanism = kafka.get("sasl.mechanisms", kafka.get("sasl.mechanism", "GSSAPI"))
    protocol = kafka.get("security.protocol", "plaintext").lower()
    if mechanism.upper() != "GSSAPI" or protocol not in map(str.lower, _SASL_WITHOUT):
        return False
    return set_property(library, conf, "builtin.features", "sasl_gssapi") is not None


def _trial(kafka: Mapping[str, str]) -> dict[str, str]:
    """Make a harmless configuration of one that is to be tried."""
    trial = {key: value for key, value in kafka.items() if key not in _NOT_TRIED}
    trial["log_level"] = "0"
    if kafka.get("test.mock.num.brokers", "0") != "0":
        # With a mock cluster librdkafka overrides it.
        trial.pop("security.protocol", None)
    mechanism = trial.get("sasl.mechanisms", trial.get("sasl.mechanism", "GSSAPI"))
    if mechanism.upper() in _MECHANISMS_NOT_TRIED:
        trial = {k: v for k, v in trial.items() if not k.startswith("sasl.")}
        protocol = trial.pop("security.protocol", "plaintext")
        trial["security.protocol"] = _SASL_WITHOUT.get(protocol.upper(), protocol)
    return trial


def _try_out(library: Library, trial: Mapping[str, str]) -> dict[str, str]:
    """Make a client and destroy it; what librdkafka has against it, by key."""
    conf = library.short.rd_kafka_conf_new()
    for key, value in trial.items():
        set_property(library, conf, key, value)
    client, told = new_client(library, conf)
    if client is not None:
        library.blocking.rd_kafka_destroy(client)
        return {}
    names = _property_names()
    told = told.replace("SASL mechanism", "sasl.mechanisms")
    named = (name for name in _NAME.findall(told) if name in names)
    return {next(named, "kafka"): told}


def new_client(library: Library, conf: int) -> tuple[int | None, str]:
    """Make a client; its address, or None and why not. The configuration is gone."""
    told = ctypes.create_string_buffer(_TEXT_SIZE)
    client: int | None = library.blocking.rd_kafka_new(_PRODUCER, conf, told, len(told))
    if not client:
        # rd_kafka_new takes the configuration over only if it succeeds.
        library.short.rd_kafka_conf_destroy(conf)
    return client or None, _text(told)


@cache
def _property_names() -> frozenset[str]:
    """Name all properties that producers have."""
    return frozenset(name for name, (of, _) in _properties().items() if of != "C")


def find_consumer_properties(kafka: Mapping[str, str]) -> tuple[str, ...]:
    """Find the keys that librdkafka accepts and only consumers read."""
    known = _properties()
    return tuple(key for key in kafka if known.get(key, ("", ""))[0] == "C")


@cache
def _properties() -> Mapping[str, tuple[str, str]]:
    """Read librdkafka's table of properties, which it will only print to a C file.

    Returns:
        For each name who reads it ("C" consumers, "P" producers, "*" both) and the
        type, such as "integer".
    """
    library = load_library()
    if library is None:
        return {}
    libc = ctypes.PyDLL(None)
    libc.tmpfile.restype = c_void_p
    file = libc.tmpfile()
    if not file:
        return {}
    for function in (libc.fileno, libc.fflush, libc.fclose):
        function.argtypes = (c_void_p,)
    library.short.rd_kafka_conf_properties_show(file)
    libc.fflush(file)
    descriptor = libc.fileno(file)
    table = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()
    libc.fclose(file)
    # A few keys are there twice, for clients and for topics; the producer's row counts.
    rows = sorted(_ROW.findall(table), key=lambda row: row[1] == "C", reverse=True)
    return {name: (of, kind) for name, of, kind in rows}


def _without(text: str, hidden: Sequence[str]) -> str:
    for value in hidden:
        # A short one is hidden where it stands alone: within words it tells nothing,
        # and a password "a" would leave no text to read.
        short = len(value) < _SHORT_SECRET
        pattern = rf"(?<!\w){re.escape(value)}(?!\w)" if short else re.escape(value)
        text = re.sub(pattern, "[hidden]", text)
    return text


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
