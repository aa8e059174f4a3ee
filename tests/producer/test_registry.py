import threading

import pytest

from greendrop import ConfigurationInvalidError, Producer

NOWHERE = {"bootstrap.servers": "127.0.0.1:9"}


def producer(transactional_id=None, **settings):
    """Construct a producer, which opens nothing."""
    ours = {"transactional.id": transactional_id} if transactional_id else {}
    return Producer(kafka=NOWHERE | ours, **settings)


def connect(one):
    """Make the producer's client, without sending."""
    one._core._connect(one._core.main)


def test_second_producer_with_a_transactional_id_is_refused():
    """Two producers with one transactional.id would fence each other."""
    first = producer("t", id="first")
    second = Producer()

    with pytest.raises(ConfigurationInvalidError) as caught:
        second.setup(NOWHERE | {"transactional.id": "t"}, id="second")

    (text,) = caught.value.errors.values()
    assert list(caught.value.errors) == ["kafka.transactional.id"]
    assert "'t'" in text
    assert "'first'" in text
    assert "'second'" in text
    assert (first.status, second.status) == ("configured", "initial")


def test_second_producer_with_an_id_is_refused():
    """Events, logs and errors could not distinguish two producers with one id."""
    first = producer(id="same")

    with pytest.raises(ConfigurationInvalidError) as caught:
        producer(id="same")

    assert list(caught.value.errors) == ["id"]
    assert "'same'" in caught.value.errors["id"]
    assert first.status == "configured"


def test_refused_producer_reserves_no_name():
    """A producer that is refused for one name reserves neither of the two."""
    first = producer("t", id="first")

    with pytest.raises(ConfigurationInvalidError) as caught:
        producer("t", id="first")
    with pytest.raises(ConfigurationInvalidError):
        producer("t", id="second")

    assert sorted(caught.value.errors) == ["id", "kafka.transactional.id"]
    assert producer("u", id="second").id == "second"
    assert first.id == "first"


def test_producers_without_names_never_conflict():
    """Generated ids are unique; a missing or empty transactional.id is not a name."""
    made = [producer(each) for each in (None, "", None, "")]

    assert len({each.id for each in made}) == 4


@pytest.mark.parametrize("used", [False, True])
def test_closed_producer_frees_its_names(used):
    """After close another producer may have the names, if the first was used or not."""
    first = producer("t")
    if used:
        connect(first)
    first.close()

    assert producer("t").status == "configured"


def test_used_producer_keeps_its_names():
    """A connected producer keeps its names like one that is only configured."""
    first = producer("t")
    connect(first)

    with pytest.raises(ConfigurationInvalidError):
        producer("t")

    first.close()


def test_collected_producer_frees_its_names():
    """A producer without references does not block its names."""
    producer("t")

    assert producer("t").status == "configured"


def test_producer_in_a_cycle_frees_its_names():
    """Nor does a producer in a cycle, which only the garbage collector frees."""

    def forget():
        first = producer("t")
        first.monitor.subscribe("producer.closed", lambda _: first.id)

    forget()

    assert producer("t").status == "configured"


def test_of_many_threads_one_gets_the_name():
    """Of threads that configure concurrently one succeeds; the others fail."""
    made, refused = [], []
    start = threading.Barrier(8)

    def configure():
        start.wait()
        try:
            made.append(producer("t"))
        except ConfigurationInvalidError as error:
            refused.append(error)

    threads = [threading.Thread(target=configure) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(made), len(refused)) == (1, 7)


@pytest.mark.patched
@pytest.mark.slow
def test_process_number_in_a_name_is_that_of_the_child(run_script):
    """A producer made before the fork gets another process number in the child."""
    run_script(
        """
        from greendrop import ConfigurationInvalidError, Producer
        from tests.forking import Fork

        kafka = {"bootstrap.servers": "127.0.0.1:9", "transactional.id": "x-{pid}"}
        first = Producer(kafka)

        def child():
            try:
                Producer(kafka)
            except ConfigurationInvalidError as error:
                return list(error.errors)

        assert Fork(child).result() == ["kafka.transactional.id"]
        """,
        "none",
    )


@pytest.mark.parametrize("mode", ["none", "patched"])
@pytest.mark.patched
@pytest.mark.slow
def test_names_of_the_parent_are_free_in_a_forked_child(run_script, mode):
    """In a child the parent's used producer has no name until it is reset there.

    A producer that was only configured belongs to the child too, with its name.
    """
    run_script(
        """
        from greendrop import ConfigurationInvalidError, Producer
        from tests.forking import Fork, forks

        def make(name):
            kafka = {"bootstrap.servers": "127.0.0.1:9", "transactional.id": name}
            return Producer(kafka)

        used, unused = make("used"), make("unused")
        used._core._connect(used._core.main)

        def refused(function):
            try:
                function()
            except ConfigurationInvalidError as error:
                assert list(error.errors) == ["kafka.transactional.id"]
                return True
            return False

        def child():
            own = make("used")
            found = [refused(used.reset), refused(lambda: make("unused"))]
            found.append(used.status)
            own.close()
            used.reset()
            return [*found, refused(lambda: make("used"))]

        def child_that_closes():
            own = make("used")
            used.close()
            return [used.status, own.status]

        for fork in forks().values():
            assert Fork(child, fork).result() == [True, True, "connected", True]
            statuses = Fork(child_that_closes, fork).result()
            assert statuses == ["closed", "configured"]
        used.close()
        """,
        mode,
    )
