"""What it costs to read shuffled, packed batches, beside what peers take to read documents alone.

    python -m tests.benchmarks.loader [--peers PYTHON] [--documents 1250000] [--seconds 30] [--folder FOLDER]

One corpus of made-up tokens (log-normal lengths, mean 65; for the peer that tokenises: words) is written once
into FOLDER and read by each in a process of its own, one after the other. Ours gives whole batches of 8 rows
of 512: ids, labels, positions, document bounds; the peers give documents and pack nothing. PYTHON is the
interpreter of an environment that has litdata and mosaicml-streaming; the latter pins transformers < 5.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.loader_peers import Meter
from tests.synthetic_corpus import write_corpus
from training.batch import BatchPlan
from training.config.sources import MixtureConfig
from training.data.order.order import build_order
from training.data.order.plan import open_plan
from training.data.reading.loader import BatchStream
from training.data.reading.reader import Corpus, open_corpus

PEERS_SCRIPT = Path(__file__).with_name("loader_peers.py")
SEQUENCE_LENGTH = 512
ROWS = 8
MEAN_TOKENS = 65
SPREAD = 0.8
GOALS = {"litdata": 3, "mosaicml-streaming": 30, "datasets": 30}
GOAL_RATE = 10e6
GOAL_MEMORY = 100e6


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    result: dict[str, Any] | None
    absent: str = ""


def make_corpus(folder: Path, documents: int) -> Path:
    """Write the corpus, and its tokens as plain arrays for the peers; gives its path."""
    root = folder / "corpus"
    if not root.exists():
        rng = np.random.default_rng(0)
        drawn = rng.lognormal(np.log(MEAN_TOKENS) - SPREAD**2 / 2, SPREAD, documents)
        lengths = np.clip(drawn, 2, SEQUENCE_LENGTH).astype(np.int64)
        write_corpus(root, {"notes": lengths}, tokens_per_shard=1 << 22)
        corpus = open_corpus(root, "train")
        np.save(folder / "ends.npy", np.cumsum(lengths))
        shards = range(len(corpus.record.shards))
        np.save(folder / "tokens.npy", np.concatenate([corpus.shard(number).ids for number in shards]))
        open_plan(corpus, SEQUENCE_LENGTH, "refuse")
    return root


def open_stream(corpus: Corpus, *, samples_seen: int = 0) -> BatchStream:
    """Stream all of the corpus to one rank, 8 rows a step."""
    plan = BatchPlan(
        global_batch_size=ROWS,
        micro_batch_size=ROWS,
        gradient_accumulation_steps=1,
        world_size=1,
        sequence_length=SEQUENCE_LENGTH,
    )
    rows = open_plan(corpus, SEQUENCE_LENGTH, "refuse")
    mixture = MixtureConfig(by="documents", shares={}, replay=None)
    order = build_order(corpus.record, rows, mixture, seed=1, global_batch_size=ROWS, max_steps=10**6)
    return BatchStream(corpus, plan, rows, order, rank=0, samples_seen=samples_seen)


def read_ours(root: Path, seconds: float) -> None:
    """Print one line of JSON."""
    torch.set_num_threads(1)
    meter = Meter()
    with open_stream(open_corpus(root, "train")) as stream:
        for number, batches in enumerate(stream):
            meter.add(sum(batch.tokens for batch in batches))
            if number % 50 == 0 and meter.look() > seconds:
                break
        print(meter.tell())


def run(words: list[str]) -> Case:
    """Start one measurement; ``words`` end with what it is called."""
    *command, name = words
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Case(name, None, lines[-1])
    return Case(name, json.loads(done.stdout.strip().splitlines()[-1]) if done.stdout.strip() else None)


def run_peer(name: str, python: str | None, folder: Path, seconds: float, skip: int = 0) -> Case:
    """Make the peer's copy of the corpus, then measure it."""
    if python is None:
        return Case(name, None, "no --peers PYTHON given")
    words = [python, str(PEERS_SCRIPT)]
    made = run([*words, "make", name, str(folder), "0", name])
    if made.absent:
        return made
    more = [str(skip)] if skip else []
    return run([*words, "read", name, str(folder), str(seconds), *more, name])


def show(cases: list[Case]) -> None:
    """Print the table; the first row is ours."""
    table = Table("loader", "M tokens/CPU-s", "ours / it", "goal", "M tokens/s", "first batch s", "added MB")
    ours = cases[0].result
    for case in cases:
        if case.result is None:
            table.add_row(case.name, f"not measured: {case.absent}")
            continue
        found = case.result
        ratio = ours["per_cpu_second"] / found["per_cpu_second"] if ours else float("nan")
        goal = f">= {GOALS[case.name]}" if case.name in GOALS else f">= {GOAL_RATE / 1e6:.0f} M/CPU-s"
        anonymous, file = found["anonymous_bytes"] / 1e6, found["file_bytes"] / 1e6
        table.add_row(
            case.name,
            f"{found['per_cpu_second'] / 1e6:.2f}",
            f"{ratio:.1f}",
            goal,
            f"{found['per_second'] / 1e6:.2f}",
            f"{found['first_seconds']:.3f}",
            f"{anonymous + file:.0f} ({anonymous:.0f} + {file:.0f} mapped)",
        )
    console = Console(width=120)
    console.print(table)
    console.print(
        f"Added memory: anonymous + pages of mapped files; goal of ours {GOAL_MEMORY / 1e6:.0f} MB."
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--peers", metavar="PYTHON", help="interpreter that has litdata and mosaicml-streaming"
    )
    parser.add_argument("--documents", type=int, default=1_250_000)
    parser.add_argument("--seconds", type=float, default=30, help="of reading, each")
    parser.add_argument("--folder", type=Path, help="kept, and used again; default: a temporary one")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure all and print one table."""
    options = parse()
    if options.ours:
        read_ours(options.ours, options.seconds)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        root = make_corpus(folder, options.documents)
        ours = [sys.executable, "-m", "tests.benchmarks.loader", "--ours", str(root)]
        cases = [run([*ours, "--seconds", str(options.seconds), "ours, shuffled and packed"])]
        cases += [
            run_peer(name, python, folder, options.seconds)
            for name, python in (
                ("litdata", options.peers),
                ("mosaicml-streaming", options.peers),
                ("datasets", sys.executable),
            )
        ]
    show(cases)


if __name__ == "__main__":
    main()
