"""The side of the parent: it starts contestants, lets their rounds alternate, and reads what they cost."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from tests.benchmarks.speed.case import Case
from tests.benchmarks.speed.rounds import MARK

OURS = {"loop", "bare", "bare_dense", "bare_deepspeed"}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "DS_ACCELERATOR": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
    "CROSS_RANK": "0",
    "CROSS_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    # An idle thread of OpenMP would spin, and be counted.
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round of a contestant cost, all ranks together."""

    tokens: int
    steps: int
    cpu: float
    peak_mib: float
    """Of the largest process, from its start on: imports included."""

    @property
    def rate(self) -> float:
        """Tokens per CPU second."""
        return self.tokens / self.cpu

    @property
    def milliseconds(self) -> float:
        """CPU time of one step of one rank's."""
        return 1000 * self.cpu / self.steps


@dataclass(kw_only=True)
class Contestant:
    """One variant, running."""

    case: Case
    python: str | None
    """Its interpreter; None: there is none."""

    module: str
    rounds: list[Round] = field(default_factory=list)
    absent: str = ""
    """Why it was not measured."""

    _processes: list[subprocess.Popen[str]] = field(default_factory=list)
    _errors: IO[str] | None = None

    @classmethod
    def of(cls, case: Case, peers: str | None, folder: Path) -> "Contestant":
        """Say who runs a case: this interpreter ours, ``peers`` theirs."""
        ours = case.variant in OURS
        return cls(
            case=replace(case, folder=str(folder)),
            python=sys.executable if ours else peers,
            module=f"tests.benchmarks.speed.{'ours' if ours else 'peers'}",
            absent="" if ours or peers else "no --peers PYTHON given",
        )

    @property
    def is_ours(self) -> bool:
        """Whether it needs our corpus."""
        return self.module.endswith("ours")

    @property
    def rate(self) -> float:
        """Median tokens per CPU second."""
        return statistics.median(each.rate for each in self.rounds)

    @property
    def milliseconds(self) -> float:
        """Median CPU milliseconds of a step."""
        return statistics.median(each.milliseconds for each in self.rounds)

    @property
    def peak_mib(self) -> float:
        """Peak resident memory of the largest process."""
        return max(each.peak_mib for each in self.rounds)

    def start(self, port: int) -> None:
        """Start the processes, one per rank."""
        if self.python is None:
            return
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the processes
        for rank in range(self.case.world_size):
            # A trainer that finds these variables would wrap its model for several processes.
            alone = not self.is_ours and self.case.zero_stage == 0
            ranks = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(self.case.world_size),
                "MASTER_PORT": str(port),
            }
            self._processes.append(
                subprocess.Popen(
                    [self.python, "-m", self.module, self.case.to_json()],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    text=True,
                    env={**_inherited(), **ENVIRONMENT, **({} if alone else ranks)},
                )
            )

    def await_ready(self) -> None:
        """Wait until it has warmed up; notes why it has not."""
        if self.absent:
            return
        if not all(self._hear(process) for process in self._processes):
            self.absent = self._last_error()
            self.stop()

    def run_round(self) -> None:
        """Let it do one round."""
        if self.absent:
            return
        for process in self._processes:
            self._pipe(process.stdin).write("go\n")
            self._pipe(process.stdin).flush()
        heard = [self._hear(process) for process in self._processes]
        if not all(heard):
            self.absent = self._last_error()
            return
        self.rounds.append(
            Round(
                tokens=sum(each["tokens"] for each in heard if each),
                steps=sum(each["steps"] for each in heard if each),
                cpu=sum(each["cpu"] for each in heard if each),
                peak_mib=max(each["peak_mib"] for each in heard if each),
            )
        )

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()
        if self._errors:
            self._errors.close()
            self._errors = None

    def _hear(self, process: subprocess.Popen[str]) -> dict[str, Any] | None:
        for line in self._pipe(process.stdout):
            if line.startswith(MARK):
                facts: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return facts
        return None

    def _last_error(self) -> str:
        if self._errors is None:
            return "ended"
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "ended")

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        if pipe is None:
            raise RuntimeError("the process was started without this pipe")
        return pipe


def _inherited() -> dict[str, str]:
    """Give this process's environment, without what a launcher of ranks may have put there."""
    launched = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"}
    return {name: value for name, value in os.environ.items() if name not in launched}


def measure(contestants: Sequence[Contestant], rounds: int, find_port: Callable[[], int]) -> None:
    """Start all, then let their rounds alternate; nobody else of them works meanwhile."""
    try:
        for contestant in contestants:
            contestant.start(find_port())
        for contestant in contestants:
            contestant.await_ready()
        for _ in range(rounds):
            for contestant in contestants:
                contestant.run_round()
    finally:
        for contestant in contestants:
            contestant.stop()
