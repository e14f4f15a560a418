"""How long a person waits for help, a dry run or the line that names a mistake.

    python -m tests.benchmarks.answer_time

Prints seconds of wall time, the median of several starts and the slowest. The goal is under one second each.
"""

import statistics
import subprocess
import sys
import time

STARTS = 7
COMMANDS = {
    "metier": (),
    "metier train --help": ("train", "--help"),
    "metier train ... --cfg job": ("train", "experiment=medical_qlora_smol", "--cfg", "job"),
    "dry run of 64 GPUs": ("train", "experiment=llama3_70b_full_zero3", "dry_run=true"),
    "a misspelt key": ("train", "experiment=tiny_smoke", "optimizer.learning_rat=1"),
    "a misspelt experiment": ("train", "experiment=tiny_smok"),
    "a batch that cannot be cut": ("train", "experiment=tiny_smoke", "batch.micro_batch_size=3"),
}


def time_start(words: tuple[str, ...]) -> float:
    """Give the seconds of one start."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "launcher", *words], capture_output=True, check=False)
    return time.perf_counter() - started


def main() -> None:
    """Print one table."""
    print(f"{'command':<30}{'median s':>10}{'slowest s':>11}")
    for name, words in COMMANDS.items():
        time_start(words)  # the first start reads the files from the disk
        seconds = [time_start(words) for _ in range(STARTS)]
        print(f"{name:<30}{statistics.median(seconds):>10.2f}{max(seconds):>11.2f}")


if __name__ == "__main__":
    main()
