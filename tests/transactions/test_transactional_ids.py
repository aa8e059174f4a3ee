"""Transactional ids: placeholders, uniqueness, pools and forks."""

import os
import socket

import pytest

from greendrop import ConfigurationInvalidError, Producer, ProducerPool
from tests.transactions.transacting import send

NOWHERE = {"bootstrap.servers": "127.0.0.1:9"}


def make(name, **settings):
    """Construct a producer, which opens nothing."""
    return Producer(kafka={**NOWHERE, "transactional.id": name}, **settings)


def id_of(producer):
    """Return the id by which brokers would know the producer."""
    return producer._core.settings.transactional_id


def test_placeholders_are_filled_in():
    """Host and process id may appear several times; doubled braces are braces."""
    name = id_of(make("a-{hostname}-{pid}-{pid}-{{x}}"))

    pid = os.getpid()
    assert name == f"a-{socket.gethostname()}-{pid}-{pid}-{{x}}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a-{region}", "{region}"),
        ("a-{}", "{}"),
        ("a-{slot}", "pool"),
        ("a-{pid", "brace"),
    ],
)
def test_unknown_placeholders_are_refused(name, text):
    """Unknown placeholders, and `{slot}` outside of a pool, raise an error."""
    with pytest.raises(ConfigurationInvalidError) as raised:
        make(name)

    assert list(raised.value.errors) == ["kafka.transactional.id"]
    assert text in raised.value.errors["kafka.transactional.id"]


def test_equal_ids_are_refused_once_filled_in():
    """Two spellings of the same final id collide."""
    first = make("a-{pid}")

    with pytest.raises(ConfigurationInvalidError, match=r"a-\d+"):
        make(f"a-{os.getpid()}")
    assert first.status == "configured"


def test_slots_of_a_pool_are_numbered(world):
    """Each producer of a pool has the number of its slot, also after a reload."""
    pool = ProducerPool(lambda: make("a-{slot}"), size=2)

    with pool.producer() as producer:
        first = id_of(producer)
    pool.reload()
    with pool.producer() as producer:
        again = id_of(producer)
    pool.close()

    assert (first, again) == ("a-1", "a-1")


def test_pool_gives_a_transaction(world, make_producer):
    """The pool lends a producer for the block, which commits or rolls back."""
    pool = ProducerPool(
        lambda: make_producer({"transactional.id": "pooled-{slot}"}), size=2
    )

    with pool.transaction() as tx:
        (handle,) = send(tx.producer)
    assert (tx.outcome, handle.done) == ("committed", True)
    with pool.transaction(timeout=1.0) as tx:
        tx.abort()
    assert tx.outcome == "aborted"
    assert pool.available == 2
    pool.close()


def test_pooled_transactions_run_concurrently(
    world, make_producer, spawn, until, mock_cluster
):
    """Each task has a producer, and so a transaction, of its own."""
    pool = ProducerPool(
        lambda: make_producer({"transactional.id": "side-{slot}"}), size=3
    )
    inside = []

    def run():
        with pool.transaction() as tx:
            send(tx.producer)
            inside.append(tx.producer)
            until(lambda: len(inside) == 3)

    for task in [spawn(run) for _ in range(3)]:
        task.join()

    assert len(set(inside)) == 3
    pool.close()


def test_reload_waits_for_the_producer_of_the_same_id(world, make_producer, spawn):
    """The fresh producer would fence off the old one during its commit."""
    pool = ProducerPool(
        lambda: make_producer({"transactional.id": "again-{slot}"}), size=1
    )

    with pool.transaction() as old:
        spawn(pool.reload).join()
        (handle,) = send(old.producer)
    with pool.transaction() as new:
        send(new.producer)

    assert (old.outcome, new.outcome) == ("committed", "committed")
    assert old.producer is not new.producer
    assert handle.report
    pool.close()


@pytest.mark.patched
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "patched"])
def test_forked_child_has_an_id_of_its_own(run_script, mode):
    """The id contains the child's process id, and the child is in no transaction."""
    run_script(
        """
        import os
        from greendrop import Producer, ProducerUsedInParentProcessError
        from greendrop.testing import MockCluster
        from tests.forking import Fork, forks

        with MockCluster.spawn() as cluster:
            kafka = {
                "bootstrap.servers": cluster.bootstrap_servers,
                "transactional.id": "forked-{pid}",
            }
            used = Producer(kafka)
            unused = Producer(kafka | {"transactional.id": "a-{pid}"})

            def child():
                refused = []
                for act in (
                    lambda: used.produce_async(topic="t", payload=b"x"),
                    lambda: used.transaction().__enter__(),
                ):
                    try:
                        act()
                    except ProducerUsedInParentProcessError:
                        refused.append(True)
                with unused.transaction() as tx:
                    unused.produce_async(topic="t", payload=b"x")
                renamed = [unused._core.settings.transactional_id == f"a-{os.getpid()}"]
                unused.close()
                used.reset()
                with used.transaction() as own:
                    used.produce_async(topic="t", payload=b"x")
                used.close()
                return [*refused, *renamed, tx.outcome, own.outcome]

            for fork in forks().values():
                with used.transaction() as tx:
                    used.produce_async(topic="t", payload=b"x")
                    result = Fork(child, fork).result()
                    assert result == [True] * 3 + ["committed"] * 2, result
                assert tx.outcome == "committed"
            used.close()
        """,
        mode,
    )
