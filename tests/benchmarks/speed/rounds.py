"""The side of a measured process: it does its steps round by round, and says what each round cost.

Every variant is a process of its own that stays; between its rounds it waits, so that rounds of different
variants can alternate without starting anything anew. Nothing but the standard library: peers run in an
environment without Métier.
"""

import json
import resource
import sys
import time
from typing import Any

MARK = "@speed "
"""Begins each line that is meant for the parent; whatever else a trainer prints is ignored."""

MIB = 1 << 20


class Rounds:
    """Counts steps; after the first few, waits for the parent before each round and reports after it."""

    def __init__(self, *, warm_steps: int, tokens: int) -> None:
        """Plan rounds of at least ``tokens`` tokens that are no padding, after ``warm_steps`` steps."""
        self._warm = warm_steps
        self._tokens = tokens
        self._done = self._steps = 0
        self._cpu = self._wall = 0.0

    def after_step(self, tokens: int) -> None:
        """Count a step of so many real tokens; may wait, and ends the process when the parent is done."""
        if self._warm > 0:
            self._warm -= 1
            if self._warm == 0:
                say(ready=True)
                self._begin()
            return
        self._done += tokens
        self._steps += 1
        if self._done >= self._tokens:
            say(
                tokens=self._done,
                steps=self._steps,
                cpu=time.process_time() - self._cpu,
                wall=time.perf_counter() - self._wall,
                peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB,
            )
            self._begin()

    def _begin(self) -> None:
        if not sys.stdin.readline():
            # The parent has all it wants. Trainers would otherwise save, log and tear down.
            sys.stdout.flush()
            raise SystemExit(0)
        self._done = self._steps = 0
        self._cpu, self._wall = time.process_time(), time.perf_counter()


def say(**facts: Any) -> None:
    """Tell the parent something."""
    print(f"{MARK}{json.dumps(facts)}", flush=True)
