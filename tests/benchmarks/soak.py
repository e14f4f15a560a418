"""A training that meets a fault every minute, and ends with the numbers of one that met none.

    python -m tests.benchmarks.soak [--minutes 60] [--every 60] [--seed 1] [--folder DIR]

Two processes train; at a random moment of each minute something happens to them, and the same command is
typed again whenever they have ended. After the time a stop signal ends the run at some step. Then a run of as
many steps is trained without a fault: every line of metrics.jsonl, weights and moments must be the same, bit
for bit, and so must the lines of steps that were done again. Nothing may be left: no process (and so no
port), no shared memory, no half-written file. Prints what each fault has cost. Needs root for the full disk,
which is a small tmpfs; without it that fault is left out, and said so.
"""

import argparse
import contextlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.soak_faults import COMMAND, FAULTS, RUN, Blow, Soak, stop
from tests.end_to_end.runs import link_prepared, succeed
from tests.lives import MARK, marked, temporary_folder
from training.metrics.lines import read_lines

TIMES = {
    "time",
    "incarnation",
    "tokens_per_second",
    "tokens_per_second_per_gpu",
    "memory_peak_bytes",
    "slowest_rank",
    "slowest_rank_factor",
}
DISK_BYTES = 96 << 20
PATIENCE_SECONDS = 10
CACHE = "torchinductor"
"""torch's cache of compiled code, for all that comes after."""

SHARED = Path("/dev/shm")  # noqa: S108


def suffer(soak: Soak, minutes: float, every: float) -> None:
    """Meet a fault in each interval, then stop in good order."""
    names = [name for name in FAULTS if soak.disk is not None or name != "disk full"]
    due: list[str] = []
    begun = time.monotonic()
    for number in range(max(1, round(minutes * 60 / every))):
        moment = begun + every * (number + soak.chance.random())
        while time.monotonic() < moment:
            soak.live()
            time.sleep(0.1)
        if not due:
            due = soak.chance.sample(names, len(names))  # each before any comes again
        name = due.pop()
        soak.blows.append(Blow(name, time.time(), soak.furthest()))
        FAULTS[name](soak)
    while True:
        # Further than ever, so that the last checkpoint comes after every line of the journal.
        furthest = soak.furthest()
        while soak.live().step() <= furthest:
            time.sleep(0.1)
        stop(soak)
        if soak.outcome() == "STOPPED":
            return


def costs(soak: Soak) -> list[tuple[Blow, int, float]]:
    """Give for each fault the steps done again, and the seconds until the run was further than ever."""
    lines = soak.lines()
    told = []
    for number, blow in enumerate(soak.blows):
        until = soak.blows[number + 1].time if number + 1 < len(soak.blows) else float("inf")
        mine = [line for line in lines if blow.time < line["time"] <= until]
        again = sum(line["step"] <= blow.step for line in mine)
        further = next((line["time"] for line in mine if line["step"] > blow.step), until)
        told.append((blow, again, further - blow.time))
    return told


def numbers(line: dict[str, Any]) -> dict[str, Any]:
    """Leave out times and rates."""
    return {key: value for key, value in line.items() if key not in TIMES and not key.endswith("_seconds")}


def state_of(run: Path, step: int) -> list[dict[str, Any]]:
    """Name a checkpoint's files, with their checksums."""
    manifest = json.loads((run / "checkpoints" / f"step_{step:08d}" / "manifest.json").read_text())
    return list(manifest["files"])


def find_differences(soak: Soak, whole: Path, last: int) -> list[str]:
    """Compare with the run that met no fault; name what differs."""
    wanted = {line["step"]: numbers(line) for line in read_lines(whole / "metrics.jsonl")}
    # Only the run that ends at this step by its settings measures the held-out loss there.
    wanted[last] = {key: value for key, value in wanted[last].items() if not key.startswith("held_out")}
    told = []
    steps = [line["step"] for line in read_lines(soak.run / "metrics.jsonl")]
    if steps != sorted(set(steps)):
        told.append("metrics.jsonl does not hold each step once, in order")
    for line in soak.lines():
        found, step = numbers(line), line["step"]
        if step == last:
            found = {key: value for key, value in found.items() if not key.startswith("held_out")}
        if found != wanted.get(step):
            told.append(f"step {step}: {found} instead of {wanted.get(step)}")
    if state_of(soak.run, last) != state_of(whole, last):
        told.append("weights and moments of the last checkpoint")
    return told


