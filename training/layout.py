"""Where everything lies: the run directory and the corpus folder are contracts, named here once."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

ASKED = "METIER_ASKED"
"""Environment variable by which the launcher tells the ranks when it was called, seconds since 1970."""

START_MARK = "=== start "
"""With these words each start begins in a log that goes on over restarts."""


def start_line() -> str:
    """Say that a start begins here: by it `metier why` knows what belongs to the last one."""
    return f"{START_MARK}{time.strftime('%Y-%m-%dT%H:%M:%S%z')} on {os.uname().nodename}\n"


def redone_beside(path: Path) -> Path:
    """Name the file for those lines of ``path`` whose steps were done again."""
    return path.with_suffix(".redone.jsonl")


@dataclass(frozen=True, slots=True)
class RunLayout:
    """The files of one run; see docs/architecture.md, "The run directory"."""

    root: Path

    @classmethod
    def of(cls, run_root: str, name: str) -> "RunLayout":
        """Name the files of run ``name``, absolute."""
        return cls(Path(run_root).absolute() / name)

    @property
    def config(self) -> Path:
        """The frozen configuration: what the workers read, and nothing else."""
        return self.root / "run.json"

    @property
    def logs(self) -> Path:
        """One text file per rank, appended on a restart."""
        return self.root / "logs"

    def rank_log(self, rank: int) -> Path:
        """What one rank said, tracebacks included."""
        return self.logs / f"rank_{rank}.log"

    def job_log(self, job: str) -> Path:
        """What a job's script and its preflight said; Slurm appends to it after a requeue."""
        return self.logs / f"job_{job}.log"

    @property
    def job_script(self) -> Path:
        """The batch script that was submitted."""
        return self.root / "job.sh"

    @property
    def submission_lock(self) -> Path:
        """Held by the command that is submitting the run."""
        return self.root / ".submission.lock"

    @property
    def jobs(self) -> Path:
        """One JSON object per line: each job that was submitted, each start in it, each decision."""
        return self.root / "jobs.jsonl"

    @property
    def stop_request(self) -> Path:
        """While this file is there, ranks save and stop; its text says who asked. Removed at each start."""
        return self.root / "stop.request"

    @property
    def pulse(self) -> Path:
        """What every rank is at, one small file each, rewritten as it goes: who is stuck, who is slow."""
        return self.root / "pulse"

    def heart(self, rank: int) -> Path:
        """The heart of one rank: step, phase, time, host."""
        return self.pulse / f"heart_{rank}.json"

    def system(self, node: str) -> Path:
        """What one node's processors, memory, disk, network and devices were at: JSON lines."""
        return self.root / f"system_{node}.jsonl"

    def system_files(self) -> list[Path]:
        """List those of all nodes."""
        return sorted(self.root.glob("system_*.jsonl"))

    @property
    def preflight(self) -> Path:
        """What the last preflight found, as JSON."""
        return self.root / "preflight.json"

    @property
    def torchrun(self) -> Path:
        """What torchrun keeps of each start; on one node it goes with the start's end."""
        return self.logs / "torchrun"

    @property
    def metrics(self) -> Path:
        """One JSON object per step, in order; ``redone_beside`` it those of steps that were done again."""
        return self.root / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """Started, resumed, saved, stopped, failed, finished: with time and reason."""
        return self.root / "events.jsonl"

    @property
    def samples(self) -> Path:
        """Answers to some held-out questions, given while training: one JSON object per answer."""
        return self.root / "samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folders named by step; each is complete or absent."""
        return self.root / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint taken after ``step`` optimizer steps."""
        return self.checkpoints / f"step_{step:08d}"

    @property
    def incarnations(self) -> Path:
        """Who may commit a checkpoint: claimed atomically at each start."""
        return self.root / "incarnations"

    @property
    def outcome(self) -> Path:
        """How the last start ended."""
        return self.root / "outcome.json"

    @property
    def tracker(self) -> Path:
        """The W&B run's id, its offline files, and how far the journal was sent."""
        return self.root / "tracker"

    @property
    def model(self) -> Path:
        """The whole model as a Hugging Face folder, when exported."""
        return self.root / "model"

    @property
    def adapter(self) -> Path:
        """The adapter alone, when exported."""
        return self.root / "adapter"

    @property
    def report(self) -> Path:
        """What was gained, what was lost: HTML, JSON, PNG."""
        return self.root / "report"


@dataclass(frozen=True, slots=True)
class CorpusLayout:
    """The files of one prepared corpus."""

    root: Path

    @property
    def manifest(self) -> Path:
        """Counts, checksums, fingerprints; written last, so its presence means complete."""
        return self.root / "manifest.json"

    @property
    def shards(self) -> Path:
        """Arrow IPC files of both splits, each named by its checksum."""
        return self.root / "shards"

    @property
    def index(self) -> Path:
        """Arrays over all documents (their lengths), each file named by its checksum."""
        return self.root / "index"

    @property
    def plans(self) -> Path:
        """Packing plans, one folder per sequence length and policy; made anew when missing."""
        return self.root / "plans"

    @property
    def parts(self) -> Path:
        """What `metier prepare` has done so far, one JSON file per part of the input."""
        return self.root / "parts"

    @property
    def audit(self) -> Path:
        """What `metier audit` found: audit.json and audit.html."""
        return self.root / "audit"
