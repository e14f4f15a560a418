"""Preflights on the nodes of a real Slurm: the bad ones are named, and a run goes on without them."""

import signal
from pathlib import Path

from tests.slurm.cluster import Cluster, Process
from tests.slurm.conftest import Order
from tests.slurm.jobs import drained_nodes, strays, wait_until_ended
from tests.slurm.linux import wait_for
from tests.slurm.runs import Training
from training.layout import RunLayout
from training.verdict import EXIT_EXCLUDE, find_report

_DISK = "48M"
"""More than a preflight writes."""


def settings(cluster: Cluster) -> list[str]:
    return [
        f"cluster.local_path={cluster.root}/local",
        "cluster.preflight.min_free_bytes=1000000",
        "cluster.preflight.min_disk_mbps=1",
        "cluster.preflight.mode=exclude",
    ]


def fill(cluster: Cluster, node: str) -> None:
    """Leave no byte on a node's own disk."""
    cluster.run("dd", "if=/dev/zero", f"of={cluster.root}/local/filler", "bs=64k", on=node, check=False)


def test_a_slow_node_and_one_with_a_full_disk_are_named_by_their_names_in_slurm(
    order: Order, tmp_path: Path
) -> None:
    cluster = order(nodes=3, local_disk=_DISK)
    fill(cluster, "node3")
    cluster.slow("node2", 0.8)
    words = ["cluster=slurm", "cluster.nodes=3", "cluster.preflight.slow_factor=2", *settings(cluster)]
    done = Training(cluster, tmp_path).type("preflight", *words)
    report = find_report(RunLayout(tmp_path / "runs" / "preflight").preflight)
    assert report is not None, done.stdout + done.stderr
    assert report.verdict.nodes == ("node2", "node3"), done.stdout + done.stderr
    assert done.returncode == EXIT_EXCLUDE
    assert "node2: matrix product " in done.stderr
    assert "node3: local disk 0.0 MB free" in done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [(row[0], row[-1]) for row in rows[1:4]] == [
        ("node1", "ok"),
        ("node2", "excluded"),
        ("node3", "excluded"),
    ]
    assert strays(cluster) == []


def test_a_run_goes_on_without_a_node_whose_disk_is_full(order: Order, work: Path) -> None:
    training = Training(order(nodes=3, local_disk=_DISK), work)
    fill(training.cluster, "node2")
    # A network of processes that share two cores is no measure of a node.
    training.submit(*settings(training.cluster), "cluster.preflight.slow_factor=100", "loop.max_steps=8")
    training.finish()
    assert [line["bad"] for line in training.journal("preflight")] == [["node2"]]
    assert {node for line in training.journal("started") for node in line["nodes"]} == {"node1", "node3"}
    assert drained_nodes(training.cluster) == []


def test_a_run_whose_network_interface_no_node_has_does_not_start(order: Order, work: Path) -> None:
    training = Training(order(nodes=3), work)
    job = training.submit(*settings(training.cluster), "cluster.network.interface=eth9")
    ended = wait_until_ended(training.cluster, job)
    assert ended.state == "FAILED", training.tell()
    (end,) = training.ends()
    assert end["reason"].startswith(
        "preflight: node1: network interface eth9 is missing (cluster.network.interface)"
    )
    assert training.journal("started") == []
    assert "A node has no such network interface" in training.type("why", training.name).stdout


def test_a_run_goes_on_without_the_node_whose_lead_of_the_preflight_hangs(order: Order, work: Path) -> None:
    training = Training(order(nodes=3), work)
    cluster = training.cluster
    # Too slow for two busy cores is no matter here.
    lenient = ("cluster.preflight.slow_factor=100", "cluster.preflight.budget_seconds=5", "loop.max_steps=8")
    training.submit(*settings(cluster), *lenient)

    def find_lead() -> Process | None:
        looks = (
            each for each in cluster.processes() if "training.preflight" in each.words and each.rank == 0
        )
        return next((each for each in looks if Path(each.words[0]).name.startswith("python")), None)

    lead = wait_for(find_lead, 60, "the lead of a preflight", pause=0.05)
    wait_for((training.run / "preflight.json").exists, 60, "what the lead says first", pause=0.01)
    cluster.signal(signal.SIGSTOP, lead)
    training.finish()
    found = training.journal("preflight")
    assert [line["bad"] for line in found] == [[lead.host]], training.tell()
    assert found[0]["reason"] == f"{lead.host}: leads the preflight and did not answer for 40 s"
    assert all(lead.host not in line["nodes"] for line in training.journal("started"))
    assert strays(cluster) == []
    assert drained_nodes(cluster) == []