def find_lost(soak: Soak, last: int) -> tuple[int, int]:
    """Count the steps of which no line was kept: while the disk was full, and at any other time."""
    known = {line["step"] for line in read_lines(soak.run / "metrics.jsonl")}
    full = [
        (blow.step, next((later.step for later in soak.blows[number + 1 :]), last))
        for number, blow in enumerate(soak.blows)
        if blow.name == "disk full"
    ]
    missing = [step for step in range(1, last + 1) if step not in known]
    excused = [step for step in missing if any(first < step <= end + 1 for first, end in full)]
    return len(excused), len(missing) - len(excused)


def names_in(folder: Path) -> set[str]:
    """Name what lies in a folder."""
    return {path.name for path in folder.iterdir()}


def find_leftovers(soak: Soak, shared: set[str]) -> list[str]:
    """Name processes, shared memory and half-written or temporary files that are left."""
    prefix = f"{MARK}={soak.folder}.".encode()
    left = [f"process {pid}" for pid in marked(lambda word: word.startswith(prefix))]
    orphans = names_in(SHARED) - shared - held_by_others()
    time.sleep(PATIENCE_SECONDS)  # others come and go meanwhile
    left += sorted(orphans & names_in(SHARED) - held_by_others())
    left += sorted(name for name in names_in(temporary_folder(soak.folder)) if not name.startswith(CACHE))
    for pattern in (".staging_*", ".trash_*", "*.partial", ".claim.*", "torchrun", "filler"):
        left += [str(path.relative_to(soak.folder)) for path in soak.folder.rglob(pattern)]
    return left


def held_by_others() -> set[str]:
    """Name the shared memory that living processes have mapped: none of them is ours."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            found |= {
                Path(line.split()[-1]).name for line in maps.read_text().splitlines() if "/shm/" in line
            }
    return found


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a small file system where the run directories will lie; None where that is not allowed."""
    disk = folder / RUN.parts[0]
    disk.mkdir(parents=True)
    mount, umount = (shutil.which(name) or name for name in ("mount", "umount"))
    words = [mount, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
    is_mounted = subprocess.run(words, check=False, capture_output=True).returncode == 0
    try:
        yield disk if is_mounted else None
    finally:
        if is_mounted:
            subprocess.run([umount, "-l", str(disk)], check=True)


def show(console: Console, soak: Soak) -> None:
    """Print what each sort of fault has cost."""
    table = Table("fault", "times", "steps done again", "seconds until further than ever, median")
    for name in FAULTS:
        mine = [(again, seconds) for blow, again, seconds in costs(soak) if blow.name == name]
        seconds = [each for _, each in mine if each < float("inf")]
        median = f"{statistics.median(seconds):.1f}" if seconds else "-"
        table.add_row(name, str(len(mine)), str(sum(again for again, _ in mine)), median)
    console.print(table)


def main() -> int:
    """Soak, compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=60, help="seconds from fault to fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    console, shared = Console(width=110), names_in(SHARED)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        (root / "prepared").mkdir()
        succeed(root / "prepared", "prepare", "experiment=tiny_smoke")
        work = link_prepared(root / "prepared", root / "soak")
        with small_disk(work) as disk:
            if disk is None:
                console.print("no file system can be mounted here: the disk is never full in this soak")
            soak = Soak(work, random.Random(options.seed), disk)
            suffer(soak, options.minutes, options.every)
            last = int(soak.checkpoints()[-1].name.removeprefix("step_"))
            show(console, soak)
            console.print(f"{soak.starts} starts, {last} steps; now as many without a fault")
            whole = link_prepared(root / "prepared", root / "whole")
            # Without a fault it takes less than it took with them.
            patience = 120 + 120 * options.minutes
            succeed(whole, *COMMAND, f"loop.max_steps={last}", timeout_seconds=patience)
            differences = find_differences(soak, whole / RUN, last)
            excused, lost = find_lost(soak, last)
            leftovers = find_leftovers(soak, shared)
        console.print(f"lines of metrics.jsonl lost: {excused} to the full disk, {lost} otherwise")
        for each in [*differences[:10], *(f"left behind: {name}" for name in leftovers)]:
            console.print(each)
        is_well = not differences and not leftovers and not lost
        console.print("every line, weights and moments are the same" if not differences else "NOT the same")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
