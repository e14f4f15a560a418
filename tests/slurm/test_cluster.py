"""The test cluster itself: what the tests of faults rely on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import REPOSITORY, Cluster, supervisor_pid
from tests.slurm.conftest import Order
from tests.slurm.jobs import (
    clear,
    drained_nodes,
    find_job,
    job_nodes,
    node_states,
    strays,
    submit,
    wait_for_accounts,
    wait_for_state,
    wait_until_ended,
)
from tests.slurm.lifetime import down, find, new_root, up
from tests.slurm.linux import all_pids, variables_of, wait_for, words_of
from tests.slurm.settings import Settings


def processes_of(root: Path) -> list[int]:
    """Find every process of this machine that belongs to a cluster."""
    return [
        pid
        for pid in all_pids()
        if any(str(root) in word for word in words_of(pid))
        or str(root) in variables_of(pid).get("SLURM_CONF", "")
    ]


def asleep(cluster: Cluster, *words: str) -> int:
    """Submit a job that sleeps on its nodes, and wait until it does."""
    job = submit(cluster, "--requeue", *words, "--wrap", "srun sleep 300")
    found = wait_for_state(cluster, job, "RUNNING", seconds=30)
    nodes = job_nodes(cluster, found)
    wait_for(lambda: sleepers(cluster) == sorted(nodes), 30, "a sleeper on every node", pause=0.1)
    return job


def sleepers(cluster: Cluster) -> list[str]:
    return sorted(process.host for process in cluster.processes() if process.words[0].endswith("sleep"))


def test_every_node_is_a_host_with_a_name_an_address_and_a_disk_of_its_own(cluster: Cluster) -> None:
    script = 'hostname; hostname -i; echo $HOSTNAME > "$0/local/name"; ls /dev/shm | wc -l'
    said = cluster.run("srun", "-N4", "--label", "bash", "-c", script, str(cluster.root)).stdout
    lines = sorted(line.split(": ")[1] for line in said.splitlines())
    addresses = [cluster.settings.address(node) for node in cluster.nodes]
    assert lines == sorted([*cluster.nodes, *addresses, *["0"] * 4])
    assert [(cluster.disk(node) / "name").read_text().strip() for node in cluster.nodes] == list(
        cluster.nodes
    )


def test_a_job_sees_the_repository_and_the_devices_it_asked_for(cluster: Cluster) -> None:
    words = ["-c", "import os, training; print(training.__path__[0], os.environ['CUDA_VISIBLE_DEVICES'])"]
    said = cluster.run("srun", "-N1", "--gres=gpu:2", sys.executable, *words, cwd=REPOSITORY).stdout.split()
    assert said == [str(REPOSITORY / "training"), "0,1"]


def test_a_job_of_a_node_that_lost_its_power_runs_again_on_another_and_sacct_tells(cluster: Cluster) -> None:
    job = asleep(cluster, "-N2")
    victim = job_nodes(cluster, find_job(cluster, job))[1]
    cluster.power_off(victim)
    again = wait_for_state(cluster, job, "RUNNING", restarts=1, seconds=60)
    assert victim not in job_nodes(cluster, again)
    assert node_states(cluster)[victim].startswith("down")
    wait_for_accounts(cluster, job, "NODE_FAIL", "RUNNING")
    cluster.boot(victim)
    clear(cluster)
    assert strays(cluster) == []
    assert drained_nodes(cluster) == []


def test_a_cut_node_lives_on_unreachable_until_it_is_healed(cluster: Cluster) -> None:
    def reaches(host: str) -> bool:
        program = "import socket; socket.create_connection(('node2', 6818), 1)"
        return cluster.run(sys.executable, "-c", program, on=host, check=False).returncode == 0

    assert reaches("node1")
    cluster.cut("node2")
    assert not reaches("node1")
    assert not reaches("login")
    assert cluster.run("hostname", on="node2").stdout == "node2\n"
    cluster.heal("node2")
    wait_for(lambda: reaches("node1"), 20, "the way to node2", pause=0.1)


def test_the_controller_comes_back_and_knows_the_job_that_ran_meanwhile(cluster: Cluster) -> None:
    job = asleep(cluster, "-N1")
    cluster.stop_controller()
    assert find_job(cluster, job) is None
    assert len(sleepers(cluster)) == 1
    cluster.start_controller()
    assert wait_for_state(cluster, job, "RUNNING", seconds=60).restarts == 0


def test_a_higher_partition_takes_the_nodes_of_a_lower_one_which_gets_them_back(cluster: Cluster) -> None:
    low = submit(cluster, "-p", "abrupt", "-N4", "--exclusive", "--requeue", "--wrap", "srun sleep 300")
    wait_for_state(cluster, low, "RUNNING", seconds=30)
    high = submit(cluster, "-p", "high", "-N4", "--exclusive", "--wrap", "srun true")
    wait_until_ended(cluster, high, seconds=60)
    assert wait_for_state(cluster, low, "RUNNING", restarts=1, seconds=60).restarts == 1


def test_where_the_site_lets_no_job_requeue_a_request_is_refused(cluster: Cluster) -> None:
    job = submit(cluster, "-p", "norequeue", "--requeue", "--wrap", "sleep 300")
    wait_for_state(cluster, job, "RUNNING", seconds=30)
    refused = cluster.run("scontrol", "requeue", str(job), check=False)
    assert refused.returncode == 1
    assert "disabled" in refused.stderr


def test_two_clusters_side_by_side_know_nothing_of_each_other(cluster: Cluster, order: Order) -> None:
    other = order(nodes=2)
    job = submit(other, "-N2", "--wrap", "srun sleep 300")
    wait_for_state(other, job, "RUNNING", seconds=30)
    assert set(node_states(cluster).values()) == {"idle"}
    assert len(node_states(other)) == 2
    other.power_off("node1")
    assert cluster.run("srun", "-w", "node1", "hostname").stdout == "node1\n"


@pytest.mark.parametrize("namespaces", [True, False])
def test_down_leaves_no_process(namespaces: bool) -> None:
    root = new_root()
    try:
        cluster = up(Settings(root=root, nodes=2, namespaces=namespaces))
        asleep(cluster, "-N2")
        assert len(processes_of(root)) > 6
    finally:
        down(root)
    assert processes_of(root) == []
    assert supervisor_pid(root) is None
    shutil.rmtree(root)


def test_without_namespaces_a_crash_takes_one_node_alone(order: Order) -> None:
    cluster = order(nodes=2, namespaces=False)
    asleep(cluster, "-w", "node1")
    submit(cluster, "-w", "node2", "--wrap", "srun sleep 300")
    wait_for(lambda: sleepers(cluster) == ["node1", "node2"], 30, "two sleepers", pause=0.1)
    cluster.crash("node1")
    assert sleepers(cluster) == ["node2"]
    assert cluster.run("srun", "-w", "node2", "hostname").returncode == 0


def test_a_cluster_ends_with_the_process_that_started_it() -> None:
    program = (
        "import time; from tests.slurm.lifetime import *\n"
        "cluster = up(Settings(root=new_root(), nodes=1), is_owned=True)\n"
        "print(cluster.root, flush=True); time.sleep(300)"
    )
    words = [sys.executable, "-c", program]
    owner = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    root = Path(owner.stdout.readline().strip())
    assert find(root).nodes == ("node1",)
    owner.kill()
    owner.communicate()
    wait_for(lambda: not processes_of(root), 20, "the end of the cluster", pause=0.1)
    shutil.rmtree(root)


def test_an_ordinary_user_may_have_a_cluster_of_namespaced_hosts() -> None:
    if os.geteuid() == 0 and not os.access(REPOSITORY, os.X_OK):
        pytest.skip("the repository cannot be read by others")
    program = (
        "from tests.slurm.lifetime import *\n"
        "with started(Settings(root=new_root(), nodes=2, gpus=1)) as cluster:\n"
        "    print(cluster.run('srun', '-N2', 'bash', '-c', 'id -u; hostname').stdout)\n"
    )
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*user, python, "-c", program],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    uid = "65534" if os.geteuid() == 0 else str(os.geteuid())
    assert sorted(done.stdout.split()) == sorted([uid, uid, "node1", "node2"]), done.stderr
