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
    """Tell by which name the brokers would know it."""
    return producer._core.settings.transactional_id


def test_placeholders_are_filled_in():
    """Host and process, as often as wanted; doubled braces are braces."""
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
    """As is a slot outside of a pool; the error says what is known."""
    with pytest.raises(ConfigurationInvalidError) as raised:
        make(name)

    assert list(raised.value.errors) == ["kafka.transactional.id"]
    assert text in raised.value.errors["kafka.transactional.id"]


def test_equal_names_are_refused_once_filled_in():
    """However they are written."""
    first = make("a-{pid}")

    with pytest.raises(ConfigurationInvalidError, match=r"a-\d+"):
        make(f"a-{os.getpid()}")
    assert first.status == "configured"


def test_slots_of_a_pool_are_numbered(world):
    """Each producer has its slot's number, also after a reload (section 10, 26)."""
    pool = ProducerPool(lambda: make("a-{slot}"), size=2)

    with pool.producer() as producer:
        first = id_of(producer)
    pool.reload()
    with pool.producer() as producer:
        again = id_of(producer)
    pool.close()

    assert (first, again) == ("a-1", "a-1")


def test_pool_gives_a_transaction(world, make_producer):
    """With its producer; it commits at the end of the block, or is rolled back."""
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


def test_pooled_transactions_run_side_by_side(
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


def test_reload_waits_for_the_one_of_the_same_name(world, make_producer, spawn):
    """The fresh one would fence the old one off while that commits."""
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
def test_forked_child(run_script, mode):
    """Its process id is in the name; the parent's transaction is not the child's."""
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
                told = [unused._core.settings.transactional_id == f"a-{os.getpid()}"]
                unused.close()
                used.reset()
                with used.transaction() as own:
                    used.produce_async(topic="t", payload=b"x")
                used.close()
                return [*refused, *told, tx.outcome, own.outcome]

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
