"""Training on three hosts without a scheduler: each is started by hand, as its user would."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.runs import environment, journal, kinds, link_prepared, succeed
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Order
from tests.slurm.linux import wait_for
from tests.slurm.runs import Training

STEPS = 24
WORDS = (
    "experiment=tiny_smoke",
    "batch.global_batch_size=6",
    f"loop.max_steps={STEPS}",
    "loop.checkpoint_every_steps=8",
    # Else a host's cores are shared out among its processes, and sums differ in their bits.
    "cluster.threads_per_process=1",
)
HOSTS = (*WORDS, "cluster=torchrun", "cluster.nodes=3", "cluster.head_address=node1")


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[float, float]]:
    """Train with three processes on one machine; give what was learnt at each step."""
    folder = link_prepared(prepared, tmp_path_factory.mktemp("alone"))
    succeed(folder, "train", *WORDS, "cluster.processes_per_node=3")
    return learnt(folder / "runs/tiny_smoke")


def learnt(run: Path) -> dict[int, tuple[float, float]]:
    return {step: (line["loss"], line["grad_norm"]) for step, line in journal(run).items()}


def start(cluster: Cluster, folder: Path, node: str, *words: str) -> subprocess.Popen[str]:
    return cluster.start(
        *(sys.executable, "-m", "launcher", "train", *words),
        on=node,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def endings(hosts: dict[str, subprocess.Popen[str]]) -> dict[str, tuple[int, str]]:
    """Wait for every host's launcher; give its exit code and its last line."""
    said = {node: host.communicate(timeout=120)[0] for node, host in hosts.items()}
    return {node: (hosts[node].returncode, (text.splitlines() or [""])[-1]) for node, text in said.items()}


def wait_for_steps(run: Path, steps: int, hosts: dict[str, subprocess.Popen[str]]) -> None:
    def done() -> bool:
        ended = {node: host.communicate()[0] for node, host in hosts.items() if host.poll() is not None}
        assert not ended, f"ended too early: {ended}"
        metrics = run / "metrics.jsonl"
        return metrics.exists() and metrics.read_bytes().count(b"\n") >= steps

    wait_for(done, 120, f"{steps} steps", pause=0.02)


def test_three_hosts_learn_the_same_bits_as_one_and_a_lost_host_costs_the_steps_since_the_last_checkpoint(
    order: Order, prepared: Path, undisturbed: dict[int, tuple[float, float]], tmp_path: Path
) -> None:
    cluster = order(nodes=3)
    folder = link_prepared(prepared, tmp_path / "shared")
    run = folder / "runs/tiny_smoke"

    def start_all() -> dict[str, subprocess.Popen[str]]:
        # The head knows itself by its address; it comes last, and the others wait for it.
        numbers = {"node2": ["--node-rank=1"], "node3": ["--node-rank", "2"], "node1": []}
        return {node: start(cluster, folder, node, *HOSTS, *number) for node, number in numbers.items()}

    hosts = start_all()
    wait_for_steps(run, 10, hosts)
    cluster.crash("node3")
    hosts.pop("node3").communicate(timeout=60)
    for node, (code, line) in endings(hosts).items():
        assert code == 1, node
        assert "the same command on every host goes on from the last checkpoint" in line, node

    cluster.boot("node3")
    finished = (0, f"metier train: finished after step {STEPS}; {run}")
    assert endings(start_all()) == dict.fromkeys(("node1", "node2", "node3"), finished)
    assert learnt(run) == undisturbed
    assert "resumed" in kinds(run)


def test_the_same_run_as_a_job_of_slurm_over_three_nodes_learns_the_same_bits(
    order: Order, prepared: Path, undisturbed: dict[int, tuple[float, float]], tmp_path: Path
) -> None:
    training = Training(order(nodes=3), link_prepared(prepared, tmp_path / "shared"))
    preflight = "cluster.preflight.mode=off"
    said = training.type("train", *WORDS, "cluster=slurm", "cluster.nodes=3", preflight)
    assert said.returncode == 0, said.stderr
    training.finish()
    assert learnt(training.run) == undisturbed


def test_hosts_that_number_themselves_go_on_by_themselves_when_a_rank_is_killed(
    order: Order, prepared: Path, undisturbed: dict[int, tuple[float, float]], tmp_path: Path
) -> None:
    cluster = order(nodes=3)
    folder = link_prepared(prepared, tmp_path / "shared")
    run = folder / "runs/tiny_smoke"
    words = (*HOSTS, "cluster.rendezvous=c10d", "cluster.elastic_restarts=1")
    hosts = {node: start(cluster, folder, node, *words) for node in cluster.nodes}
    wait_for_steps(run, 10, hosts)
    (victim,) = (
        process
        for process in cluster.processes("node2")
        if "training.worker" in process.words and "torch.distributed.run" not in process.words
    )
    cluster.signal(signal.SIGKILL, victim)

    finished = (0, f"metier train: finished after step {STEPS}; {run}")
    assert endings(hosts) == dict.fromkeys(cluster.nodes, finished)
    assert learnt(run) == undisturbed
    assert kinds(run).count("resumed") == 1
    assert len(list((run / "incarnations").glob("*.json"))) == 2
