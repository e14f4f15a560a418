"""The run that ``tests.benchmarks.soak`` lets suffer, and what it suffers."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lives import Life, begin
from training.layout import redone_beside
from training.metrics.lines import read_lines

RUN = Path("runs") / "tiny_smoke"
COMMAND = (
    "train",
    "experiment=tiny_smoke",
    "schedule=constant",  # how long the run will be is not known before
    "adapter=lora",
    "adapter.dropout=0.1",
    "cluster.processes_per_node=2",
    "batch.global_batch_size=8",
    "loop.checkpoint_every_steps=10",
    "loop.evaluate_every_steps=25",
    "loop.held_out_documents=4",
    "evaluation.held_out_documents=4",
    "loader.cache_path=cache",
)
FOREVER = 10_000_000
FAULT_SECONDS = 12.0
"""How long a process stands still, and a disk is full."""


@dataclass(frozen=True, slots=True)
class Blow:
    """One fault."""

    name: str
    time: float
    step: int
    """The run had come so far."""


@dataclass
class Soak:
    """A run, and what has been done to it."""

    folder: Path
    chance: random.Random
    disk: Path | None
    """A small file system of its own, in which the run directories lie."""

    life: Life | None = None
    starts: int = 0
    blows: list[Blow] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / RUN

    def live(self) -> Life:
        """Give the living start; type the command again if the last one has ended."""
        if self.life is not None and self.life.process.poll() is None:
            return self.life
        if self.life is not None:
            self.codes.append(self.life.process.returncode)
            self.life.wait_until_gone()
        self.starts += 1
        words = (*COMMAND, f"loop.max_steps={FOREVER}")
        self.life = begin(self.folder, self.run, words, f"{self.folder}.{self.starts}")
        return self.life

    def furthest(self) -> int:
        """Give the highest step ever done."""
        return max((line["step"] for line in self.lines()), default=0)

    def lines(self) -> list[dict[str, Any]]:
        """Read the lines of all steps ever done, also of those that were done again, by time."""
        journal = self.run / "metrics.jsonl"
        found = [*read_lines(redone_beside(journal)), *read_lines(journal)]
        # A start that was killed while it moved lines has left them in both files.
        once = {(line["step"], line["time"]): line for line in found}
        return sorted(once.values(), key=lambda line: float(line["time"]))

    def outcome(self) -> str | None:
        """Wait for the end of the last start; say how it ended."""
        if self.life is not None:
            self.life.process.wait(120)
            self.life.wait_until_gone()
        path = self.run / "outcome.json"
        return str(json.loads(path.read_text())["state"]) if path.exists() else None

    def checkpoints(self) -> list[Path]:
        """List the complete checkpoints, oldest first."""
        return sorted((self.run / "checkpoints").glob("step_*"))


def kill_rank(soak: Soak) -> None:
    """Kill one rank; in a start that has none yet, the launcher."""
    life = soak.live()
    os.kill(soak.chance.choice(life.ranks() or [life.process.pid]), signal.SIGKILL)
    life.process.wait(120)


def kill_all(soak: Soak) -> None:
    """Kill every process at once."""
    soak.live().kill()


def kill_launcher(soak: Soak) -> None:
    """Kill the launcher; the others must end by themselves."""
    life = soak.live()
    life.process.kill()
    life.process.wait(60)
    life.wait_until_gone()


def stop(soak: Soak) -> None:
    """Ask it to stop, as a scheduler would."""
    life = soak.live()
    life.process.send_signal(signal.SIGTERM)
    life.process.wait(120)


def hold_rank(soak: Soak) -> None:
    """Let one rank stand still for a while."""
    ranks = soak.live().ranks()
    if ranks:
        victim = soak.chance.choice(ranks)
        os.kill(victim, signal.SIGSTOP)
        time.sleep(FAULT_SECONDS)
        os.kill(victim, signal.SIGCONT)


def fill_disk(soak: Soak) -> None:
    """Leave no byte of the run directory's disk for a while."""
    soak.live()
    if soak.disk is None:
        raise RuntimeError("there is no disk to fill")
    filler = soak.disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    stream.write(b"0" * size)
            except OSError:
                continue
    time.sleep(FAULT_SECONDS)
    filler.unlink()


def flip_bit(soak: Soak) -> None:
    """Kill everything, and change one bit of the newest checkpoint, if it is not the only one."""
    soak.live().kill()
    if len(soak.checkpoints()) > 1:
        part = soak.chance.choice(sorted(soak.checkpoints()[-1].glob("rank_*.bin")))
        data = bytearray(part.read_bytes())
        data[soak.chance.randrange(len(data))] ^= 1 << soak.chance.randrange(8)
        part.write_bytes(data)


def truncate_cache(soak: Soak) -> None:
    """Kill everything, and cut a shard in the node's cache short."""
    soak.live().kill()
    files = [path for path in (soak.folder / "cache").rglob("*.arrow") if path.stat().st_size > 1]
    if files:
        victim = soak.chance.choice(sorted(files))
        os.truncate(victim, victim.stat().st_size // 2)


FAULTS: dict[str, Callable[[Soak], None]] = {
    "one rank killed": kill_rank,
    "everything killed": kill_all,
    "launcher killed": kill_launcher,
    "stop signal": stop,
    "a rank stands still": hold_rank,
    "disk full": fill_disk,
    "killed, newest checkpoint with a flipped bit": flip_bit,
    "killed, cached shard cut short": truncate_cache,
}
