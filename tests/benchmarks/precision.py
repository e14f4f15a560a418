"""What training the demo's model costs on this device in fp32 and bf16, with a 16- and a 4-bit base.

    metier prepare experiment=medical_qlora_smol
    python -m tests.benchmarks.precision [--busy 1]

With --busy, beside so many processes that never rest, as on shared cores.

Prints real tokens per second of one process (padding is never counted): the median of several passes
forward and backward over the demo's own rows.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from training.batch import plan_batch
from training.data.reading.loader import build_stream
from training.data.reading.reader import open_corpus
from training.model.load import build_model
from training.model.packed import PackedLanguageModel

PASSES = 4
CASES = (("fp32", "lora"), ("fp32", "qlora"), ("bf16", "lora"), ("bf16", "qlora"))


def time_case(precision: str, adapter: str, device: torch.device) -> float:
    """Give real tokens per second."""
    overrides = ["experiment=medical_qlora_smol", f"precision={precision}", f"adapter={adapter}"]
    overrides.append("cluster.processes_per_node=1")
    config = compose_run(overrides, ConfigTree.open(None)).config
    model = build_model(
        config.model,
        config.adapter,
        precision=precision,
        device=device,
        seed=config.seed,
        activation_checkpointing="none",
    )
    packed = PackedLanguageModel(model, sources=len(config.data.sources))
    stream = build_stream(
        open_corpus(config.data.path, "train", config.loader),
        plan_batch(config.batch, 1),
        config,
        rank=0,
        samples_seen=0,
    )
    rates = []
    with stream:
        for _ in range(PASSES + 1):
            batch = next(stream)[0].to(device)
            started = time.perf_counter()
            packed(batch)[0].backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            rates.append(batch.tokens / (time.perf_counter() - started))
    return statistics.median(rates[1:])


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep as many processes computing as asked for."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, default=0)
    with busy_processes(parser.parse_args().busy):
        print_table()


def print_table() -> None:
    """Measure and print every case."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    waiting = os.environ.get("OMP_WAIT_POLICY", "default")
    print(
        f"torch {torch.__version__}, {device.type}, {torch.get_num_threads()} threads, "
        f"OMP_WAIT_POLICY={waiting}"
    )
    print(f"{'precision':<12}{'base':<10}{'tokens/s':>10}{'relative':>10}")
    first = 0.0
    for precision, adapter in CASES:
        rate = time_case(precision, adapter, device)
        first = first or rate
        bits = "4 bits" if adapter == "qlora" else "16 bits"
        print(f"{precision:<12}{bits:<10}{rate:>10.0f}{rate / first:>10.2f}")


if __name__ == "__main__":
    main()
