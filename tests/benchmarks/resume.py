"""How soon training goes on a million documents deep, and whether it is the same training.

    python -m tests.benchmarks.resume [--peers PYTHON] [--documents 1250000] [--deep 1000000] [--batches 1000]

Uses the corpus of ``tests.benchmarks.loader`` (see there for --folder and PYTHON). Ours: from opening the
corpus in a new process to the first shuffled, packed batch; the batches that follow are compared, all of
them, with those of a stream that was never interrupted. Peers: from building the data set to the first 4,096
tokens after as many documents were passed over, in the way each offers for it.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.loader import ROWS, SEQUENCE_LENGTH, make_corpus, open_stream, run, run_peer
from training.data.order.plan import open_plan
from training.data.reading.loader import BatchStream
from training.data.reading.reader import open_corpus

GOAL_SECONDS = 0.3
MOST_PEER_SECONDS = 120


def digest(stream: BatchStream, steps: int) -> str:
    """Hash everything that the next steps give."""
    hasher = hashlib.blake2b()
    for batches in islice(stream, steps):
        for batch in batches:
            for tensor in (batch.input_ids, batch.labels, batch.position_ids):
                hasher.update(tensor.numpy().tobytes())
            hasher.update(repr((batch.document_bounds, batch.source_ids)).encode())
    return hasher.hexdigest()


def measure_ours(root: Path, position: int, steps: int, passed: int) -> None:
    """Stream from ``position`` on, pass over some steps, and print one line of JSON."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    corpus = open_corpus(root, "train")
    with open_stream(corpus, samples_seen=position) as stream:
        first = next(stream)
        seconds = time.perf_counter() - started
        for _ in range(passed - 1):
            first = next(stream)
        result = {"first_seconds": seconds, "first": first[0].input_ids.sum().item()}
        print(json.dumps({**result, "digest": digest(stream, steps)}))


def main() -> None:
    """Measure all and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--documents", type=int, default=1_250_000)
    parser.add_argument("--deep", type=int, default=1_000_000, help="documents")
    parser.add_argument("--batches", type=int, default=1000, help="that are compared")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--ours", nargs=3, metavar=("ROOT", "POSITION", "PASSED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        root, position, passed = options.ours
        measure_ours(Path(root), int(position), options.batches, int(passed))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        root = make_corpus(folder, options.documents)
        samples = open_plan(open_corpus(root, "train"), SEQUENCE_LENGTH, "refuse").counts.rows
        deep = samples * options.deep // options.documents // ROWS * ROWS
        ours = [sys.executable, "-m", "tests.benchmarks.resume", "--batches", str(options.batches), "--ours"]
        resumed = run([*ours, str(root), str(deep), "1", "ours, shuffled and packed"])
        # Never interrupted: every step from the run's first on.
        whole = run([*ours, str(root), "0", str(deep // ROWS + 1), "uninterrupted"])
        peers = [
            run_peer(name, python, folder, MOST_PEER_SECONDS, skip=options.deep)
            for name, python in (
                ("litdata", options.peers),
                ("mosaicml-streaming", options.peers),
                ("datasets", sys.executable),
            )
        ]
    table = Table(
        "loader", f"first batch {options.deep:,} documents deep, s", "goal", "ours is so many times faster"
    )
    for case in (resumed, *peers):
        if case.result is None:
            table.add_row(case.name, f"not measured: {case.absent}")
            continue
        seconds = case.result["first_seconds"]
        faster = f"{seconds / resumed.result['first_seconds']:.0f}" if resumed.result else ""
        if not seconds:
            table.add_row(case.name, f"more than {MOST_PEER_SECONDS}")
        else:
            table.add_row(
                case.name, f"{seconds:.3f}", f"<= {GOAL_SECONDS}" if case is resumed else "", faster
            )
    console = Console(width=120)
    console.print(table)
    same = resumed.result and whole.result and resumed.result["digest"] == whole.result["digest"]
    word = "bit-identical to" if same else "NOT the same as"
    console.print(f"The next {options.batches:,} batches are {word} those of the uninterrupted stream.")


if __name__ == "__main__":
    main()
