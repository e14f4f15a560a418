"""Trainings that are started and killed, and all processes that come of them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.end_to_end.runs import environment
from training.metrics.lines import read_lines

MARK = "METIER_TEST_LIFE"
"""An environment variable that every process inherits, whatever group or session it moves to."""


def marked(is_mark: Callable[[bytes], bool]) -> list[int]:
    """Find the living processes that carry such a word among their environment variables."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if any(map(is_mark, (entry / "environ").read_bytes().split(b"\0"))):
                    found.append(int(entry.name))
    return found


@dataclass(frozen=True, slots=True)
class Life:
    """One start of ``metier train``."""

    folder: Path
    run: Path
    process: subprocess.Popen[str]
    mark: str
    earlier: int
    """So many starts of the run came before this one."""

    def pids(self) -> list[int]:
        """Find the processes of this start that still live, by the mark that they carry."""
        wanted = f"{MARK}={self.mark}".encode()
        return marked(lambda word: word == wanted)

    def ranks(self) -> list[int]:
        """Find the training processes, the lead rank first."""
        found = {}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                rank = next((word for word in variables if word.startswith(b"RANK=")), None)
                if b"training.worker" in words and rank is not None:
                    found[rank] = pid
        return [found[rank] for rank in sorted(found)]

    def kill(self) -> float:
        """Kill everything at once; give the time of it."""
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed = time.time()
            self.process.poll()
        self.process.communicate()
        return killed

    def wait_until_gone(self, seconds: float = 60) -> None:
        """Wait for the end of every process.

        Raises:
            AssertionError: Some live on.
        """
        deadline = time.monotonic() + seconds
        while left := self.pids():
            assert time.monotonic() < deadline, f"processes {left} live on"
            self.process.poll()
            time.sleep(0.05)

    def step(self) -> int:
        """Give the last step that this start has done; 0 before its first."""
        lines = read_lines(self.run / "metrics.jsonl")
        return max((line["step"] for line in lines if line["incarnation"] > self.earlier), default=0)


def count_starts(run: Path) -> int:
    """Give the number of the run's latest start."""
    return len(list((run / "incarnations").glob("[0-9]*.json")))


def temporary_folder(folder: Path) -> Path:
    """Name the folder for what the processes hold only while they live."""
    return folder / "tmp"


def begin(folder: Path, run: Path, words: tuple[str, ...], mark: str) -> Life:
    """Type ``metier WORDS`` in a folder; what it prints goes to the folder's screen.txt."""
    earlier = count_starts(run)
    temporary_folder(folder).mkdir(exist_ok=True)
    with (folder / "screen.txt").open("a") as screen:
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher", *words],
            cwd=folder,
            env={**environment(), MARK: mark, "TMPDIR": str(temporary_folder(folder))},
            stdout=screen,
            stderr=screen,
            text=True,
            start_new_session=True,
        )
    return Life(folder, run, process, mark, earlier)


def event_times(run: Path, *kinds: str) -> list[float]:
    """Give the times of some kinds of events, in order."""
    events: list[dict[str, Any]] = read_lines(run / "events.jsonl")
    return [float(event["time"]) for event in events if event["event"] in kinds]
