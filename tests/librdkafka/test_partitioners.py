import ctypes

import pytest
from confluent_kafka import cimpl
from hypothesis import given
from hypothesis import strategies as st

from greendrop._librdkafka import bindings
from greendrop._librdkafka.partitioners import _IN_PYTHON, partitioner

HASHING = ["consistent", "murmur2", "fnv1a"]

keys = st.binary(min_size=1, max_size=100)
counts = st.integers(1, 2**31 - 1)


def librdkafka_function(name):
    """Return librdkafka's own function, found by other means than greendrop's."""
    function = ctypes.CDLL(cimpl.__file__)[f"rd_kafka_msg_partitioner_{name}"]
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    function.restype = number
    function.argtypes = (
        pointer,
        ctypes.c_char_p,
        ctypes.c_size_t,
        number,
        pointer,
        pointer,
    )
    return lambda key, count: function(None, key, len(key), count, None, None)


@pytest.mark.parametrize("ending", ["", "_random"])
@pytest.mark.parametrize("name", HASHING)
@given(key=keys, count=counts)
def test_a_partitioner_chooses_as_librdkafka(name, ending, key, count):
    """The choice is the same for any key and number of partitions."""
    expected = librdkafka_function(name + ending)(key, count)

    assert partitioner(name + ending)(key, count) == expected


@pytest.mark.parametrize("name", _IN_PYTHON)
@given(key=keys, count=counts)
def test_a_partitioner_chooses_the_same_without_ctypes(name, key, count):
    """The replacement for librdkafka's function returns the same partitions."""
    assert _IN_PYTHON[name](key, count) == librdkafka_function(name)(key, count)


@pytest.mark.parametrize("name", _IN_PYTHON)
def test_librdkafkas_own_function_is_used_where_available(name):
    """The function in librdkafka is several times as fast."""
    assert partitioner(name) is not _IN_PYTHON[name]
    assert bindings.partitioner("unheard_of") is None


# The values are those that a test of Kafka's Java client expects.
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("choose", [partitioner("murmur2"), _IN_PYTHON["murmur2"]])
@pytest.mark.parametrize("key", JAVA)
def test_murmur2_is_that_of_kafkas_java_client(choose, key):
    """The Java client uses the hash without its sign."""
    for count in (1, 2, 12, 2**31 - 1):
        assert choose(key, count) == (JAVA[key] & 0x7FFFFFFF) % count


def test_random_ignores_the_key():
    """A random partitioner gives no partition for a key."""
    assert partitioner("random") is None
