"""Each verb survives an interruption at each of its functions; see `tests.sweep`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.interpreter import ROOT
from tests.sweep import verbs

WORLDS = ("none", "hub", "patched")
KINDS = ("plain", "transactional")
ACTIONS = ("raise", "async", "sync", "random")
#: Seconds that the points of one verb may take.
_LONGEST = 2700.0

#: Known exceptions with their reasons: part of the function's name, and of the rule.
EXCEPTIONS: dict[tuple[str, str], str] = {}


class Child:
    """The points of one verb, run by one process after another."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        #: How many points the verb has, and how many were run.
        self.points = 0
        self.run = 0
        #: The broken rules: point and rule.
        self.broken: list[str] = []

    def sweep(self, start: int, step: int) -> None:
        """Run the points from a number on."""
        begun: dict[str, Any] = {}
        done = False
        output, errors = self._end(self._started(start, step))
        for line in output.splitlines():
            facts = json.loads(line)
            self.points = facts.get("points", self.points)
            done = done or "done" in facts
            if "begun" in facts:
                begun = facts
                self.run += 1
            for text in facts.get("broken", ()):
                self._note(facts["point"], text)
        if not done:
            self._note(begun.get("point", "the start"), f"ended the process: {errors}")
            if begun:
                self.sweep(begun["begun"] + step, step)

    def _note(self, point: str, text: str) -> None:
        for function, rule in EXCEPTIONS:
            if function in point and rule in text:
                return
        self.broken.append(f"{point}: {text}")

    def _started(self, start: int, step: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.sweep.child", *self._arguments]
        return subprocess.Popen(
            [*command, str(start), str(step)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
        try:
            return process.communicate(timeout=_LONGEST)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.communicate()


def _cases() -> list[tuple[str, str, str]]:
    return [
        (world, kind, verb)
        for world in WORLDS
        for kind in KINDS
        for verb in (*verbs.VERBS, *verbs.TRANSACTIONAL)
        if kind == "transactional" or verb not in verbs.TRANSACTIONAL
    ]


@pytest.mark.sweep
@pytest.mark.timeout(3 * _LONGEST)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(("world", "kind", "verb"), _cases())
def test_an_interruption_anywhere_does_no_harm(world, kind, verb, action):
    """A handler may raise, or send, at the entry of every function that a verb runs.

    With "random" it raises at moments that a timer chooses, also within functions.

    The exception keeps its type; later messages are stored; none is lost without an
    error; there is one client and one poller; closing leaves nothing behind.
    """
    child = Child(world, kind, verb, action)

    child.sweep(0, 1)

    assert child.points
    assert child.run >= child.points
    assert not child.broken, "\n".join(child.broken)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len((*verbs.VERBS, *verbs.TRANSACTIONAL))))
def test_an_interruption_at_sampled_places_does_no_harm(number):
    """Each verb is interrupted at a few places; `make sweep` takes all."""
    verb = (*verbs.VERBS, *verbs.TRANSACTIONAL)[number]
    world = WORLDS[number % len(WORLDS)]
    kind = "transactional" if verb in verbs.TRANSACTIONAL else KINDS[0]
    child = Child(world, kind, verb, ACTIONS[number // 2 % 3])

    child.sweep(number, 29)

    assert child.run
    assert not child.broken, "\n".join(child.broken)
