"""Run the soak: random programs in fresh interpreters, until the time is over.

    python -m tests.soak --duration 120 --seed 1

Each round is one interpreter, which runs some programs in one world: without gevent,
with gevent, or patched by it. Its seed follows from that of the command. When a round
fails its options are printed, such as ``--only patched --rounds 1 --seed 7``: they
repeat that round, and ``--shrink`` makes its program smaller. Programs depend on time
too: the same seed gives the same steps, and not always the same races.

Exits with 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests import interpreter, results

#: Names of the worlds, and how their interpreters begin.
WORLDS = {"threads": "none", "greenlets": "unpatched", "patched": "patched"}
#: Programs of one round, and the seconds that it may take. Shrinking needs many runs.
PROGRAMS = 8
_LONGEST = 900.0
_ROUND = """
from tests.soak.round import run
run({seed}, {programs}, shrinks={shrinks})
"""


def run_round(
    world: str, seed: int, programs: int = PROGRAMS, *, shrinks: bool = False
) -> dict[str, Any]:
    """Run one round.

    Args:
        world: A key of `WORLDS`.
        seed: Of its programs.
        programs: Their number; some more are run.
        shrinks: Whether to make a program that fails smaller; that takes minutes.

    Returns:
        The numbers of programs and messages, and errors by class.

    Raises:
        AssertionError: A promise was broken, or the round did not end.
    """
    source = _ROUND.format(seed=seed, programs=programs, shrinks=shrinks)
    ended = interpreter.run(source, WORLDS[world], fails=True, timeout=_LONGEST)
    output = f"{ended.stdout[-20_000:]}\n{ended.stderr[-20_000:]}"
    assert ended.returncode == 0, f"exit code {ended.returncode}\n{output}"
    done: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return done


@dataclass
class Sums:
    """The rounds of one world.

    Attributes:
        seconds: Of all rounds.
        done: Numbers of rounds, programs and messages.
        errors: Errors that were raised, and allowed, by class.
        failed: Options that repeat each round that has failed.
    """

    seconds: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def run(self, world: str, seed: int, *, shrinks: bool) -> None:
        """Run one more round, and print what it did."""
        started = time.monotonic()
        self.done["rounds"] += 1
        try:
            done = run_round(world, seed, shrinks=shrinks)
        except AssertionError as error:
            self.failed.append(f"--only {world} --rounds 1 --seed {seed}")
            print(f"\n{self.failed[-1]}:\n{error}\n", flush=True)
        else:
            self.errors.update(done.pop("errors"))
            self.done.update(done)
            print(f"{world} {seed}: {done}", flush=True)
        self.seconds += time.monotonic() - started

    def case(self, world: str, seed: int) -> results.Case:
        """Return the sums as they are kept."""
        return results.Case(
            name=world,
            seconds=round(self.seconds),
            figures={**self.done, "violations": len(self.failed)},
            passed=not self.failed,
            seed=seed,
        )


def main() -> int:
    """Run rounds until the time is over, and print the sums."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--duration", type=float, default=120.0, help="seconds")
    parser.add_argument("--rounds", type=int, default=sys.maxsize, help="at most")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--only", choices=sorted(WORLDS), help="one world of three")
    parser.add_argument(
        "--shrink", action="store_true", help="make programs that fail smaller"
    )
    parser.add_argument(
        "--keep", action="store_true", help="write the result to docs/reliability.json"
    )
    options = parser.parse_args()
    worlds = {
        each: Sums() for each in ([options.only] if options.only else list(WORLDS))
    }
    deadline = time.monotonic() + options.duration
    for number in range(options.rounds):
        if time.monotonic() > deadline:
            break
        world = list(worlds)[number % len(worlds)]
        worlds[world].run(world, options.seed + number, shrinks=options.shrink)
    for world, sums in worlds.items():
        print(world, json.dumps({**sums.done, "errors": sums.errors}), *sums.failed)
    if options.keep:
        results.keep(
            "soak",
            f"make soak DURATION={options.duration:.0f} SEED={options.seed}",
            [sums.case(world, options.seed) for world, sums in worlds.items()],
            results.versions(),
        )
    return 1 if any(sums.failed for sums in worlds.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
