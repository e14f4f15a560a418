"""What a user does on a login node: ask what there is, write it down, be refused before a job waits."""

import json
import subprocess
import sys
from pathlib import Path

import yaml

from tests.end_to_end.runs import environment
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Order

METIER = (sys.executable, "-m", "launcher")


def ask(cluster: Cluster, folder: Path, *requests: dict[str, object]) -> list[str]:
    folder.mkdir(exist_ok=True)
    process = cluster.start(
        *(sys.executable, "-m", "tests.slurm.asked_on_login"),
        env={**environment(), "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said, complaints = process.communicate(json.dumps(requests), timeout=120)
    assert process.returncode == 0, complaints
    answers: list[str] = json.loads(said)
    return answers


def test_init_writes_what_the_cluster_is_and_a_run_can_be_composed_with_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    words = (*METIER, "cluster", "init", "mine", "--partition", "short", "--to", "mine of course")
    said = cluster.run(*words, cwd=tmp_path, env=environment()).stdout
    path = tmp_path / "mine of course/cluster/mine.yaml"
    assert f"written  {path.relative_to(tmp_path)}" in said
    assert "partition short: 4 x 2 GPUs" in said
    assert "up to 00:10:00 and 4 nodes a job" in said
    assert "unknown  which network" in said
    written = yaml.safe_load(path.read_text())
    assert written["gpus_per_node"] == 2
    assert written["slurm"]["time"] == "00:10:00"
    assert written["slurm"]["requeue"] is True

    train = (*METIER, "train", "--config-dir", "mine of course", "cluster=mine", "experiment=tiny_smoke")
    shown = cluster.run(*train, "--cfg", "job", cwd=tmp_path, env=environment()).stdout
    composed = yaml.safe_load(shown)["cluster"]
    assert (composed["kind"], composed["slurm"]["partition"]) == ("slurm", "short")

    again = cluster.run(*words, cwd=tmp_path, env=environment(), check=False)
    assert again.returncode == 2
    assert "mine.yaml exists already; remove it, or choose another name" in again.stderr
    assert len(again.stderr.splitlines()) == 1


def test_show_lists_the_partitions_with_what_they_give(cluster: Cluster, tmp_path: Path) -> None:
    said = cluster.run(*METIER, "cluster", "show", cwd=tmp_path, env=environment()).stdout
    lines = {line.split()[0]: line for line in said.splitlines() if line}
    assert {"main*", "short", "low", "high"} <= set(lines)
    assert "00:10:00" in lines["short"]
    assert "4 of 4" in lines["short"]
    assert "requeue, 5 s grace" in lines["low"]


def test_a_request_that_the_cluster_cannot_meet_is_one_line_and_one_that_it_can_is_read_by_slurm(
    cluster: Cluster, tmp_path: Path
) -> None:
    slurm = "cluster__slurm__"
    refused: list[tuple[dict[str, object], str]] = [
        ({f"{slurm}partition": "mian"}, "partition=mian does not exist; did you mean main?"),
        ({f"{slurm}partition": "short"}, "is more than partition short gives, 00:10:00"),
        ({"cluster__nodes": 5}, "cluster.nodes=5, but partition main has 4 nodes"),
        ({"cluster__gpus_per_node": 3}, "cluster.gpus_per_node=3: no node fits in partition main"),
        ({"cluster__gpus_per_node": 2, f"{slurm}gpu_type": "a100"}, "of type a100: no node fits"),
        ({f"{slurm}memory": "900G"}, "cluster.slurm.memory: 921600M a node: no node fits"),
        ({f"{slurm}constraint": "fast"}, "has the feature fast"),
        ({f"{slurm}reservation": "none"}, "cluster.slurm.reservation=none does not exist"),
        ({f"{slurm}account": "rooot"}, "cluster.slurm.account=rooot is not yours; did you mean root?"),
        ({f"{slurm}qos": "nix"}, "cluster.slurm.qos=nix is not yours; known here: normal"),
        ({f"{slurm}exclude": ["node[1-4]"]}, "cluster.slurm.exclude leaves 0 nodes"),
    ]
    granted: list[dict[str, object]] = [
        {},
        {"cluster__nodes": 3, f"{slurm}spare_nodes": 1, f"{slurm}comment": "it is # 1"},
        {"cluster__gpus_per_node": 2, f"{slurm}exclusive": True, f"{slurm}exclude": ["node[1-2]", "node4"]},
        {f"{slurm}account": "root", f"{slurm}qos": "normal"},
    ]
    answers = ask(cluster, tmp_path / "it's a place #1", *(changes for changes, _ in refused), *granted)
    for (_, words), said in zip(refused, answers, strict=False):
        assert said.startswith("ClusterError: "), said
        assert words in said
        assert "\n" not in said
    starts = answers[len(refused) :]
    assert [said for said in starts if " to start at " not in said] == []
    assert "on nodes node[1-4]" in starts[1]
    assert "on nodes node3 in partition main" in starts[2]


def test_nodes_that_are_away_are_told_and_do_not_refuse_the_run(order: Order, tmp_path: Path) -> None:
    cluster = order(nodes=2)
    cluster.run("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    (said,) = ask(cluster, tmp_path, {"cluster__nodes": 2})
    assert "1 of the 2 nodes of partition main that fit are down or drained" in said
    assert "Error" not in said


def test_each_node_finds_the_interface_that_leads_to_the_head_node_also_the_head_itself(
    cluster: Cluster, tmp_path: Path
) -> None:
    code = "from training.interface import find_interface; print(find_interface('node1'))"
    words = ("srun", "-N2", "--nodelist=node1,node2", sys.executable, "-c", code)
    assert cluster.run(*words, cwd=tmp_path, env=environment()).stdout.split() == ["eth0", "eth0"]
