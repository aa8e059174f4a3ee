"""Results of long runs are kept until newer ones replace them."""

import json

from tests import results
from tests.results import Case


def kept(path):
    """Return names and seeds of the kept cases of a check."""
    return {
        each["name"]: each["seed"]
        for each in json.loads(path.read_text())["chaos"]["cases"]
    }


def keep(path, of, **seeds):
    """Keep cases with these names and seeds."""
    cases = [
        Case(name, 1.0, {"lost": 0}, passed=True, seed=seed)
        for name, seed in seeds.items()
    ]
    results.keep("chaos", "make chaos", cases, of, path=path)


def test_newer_case_replaces_the_one_of_its_name(tmp_path):
    """A run of some parts of a check leaves the results of the other parts."""
    path = tmp_path / "results.json"

    keep(path, {"greendrop": "1"}, threads=1, greenlets=1)
    keep(path, {"greendrop": "1"}, threads=2)

    assert kept(path) == {"threads": 2, "greenlets": 1}


def test_results_of_other_versions_are_removed(tmp_path):
    """A table never mixes versions."""
    path = tmp_path / "results.json"

    keep(path, {"greendrop": "1"}, threads=1, greenlets=1)
    keep(path, {"greendrop": "2"}, threads=2)

    assert kept(path) == {"threads": 2}


def test_other_checks_keep_their_results(tmp_path):
    """Each check replaces only its own results."""
    path = tmp_path / "results.json"
    path.write_text('{"soak": {"cases": []}}')

    keep(path, {"greendrop": "1"}, threads=1)

    assert json.loads(path.read_text())["soak"] == {"cases": []}


def test_versions_name_what_was_tested():
    """The versions include those that a caller adds."""
    found = results.versions(**{"Apache Kafka": "4.3.1"})

    assert found["Apache Kafka"] == "4.3.1"
    assert {"greendrop", "Python", "confluent-kafka", "librdkafka", "gevent"} < set(
        found
    )
