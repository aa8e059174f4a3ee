"""What a producer promises, whatever is beneath: see `suite`."""

import pytest

pytest.register_assert_rewrite("tests.contract.suite", "tests.contract.faults")
