"""How long a save holds the training up, what it costs the steps after it, and the memory of save and load.

    python -m tests.benchmarks.checkpoint [--megabytes 600] [--rounds 5] [--step-seconds 0.3] [--folder DIR]

One process with fp32 weights and two moments. Stall: the call of ``save``, and what is left to wait for
before the next step's update, against torch.save of the same tensors into the same folder. A step computes
for --step-seconds before its update; a model with 600 MB of state takes several times that on one CPU core.
The copy's own seconds are told as well: what would be waited for if nothing ran beside it. Slow-down: how
much longer the steps take, summed up, while a save is on its way, in wall seconds, and in CPU seconds of the
process. Memory: the process's anonymous pages above what it had before; mapped files are not counted.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tests.checkpoint_case import at
from tests.fake_run import open_fake_store
from training.checkpoint.share import plan_share
from training.checkpoint.store import CheckpointStore
from training.fragments.fragment import Fragment, read_into
from training.fragments.reader import FragmentReader
from training.fragments.runs import Stretch

PARAMETERS = 50
KEYS = ("weight", "exp_avg", "exp_avg_sq")
GOALS = {"stall": 0.10, "slow-down": 1.0, "slow-down, CPU": 1.0}


class BigEngine:
    """Some parameters with their moments, and a step that computes."""

    def __init__(self, megabytes: int, step_seconds: float) -> None:
        count = megabytes * 1_000_000 // (4 * len(KEYS) * PARAMETERS)
        self.state = {f"layer_{n}": {key: torch.randn(count) for key in KEYS} for n in range(PARAMETERS)}
        self._matrix = torch.randn(600, 600)

        self._products = 1
        once = statistics.median(self.compute() for _ in range(20))
        self._products = max(1, round(step_seconds / once))

    def compute(self) -> float:
        """Go forward and backward, so to speak; give the seconds."""
        started = time.perf_counter()
        for _ in range(self._products):
            self._matrix @ self._matrix
        return time.perf_counter() - started

    def fragments(self) -> Iterator[Fragment]:
        for name, tensors in self.state.items():
            yield Fragment(
                name=name,
                shape=tuple(tensors["weight"].shape),
                start=0,
                tensors=tensors,
                scalars={"step": 1.0},
            )

    def load(self, reader: FragmentReader) -> None:
        for name, tensors in self.state.items():
            for key, tensor in tensors.items():
                read_into(tensor, reader, name, key, Stretch(0, len(tensor)))


def anonymous_bytes() -> int:
    """Read this process's memory, mapped files not counted."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


def peak_above(work: Callable[[], object]) -> int:
    """Do some work; give the most memory that it had above what there was before."""
    before, peak, ended = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.005):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    ended.set()
    watcher.join()
    return max(0, peak - before)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Do some work; give its wall seconds and the process's CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure_round(engine: BigEngine, root: Path, number: int, store: CheckpointStore) -> dict[str, float]:
    """Take plain steps, then torch.save, then a copy alone, then our save with steps beside it."""
    plain, plain_cpu = (
        statistics.median(each) for each in zip(*(timed(engine.compute) for _ in range(6)), strict=True)
    )
    path = root / "plain.pt"
    torch_seconds, torch_cpu = timed(lambda: torch.save(engine.state, path))
    path.unlink()
    share = plan_share(engine.fragments())
    copy, _ = timed(lambda: store._buffer.copy(share, None))
    stall, _ = timed(lambda: store.save(at(number)))
    flight = store._flight
    assert flight is not None
    steps, slowed, slowed_cpu = 0, 0.0, 0.0
    while not flight.landed.is_set():
        wall, cpu = timed(engine.compute)
        steps, slowed, slowed_cpu = steps + 1, slowed + wall - plain, slowed_cpu + cpu - plain_cpu
        waited, _ = timed(store.wait_until_copied)
        stall += waited
    store.settle()
    return {
        "torch.save": torch_seconds,
        "torch.save, CPU": torch_cpu,
        "the copy alone": copy,
        "stall": stall,
        "slow-down": slowed,
        "slow-down, CPU": slowed_cpu,
        "on the disk after": flight.seconds,
    }


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step-seconds", type=float, default=0.3)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root, engine = Path(folder), BigEngine(options.megabytes, options.step_seconds)
        store = open_fake_store(root, engine)  # type: ignore[arg-type]
        first = peak_above(lambda: measure_round(engine, root, 1, store))
        rounds = [measure_round(engine, root, 2 + n, store) for n in range(options.rounds)]
        final = open_fake_store(root, engine)  # type: ignore[arg-type]
        live = peak_above(lambda: final.save(at(99), final=True))
        load = peak_above(final.resume)
    told = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    table = Table("measure", "seconds", "of torch.save", "goal")
    for key, seconds in told.items():
        goal = GOALS.get(key)
        share = f"{seconds / told['torch.save, CPU' if key.endswith('CPU') else 'torch.save']:.3f}"
        table.add_row(key, f"{seconds:.3f}", share, "" if goal is None else f"<= {goal:.2f}")
    console = Console()
    console.print(table)
    console.print(
        f"state {options.megabytes} MB; memory above it: {first / 1e6:.0f} MB for a save beside the training "
        f"(kept for the next), {live / 1e6:.0f} MB for the final save, {load / 1e6:.0f} MB for a load"
    )


if __name__ == "__main__":
    main()
