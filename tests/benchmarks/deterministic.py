"""What `deterministic=true` costs on this device: seconds of a step with and without, interleaved.

    python -m tests.benchmarks.deterministic [--rounds 3] [--steps 20]

A small Llama from random weights through our engine, one process, no sharding. On a CPU, where torch's
algorithms are deterministic anyway, the ratio says only that nothing is lost; on a GPU it is the price.
"""

import argparse
import os
import statistics
import time
from typing import Any

import torch

from tests.ranks.spawn import free_port
from tests.ranks.training_case import SAMPLES_PER_STEP, make_batch, make_config, make_model, make_samples
from training.batch import plan_batch
from training.collectives import join, leave
from training.engine.seeds import make_deterministic
from training.ranks import Ranks


def time_steps(engine: Any, batches: list[Any], steps: int) -> float:
    """Give the median seconds of a step."""
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        engine.train_step(batches, learning_rate=1e-3, samples_seen=0, accept=lambda _: True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    """Print the two medians of each round, and the ratio of all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    from training.engine.deepspeed_engine import DeepSpeedEngine, Place

    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    config = make_config(**{"strategy.zero_stage": 0})
    ranks = Ranks(rank=0, local_rank=0, world_size=1)
    # Before any work on the GPU: cuBLAS reads its workspace's size once. It changes no algorithm by itself.
    make_deterministic()
    join(ranks, device=device, timeout_seconds=60)
    place = Place(ranks=ranks, device=device, plan=plan_batch(config.batch, 1))
    engine = DeepSpeedEngine(make_model(adapter=False).to(device), config, place, sources=1)
    samples = make_samples(1)
    batches = [make_batch([samples[n]], [0]) for n in range(SAMPLES_PER_STEP)]
    found: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(asked.rounds):
        for wanted in (False, True):
            torch.use_deterministic_algorithms(wanted)
            found[wanted].append(time_steps(engine, batches, asked.steps))
            print(f"deterministic={str(wanted).lower():5}  {found[wanted][-1] * 1000:8.2f} ms per step")
    ratio = statistics.median(found[True]) / statistics.median(found[False])
    print(f"deterministic over not, medians of {asked.rounds} rounds: {ratio:.3f}")
    engine.close()
    leave()


if __name__ == "__main__":
    main()
