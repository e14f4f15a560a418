"""What a token costs to train on: Métier beside HF Trainer, TRL, torchtune and bare loops, on one thread.

    python -m tests.benchmarks.speed [TABLE ...] [--peers PYTHON] [--rounds 3] [--folder FOLDER]

Without a table's name, all of them. Every variant is a process (or one per rank) of its own, started once. It
warms up, and then the variants of a table do their rounds in turn; the figure is the median of each one's
rounds. Tokens per CPU second: padding is never counted, and a shared machine's other work shows less. PYTHON
is the interpreter of an environment that has the peers.
"""

import argparse
import os
import tempfile
from pathlib import Path

from rich.console import Console

from tests.benchmarks.speed.measure import Contestant, measure
from tests.benchmarks.speed.ours import write_documents
from tests.benchmarks.speed.tables import TABLES, Table
from tests.ranks.spawn import free_port


def run_table(table: Table, peers: str | None, rounds: int, folder: Path) -> None:
    """Measure one table's contestants against each other and print it."""
    contestants = [Contestant.of(row, peers, folder) for row in table.rows]
    for contestant in contestants:
        if contestant.is_ours:
            write_documents(contestant.case)
    measure(contestants, rounds, free_port)
    Console(width=120).print(table.show(contestants))


def main() -> None:
    """Measure and print every table that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter that has transformers, trl, torchtune")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="kept, and used again; default: a temporary one")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in asked.tables or TABLES:
            run_table(TABLES[name], asked.peers, asked.rounds, folder)


if __name__ == "__main__":
    main()
