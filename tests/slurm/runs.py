"""A training on the test cluster, struck by a fault, and compared with one that met none."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.soak import numbers, state_of
from tests.end_to_end.runs import environment, read_lines
from tests.slurm.cluster import Cluster, Process
from tests.slurm.jobs import Job, drained_nodes, strays, wait_until_ended
from training.layout import redone_beside
from training.metrics.lines import read_lines as read_whole_lines

STEPS = 40
SAVED_EVERY = 8
STRUCK_AT = 10
"""Faults strike when so many steps are done: one checkpoint is there, most of the run is to come."""

WORDS = (
    "experiment=tiny_smoke",
    "adapter=lora",
    "adapter.dropout=0.1",  # so that a wrong random state would show
    "cluster=slurm",
    "cluster.nodes=2",
    "cluster.threads_per_process=1",
    "cluster.preflight.mode=off",
    "batch.global_batch_size=8",
    f"loop.max_steps={STEPS}",
    f"loop.checkpoint_every_steps={SAVED_EVERY}",
)


@dataclass(frozen=True, slots=True)
class Training:
    """One run, submitted from a working folder."""

    cluster: Cluster
    folder: Path
    name: str = "tiny_smoke"
    seen: Path | None = None
    """Where this process sees the run directories, where they are not in the folder."""

    @property
    def run(self) -> Path:
        return (self.seen or self.folder / "runs") / self.name

    def type(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Type ``metier WORDS`` where users log in."""
        line = (sys.executable, "-m", "launcher", *words)
        return self.cluster.run(*line, cwd=self.folder, env=environment(), check=False)

    def submit(self, *words: str) -> int:
        """Submit the run, or let it go on; give the job's id."""
        done = self.type("train", *WORDS, f"name={self.name}", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.job()

    def journal(self, *events: str) -> list[dict[str, Any]]:
        """Read jobs.jsonl, or the lines of some events."""
        path = self.run / "jobs.jsonl"
        lines = read_whole_lines(path) if path.exists() else []
        return [line for line in lines if not events or line["event"] in events]

    def job(self) -> int:
        """Give the newest job's id."""
        return int(self.journal("submitted", "next")[-1]["job"])

    def lines(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl."""
        with contextlib.suppress(FileNotFoundError):
            return read_whole_lines(self.run / "metrics.jsonl")
        return []

    def redone(self) -> set[int]:
        """Name the steps that were done more than once."""
        path = redone_beside(self.run / "metrics.jsonl")
        return {line["step"] for line in read_whole_lines(path)} if path.exists() else set()

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Read events.jsonl, or the lines of some kinds."""
        return [line for line in read_lines(self.run / "events.jsonl") if line["event"] in kinds]

    def wait_for_step(self, step: int = STRUCK_AT, seconds: float = 90) -> None:
        """Wait until a step is done.

        Raises:
            AssertionError: It is not in this time, or the run has ended before.
        """
        deadline = time.monotonic() + seconds
        while not any(line["step"] >= step for line in self.lines()):
            assert time.monotonic() < deadline, f"step {step} is not done in {seconds:g} s\n{self.tell()}"
            assert not self.ends(), f"it ended before step {step}\n{self.tell()}"
            time.sleep(0.02)

    def ends(self) -> list[dict[str, Any]]:
        """Give the decisions after which nothing comes, since the run was submitted last."""
        lines = self.journal("submitted", "decided")
        since = max((at for at, line in enumerate(lines) if line["event"] == "submitted"), default=0)
        return [line for line in lines[since + 1 :] if line["step"] not in {"again", "return"}]

    def assert_inside(self) -> None:
        """Check that the run was struck while it trained: neither before its first step nor after its last.

        Raises:
            AssertionError: The fault came too late; nothing was tested.
        """
        assert STRUCK_AT <= self.lines()[-1]["step"] < STEPS, "the fault came too late"

    def ranks(self) -> dict[int, Process]:
        """Find the living ranks."""
        found = [process for process in self.cluster.processes() if "training.worker" in process.words]
        return {
            process.rank: process
            for process in found
            if process.rank is not None and Path(process.words[0]).name.startswith("python")
        }

    def kill_rank(self, rank: int) -> None:
        """Kill a rank in an instant."""
        self.cluster.signal(signal.SIGKILL, self.ranks()[rank])

    def finish(self, seconds: float = 150) -> Job:
        """Wait until the run is finished, and its job with it.

        Raises:
            AssertionError: It ends in another way, or not in this time.
        """
        deadline = time.monotonic() + seconds
        while not (ends := self.ends()):
            assert time.monotonic() < deadline, f"not finished in {seconds:g} s\n{self.tell()}"
            time.sleep(0.1)
        assert ends[-1]["step"] == "finished", f"{ends[-1]}\n{self.tell()}"
        job = wait_until_ended(self.cluster, int(ends[-1]["job"]), 60)
        assert job.state == "COMPLETED", f"{job}\n{self.tell()}"
        return job

    def assert_same_as(self, whole: Path, *, lost: int, gaps: bool = False) -> None:
        """Check that the end is that of a run without a fault, and that nothing is left on the nodes.

        Args:
            whole: The run directory of a run without a fault.
            lost: So many steps may have been done twice.
            gaps: Some lines of metrics.jsonl may be missing: the disk had no room for them.

        Raises:
            AssertionError: Something differs, or is left.
        """
        lines = self.lines()
        steps = [line["step"] for line in lines]
        assert steps == sorted(set(steps))
        assert gaps or steps == list(range(1, STEPS + 1))
        wanted = {line["step"]: numbers(line) for line in read_lines(whole / "metrics.jsonl")}
        found = {line["step"]: numbers(line) for line in lines}
        assert [(found[step], wanted[step]) for step in steps if found[step] != wanted[step]] == []
        assert state_of(self.run, STEPS) == state_of(whole, STEPS)
        assert len(self.redone()) <= lost, f"steps done twice: {sorted(self.redone())}"
        assert json.loads((self.run / "outcome.json").read_text())["state"] == "COMPLETED"
        assert strays(self.cluster) == []
        assert drained_nodes(self.cluster) == []

    def tell(self) -> str:
        """Give what a person would look at first."""
        names = ("jobs.jsonl", "outcome.json", "logs/job_*.log", "logs/rank_*.log")
        paths = [path for name in names for path in sorted(self.run.glob(name))]
        steps = [line["step"] for line in self.lines()][-1:]
        states = self.cluster.run("squeue", "-a", check=False).stdout
        nodes = self.cluster.run("sinfo", "-N", check=False).stdout
        tails = [f"--- {path.name}\n{path.read_text(errors='replace')[-2500:]}" for path in paths]
        return "\n".join([f"last step: {steps}", states, nodes, *tails])


def is_worker() -> bool:
    """Say whether this process is one of several that pytest runs tests in."""
    return "PYTEST_XDIST_WORKER" in os.environ
