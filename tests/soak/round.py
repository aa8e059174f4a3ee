"""One round of the soak, in this interpreter."""

from __future__ import annotations

import faulthandler
import json
import logging
import sys
from dataclasses import asdict
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.soak.machine import TOTALS, Programs

#: Steps of one program, at most.
_STEPS = 40


def run(number: int, programs: int, *, shrinks: bool) -> None:
    """Run some programs, and print what they did as JSON.

    Args:
        number: The seed.
        programs: How many.
        shrinks: Whether to look for a smaller program that fails like the one that did,
            for up to five minutes.
    """
    faulthandler.enable()
    logging.getLogger("greendrop").setLevel(logging.CRITICAL)
    gevent: Any = sys.modules.get("gevent")
    if gevent is not None:
        gevent.get_hub()
    options = settings(
        max_examples=programs,
        stateful_step_count=_STEPS,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if shrinks else (Phase.generate,),
    )
    run_state_machine_as_test(seed(number)(Programs), settings=options)
    print(json.dumps(asdict(TOTALS)))
