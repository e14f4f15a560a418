"""A folder in which one fault is provoked, and what is kept of it: lines without this machine's names."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASE = Path(tempfile.gettempdir()) / f"metier-why-{os.getuid()}"
"""What all faults begin with: the tiny model, its corpus, and a run of it."""

ROOT = Path(__file__).resolve().parents[2]
TINY = ("experiment=tiny_smoke", "name=mine")
TWO = (*TINY, "cluster.processes_per_node=2")
LONG = (*TWO, "loop.max_steps=2000", "loop.checkpoint_every_steps=20")
FAKE_KEY = "a" * 40
_DROPPED_EVENTS = {"memory", "self_test"}
_KEPT_LINES = 120
_PATIENCE_SECONDS = 120
_SECRET = re.compile(r"\b[0-9a-f]{40,}\b|\bhf_\w+")
_CLUSTER = re.compile(r"/tmp/slurm-\w+")  # noqa: S108 - where test clusters lie


@dataclass(frozen=True, slots=True)
class Work:
    """A user's folder, with the tiny model and its corpus in it."""

    folder: Path

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "runs" / "mine"

    def environment(self, **more: str) -> dict[str, str]:
        """Give the environment of a user without accounts."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "HF_"))}
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(home), "WANDB_SILENT": "true"}
        return kept | ours | more

    def command(self, *words: str) -> list[str]:
        """Give the words of ``metier WORDS``."""
        return [sys.executable, "-m", "launcher", *words]

    def metier(self, *words: str, before: tuple[str, ...] = (), **more: str) -> str:
        """Run ``metier WORDS`` to its end, and keep what it prints beside the run."""
        return self.do(*before, *self.command(*words), **more)

    def do(self, *words: str, **more: str) -> str:
        """Run a command to its end, and keep what it prints beside the run."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        self.keep(done.stdout)
        return done.stdout

    def keep(self, said: str) -> None:
        """Keep what a command printed as that of this fault."""
        (self.folder / "command.log").write_text(said)

    @contextlib.contextmanager
    def started(self, *words: str, before: tuple[str, ...] = (), **more: str) -> Any:
        """Start ``metier WORDS``; wait for its end afterwards, and keep what it prints."""
        with (self.folder / "command.log").open("w") as log:
            process = subprocess.Popen(
                [*before, *self.command(*words)],
                cwd=self.folder,
                env=self.environment(**more),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                yield process
                process.wait(_PATIENCE_SECONDS)
            finally:
                if process.poll() is None:
                    process.kill()

    def take_run(self, **cluster: object) -> None:
        """Have a run that is finished, without what it said."""
        shutil.copytree(
            BASE / "runs" / "mine", self.run, ignore=shutil.ignore_patterns("*.log", "outcome.json")
        )
        frozen = json.loads((self.run / "run.json").read_text())
        frozen["config"]["cluster"] |= cluster
        (self.run / "run.json").write_text(json.dumps(frozen))

    def wait_for_step(self, step: int) -> None:
        """Wait until the journal has this step."""
        wait_for(lambda: self.steps() >= step, f"step {step}")

    def steps(self) -> int:
        """Count the lines of the journal."""
        path = self.run / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def ranks(self) -> dict[int, int]:
        """Find the ranks' processes: rank -> pid."""
        found: dict[int, int] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if words[-2:-1] != [os.fsencode(self.run)] or b"torch.distributed.run" in words:
                    continue
                values = (folder / "environ").read_bytes().split(b"\0")
                rank = next(value for value in values if value.startswith(b"RANK="))
                found[int(rank.removeprefix(b"RANK="))] = int(folder.name)
        return found

    def rank(self, rank: int) -> int:
        """Wait for a rank and give its pid."""
        wait_for(lambda: rank in self.ranks(), f"rank {rank}")
        return self.ranks()[rank]


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    """Wait until it is so.

    Raises:
        TimeoutError: It never was.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


def record(work: Work, case: Path) -> None:
    """Copy from a fault's folder what `metier why` reads, scrubbed."""
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir(parents=True)
    names = {
        str(work.folder): "/home/user/work",
        sys.prefix: "/home/user/.venv",
        str(Path(sys.prefix).resolve()): "/home/user/.venv",
        str(ROOT): "/home/user/metier",
        sys.base_prefix: "/usr",
        os.uname().nodename: "node1",
    }
    files = [*work.run.glob("logs/*.log"), *work.run.glob("incarnations/0*.json"), *work.run.glob("*.jsonl")]
    files += [
        work.run / "outcome.json",
        work.run / "stop.request",
        work.run / "preflight.json",
        work.folder / "command.log",
    ]
    files += [work.folder / "sacct.txt", work.folder / "squeue.txt"]
    for path in files:
        if not path.is_file() or path.name.startswith(("samples", "system_")):
            continue
        name = str(path.relative_to(work.run)) if path.is_relative_to(work.run) else path.name
        place = case / scrub(name, names)
        content = scrub(shorten(path), names)
        if content.strip():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)


def shorten(path: Path) -> str:
    """Give the end of a text; of events what `metier why` looks at, of the journal its last lines."""
    lines = path.read_text(errors="replace").splitlines()
    if path.name == "events.jsonl":
        lines = [
            line for line in lines if not any(f'"event": "{event}"' in line for event in _DROPPED_EVENTS)
        ]
    kept = lines[-3:] if path.name.startswith("metrics") else lines[-_KEPT_LINES:]
    return "".join(f"{line}\n" for line in kept)


def scrub(content: str, names: dict[str, str]) -> str:
    """Replace this machine's folders and name, and whatever looks like a secret."""
    for name, instead in sorted(names.items(), key=lambda pair: -len(pair[0])):
        content = re.sub(rf"{re.escape(name)}(?![\w-])", instead, content)
    return _SECRET.sub("[secret]", _CLUSTER.sub("/var/slurm", content))
