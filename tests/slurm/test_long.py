"""What takes minutes: real ends of wall time, and a soak of random faults. ``make test-slurm-long``."""

import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks.soak import numbers, state_of
from tests.end_to_end.runs import link_prepared, read_lines
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Order
from tests.slurm.jobs import drained_nodes, find_job, job_nodes, node_states, strays, submit, wait_until_ended
from tests.slurm.linux import wait_for
from tests.slurm.runs import Training

pytestmark = pytest.mark.slurm_long

FAULTS = int(os.environ.get("METIER_SOAK_FAULTS", "60"))
SLOW_STEPS = ("batch.global_batch_size=64", "schedule=constant", "loop.checkpoint_every_steps=5")
STEPS = 120
PATIENCE_SECONDS = 600


@pytest.fixture(scope="module")
def whole_long(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Train so many slow steps without a fault; give the run directory."""

    def train(cluster: Cluster, steps: int) -> Path:
        training = Training(cluster, link_prepared(prepared, tmp_path_factory.mktemp("long") / "work"))
        training.submit(*SLOW_STEPS, f"loop.max_steps={steps}")
        training.finish(PATIENCE_SECONDS + steps)
        return training.run

    return train


def assert_same(training: Training, whole: Path, last: int) -> None:
    wanted = [numbers(line) for line in read_lines(whole / "metrics.jsonl")]
    found = [numbers(line) for line in training.lines() if line["step"] <= last]
    # The end of a run by its settings alone measures the held-out loss.
    for line in (*wanted, *found):
        for name in [name for name in line if name.startswith("held_out")]:
            del line[name]
    assert found == wanted
    assert state_of(training.run, last) == state_of(whole, last)
    assert strays(training.cluster) == []
    assert drained_nodes(training.cluster) == []


@pytest.mark.parametrize("how", ["requeue", "chain"])
def test_a_run_five_times_as_long_as_its_jobs_goes_through_five_of_them_as_one_run_of_wandb(
    how: str, training: Training, whole_long: Callable[[Cluster, int], Path]
) -> None:
    words = ["cluster.slurm.time=1", "tracker=offline", f"loop.max_steps={STEPS}", *SLOW_STEPS]
    if how == "chain":
        words += ["cluster.slurm.requeue=false", "cluster.slurm.partition=norequeue"]
    training.submit(*words)
    training.finish(PATIENCE_SECONDS)
    starts = training.journal("started")
    assert len(starts) >= 5
    assert len({line["job"] for line in starts}) == (1 if how == "requeue" else len(starts))
    assert training.redone() == set()
    runs = {re.sub(r".*-", "", path.name) for path in training.run.rglob("offline-run-*") if path.is_dir()}
    assert len(runs) == 1
    assert_same(training, whole_long(training.cluster, STEPS), STEPS)


class Soak:
    """A training that suffers; each method does one thing to it."""

    def __init__(self, training: Training, chance: random.Random) -> None:
        self.training, self.chance, self.cluster = training, chance, training.cluster

    def _node(self) -> str:
        job = find_job(self.cluster, self.training.job())
        assert job is not None
        return self.chance.choice(job_nodes(self.cluster, job))

    def _rank(self, number: int) -> None:
        ranks = list(self.training.ranks().values())
        self.cluster.signal(number, self.chance.choice(ranks))

    def requeue(self) -> None:
        self.cluster.run("scontrol", "requeue", str(self.training.job()))

    def notice(self) -> None:
        self.cluster.run("scancel", "--batch", "--signal=USR1", str(self.training.job()))

    def preempt(self) -> None:
        words = (
            "-p",
            "high",
            f"-N{len(self.cluster.nodes)}",
            "--exclusive",
            "-o/dev/null",
            "--wrap",
            "srun true",
        )
        wait_until_ended(self.cluster, submit(self.cluster, *words), 120)

    def kill_rank(self) -> None:
        self._rank(signal.SIGKILL)

    def stop_rank(self) -> None:
        self._rank(signal.SIGSTOP)

    def power_off(self) -> None:
        node = self._node()
        self.cluster.power_off(node)
        wait_for(lambda: node_states(self.cluster)[node].startswith("down"), 60, f"{node} down", pause=0.5)
        self.cluster.boot(node)

    def cut_shortly(self) -> None:
        self._cut(5)

    def cut_for_long(self) -> None:
        self._cut(30)

    def _cut(self, seconds: float) -> None:
        node = self._node()
        self.cluster.cut(node)
        time.sleep(seconds)
        self.cluster.heal(node)

    def kill_slurmd(self) -> None:
        node = self._node()
        self.cluster.kill_slurmd(node)
        wait_for(lambda: node_states(self.cluster)[node].startswith("down"), 60, f"{node} down", pause=0.5)
        self.cluster.start_slurmd(node)

    def lose_controller(self) -> None:
        self.cluster.stop_controller()
        if self.chance.random() < 0.5:
            self._rank(signal.SIGKILL)
        time.sleep(self.chance.uniform(2, 20))
        self.cluster.start_controller()

    def damage_checkpoint(self) -> None:
        newest = sorted((self.training.run / "checkpoints").glob("step_*"))[-1]
        file = self.chance.choice(sorted(newest.glob("rank_*")))
        content = bytearray(file.read_bytes())
        content[self.chance.randrange(len(content))] ^= 1
        file.write_bytes(content)
        self.kill_rank()

    def faults(self) -> list[Callable[[], None]]:
        return [
            *(self.requeue, self.notice, self.preempt, self.kill_rank, self.stop_rank, self.power_off),
            *(self.cut_shortly, self.cut_for_long, self.kill_slurmd, self.lose_controller),
            self.damage_checkpoint,
        ]


def test_after_random_faults_numbers_weights_and_moments_are_those_of_a_run_that_met_none(
    order: Order, work: Path, whole_long: Callable[[Cluster, int], Path]
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    training = Training(order(nodes=4, accounting=True), work)
    soak = Soak(training, random.Random(seed))
    words = (*SLOW_STEPS, "loop.max_steps=1000000", "cluster.slurm.partition=abrupt")
    training.submit(*words, "cluster.slurm.spare_nodes=1", "cluster.watch.step_seconds=20")
    due: list[Callable[[], None]] = []
    for number in range(FAULTS):
        furthest = max((line["step"] for line in training.lines()), default=0)
        training.wait_for_step(furthest + soak.chance.randint(6, 20), PATIENCE_SECONDS)
        due = due or soak.chance.sample(soak.faults(), len(soak.faults()))
        fault = due.pop()
        print(f"fault {number + 1}: {fault.__name__} at step {training.lines()[-1]['step']}", flush=True)
        fault()
    furthest = max(line["step"] for line in training.lines())
    training.wait_for_step(furthest + 6, PATIENCE_SECONDS)
    job = training.job()
    training.cluster.run("scancel", str(job))
    wait_until_ended(training.cluster, job, PATIENCE_SECONDS)
    last = int(sorted((training.run / "checkpoints").glob("step_*"))[-1].name.removeprefix("step_"))
    assert_same(training, whole_long(training.cluster, last), last)
