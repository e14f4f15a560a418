"""From `metier train` to the first step on four nodes, beside a bare srun of the same worker.

``python -m tests.benchmarks.slurm_start [--rounds 3] [--nodes 4]``. What is ours is the difference: composing
and checking, the batch script, its decider. Both wait for the same imports and the same first step.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from launcher.compose import compose_run
from launcher.run_directory import freeze_run
from launcher.tree import ConfigTree
from tests.slurm.cluster import Cluster
from tests.slurm.lifetime import new_root, started
from tests.slurm.settings import Settings
from training.layout import RunLayout

_SECONDS = 180
_GOAL_SECONDS = 2.0


def main() -> int:
    """Run the rounds, alternately, and print both and their difference."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=4)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="metier-start-"))
    try:
        with started(Settings(root=new_root(), nodes=arguments.nodes)) as cluster:
            _metier(cluster, folder, "prepare", *_words(arguments.nodes, "prepared"))
            ours, bare = [], []
            for number in range(arguments.rounds + 1):
                bare.append(_bare(cluster, folder, arguments.nodes, f"bare{number}"))
                ours.append(_ours(cluster, folder, arguments.nodes, f"ours{number}"))
                print(
                    f"round {number}: metier train {ours[-1]:.2f} s, bare srun {bare[-1]:.2f} s", flush=True
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    # The first round fills the page cache.
    ours, bare = ours[1:], bare[1:]
    overhead = statistics.median(mine - theirs for mine, theirs in zip(ours, bare, strict=True))
    print(f"\nnodes {arguments.nodes}, one process on each, medians of {arguments.rounds} rounds")
    print(f"metier train to the first step   {statistics.median(ours):6.2f} s")
    print(f"bare srun to the first step      {statistics.median(bare):6.2f} s")
    print(f"overhead                         {overhead:6.2f} s   (goal: under {_GOAL_SECONDS:.0f} s)")
    return 0


def _words(nodes: int, name: str) -> list[str]:
    return [
        "experiment=tiny_smoke",
        f"name={name}",
        "cluster=slurm",
        f"cluster.nodes={nodes}",
        "cluster.preflight.mode=off",
        "cluster.slurm.time=00:10:00",
        f"batch.global_batch_size={nodes}",
        "loop.max_steps=2",
    ]


def _metier(cluster: Cluster, folder: Path, *words: str) -> None:
    cluster.run(sys.executable, "-m", "launcher", *words, cwd=folder)


def _ours(cluster: Cluster, folder: Path, nodes: int, name: str) -> float:
    began = time.time()
    _metier(cluster, folder, "train", *_words(nodes, name))
    return _first_step(folder / "runs" / name) - began


def _bare(cluster: Cluster, folder: Path, nodes: int, name: str) -> float:
    words = [
        *_words(nodes, name),
        f"run_root={folder / 'runs'}",
        f"data.path={folder / 'data/python_topics'}",
    ]
    here = Path.cwd()
    os.chdir(folder)
    try:
        config = compose_run(
            [word for word in words if not word.startswith("data.path")], ConfigTree(None)
        ).config
        layout = freeze_run(config)
    finally:
        os.chdir(here)
    began = time.time()
    process = cluster.start(
        "srun",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        "--export=ALL,MASTER_ADDR=node1,MASTER_PORT=23456,OMP_NUM_THREADS=1",
        sys.executable,
        "-m",
        "training.worker",
        str(layout.root),
        cwd=folder,
    )
    seconds = _first_step(layout.root) - began
    process.wait(_SECONDS)
    return seconds


def _first_step(root: Path) -> float:
    """Wait for the run's end, and give the time of its first step, seconds since 1970."""
    layout, deadline = RunLayout(root), time.monotonic() + _SECONDS
    while not layout.outcome.exists():
        if time.monotonic() > deadline:
            raise SystemExit(f"{root} did not end within {_SECONDS} s; see {layout.logs}")
        time.sleep(0.1)
    with layout.metrics.open(encoding="utf-8") as lines:
        return float(json.loads(next(lines))["time"])


if __name__ == "__main__":
    sys.exit(main())
