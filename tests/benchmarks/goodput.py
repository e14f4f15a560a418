"""How much of a run that is killed again and again is training that counts.

    python -m tests.benchmarks.goodput [--seed 1] [--batch 16] [--folder DIR]

A run of 60 steps on two processes, of which all are killed five times at random moments, and the same command
typed again each time. Goodput: the seconds of steps that the weights remember over the wall seconds between
each start's first step and its death. What a kill costs is the steps since the last checkpoint; the bound is
what a save that takes no time would give at these moments. Weights and moments must end with the bits of a
run that was never killed.
"""

import argparse
import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.end_to_end.runs import link_prepared, succeed
from tests.lives import Life, begin, event_times
from training.layout import redone_beside
from training.metrics.goodput import find_goodput
from training.metrics.lines import read_lines

STEPS, KILLS = 60, 5
RUN = Path("runs") / "tiny_smoke"
GOAL = 0.90


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one run gave."""

    useful: float
    wall: float
    lost: int
    files: list[dict[str, Any]]

    @property
    def bound(self) -> float:
        """Of the goodput, at equally long steps: whole steps lost alone."""
        return STEPS / (STEPS + self.lost)


def wait_for(life: Life, moment: float) -> None:
    """Wait until the run is past a moment, in steps, in its latest start."""
    while life.step() < int(moment):
        if life.process.poll() is not None:
            raise RuntimeError(f"ended before step {moment}: {(life.folder / 'screen.txt').read_text()}")
        time.sleep(0.01)
    seconds = read_lines(life.run / "metrics.jsonl")[-1]["step_seconds"]
    time.sleep(seconds * (moment % 1))


def go_through(folder: Path, words: tuple[str, ...], moments: list[float]) -> Told:
    """Train to the end, killed at each moment."""
    run, deaths = folder / RUN, []
    for number, moment in enumerate([*moments, float(STEPS)]):
        life = begin(folder, run, words, f"goodput.{folder.name}.{number}")
        if moment < STEPS:
            wait_for(life, moment)
            deaths.append(life.kill())
        elif life.process.wait(600) != 0:
            raise RuntimeError((folder / "screen.txt").read_text())
    deaths += event_times(run, "finished")
    births = event_times(run, "started", "resumed")
    journal = run / "metrics.jsonl"
    manifest = json.loads((run / "checkpoints" / f"step_{STEPS:08d}" / "manifest.json").read_text())
    return Told(
        useful=find_goodput(read_lines(journal), 0, 0).useful_seconds,
        wall=sum(death - birth for birth, death in zip(births, deaths, strict=True)),
        lost=len(read_lines(redone_beside(journal))),
        files=manifest["files"],
    )


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16, help="samples of 256 tokens per step")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    moments = sorted(chance.uniform(1, STEPS - 1) for _ in range(KILLS))
    table = Table(
        "checkpoint", "kills", "steps lost", "useful s", "wall less starts s", "goodput", "bound", "goal"
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        prepared = root / "prepared"
        prepared.mkdir()
        succeed(prepared, "prepare", "experiment=tiny_smoke")
        whole: Told | None = None
        for every, kills in ((5, []), (5, moments), (1, moments)):
            place = link_prepared(prepared, root / f"every_{every}_{len(kills)}")
            words = (
                "train",
                "experiment=tiny_smoke",
                "cluster.processes_per_node=2",
                f"batch.global_batch_size={options.batch}",
                f"loop.max_steps={STEPS}",
                f"loop.checkpoint_every_steps={every}",
            )
            told = go_through(place, words, kills)
            whole = whole or told
            if told.files != whole.files:
                raise RuntimeError("the weights are not those of the run that was never killed")
            table.add_row(
                f"every {every} steps",
                str(len(kills)),
                str(told.lost),
                f"{told.useful:.1f}",
                f"{told.wall:.1f}",
                f"{told.useful / told.wall:.3f}",
                f"{told.bound:.3f}",
            )
    console = Console(width=110)
    console.print(table)
    console.print(f"goal of the goodput: at least {GOAL:.2f}")
    console.print("killed in steps " + ", ".join(f"{moment:.1f}" for moment in moments))
    console.print("the final checkpoints of all three runs have the same bits")


if __name__ == "__main__":
    main()
