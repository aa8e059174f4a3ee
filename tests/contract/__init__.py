"""The contract of a producer, whatever brokers are beneath: see `suite`."""

import pytest

pytest.register_assert_rewrite(
    *(f"tests.contract.{each}" for each in ("suite", "faults", "transactions"))
)
