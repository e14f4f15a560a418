"""`metier scale` and `metier drill` under a real Slurm."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.runs import environment, read_lines
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import drained_nodes, strays

SMALL = (
    "cluster=slurm",
    "cluster.slurm.time=5",
    "cluster.preflight.mode=off",
    "cluster.threads_per_process=1",
)


def metier(cluster: Cluster, folder: Path, *words: str) -> tuple[int, str]:
    done = cluster.run(
        sys.executable, "-m", "launcher", *words, cwd=folder, env=environment(), check=False, seconds=300
    )
    return done.returncode, done.stdout + done.stderr


def assert_those_of_the_runs(row: dict[str, Any], runs: Path, name: str) -> None:
    """Compute a line of the table anew from its run's own steps, but for the two of the warm-up."""
    lines = read_lines(runs / f"{name}.scale-strong-n{row['size']}-r1/metrics.jsonl")[2:]
    rate = sum(line["tokens"] for line in lines) / sum(line["step_seconds"] for line in lines)
    assert row["tokens_per_second"]["median"] == pytest.approx(rate)
    assert row["tokens_per_second_per_device"] == pytest.approx(rate / row["devices"])
    assert row["device_hours_per_billion_tokens"] == pytest.approx(row["devices"] / rate * 1e9 / 3600)
    assert row["memory_peak_bytes"] == max(line["memory_peak_bytes"] for line in lines)


def test_scale_measures_the_sizes_that_there_are_and_says_of_the_others_why_they_failed(
    cluster: Cluster, work: Path
) -> None:
    short_of_memory = "if [ $SLURM_JOB_NUM_NODES = 3 ]; then ulimit -v 1500000; fi"
    words = (
        *("experiment=tiny_smoke", *SMALL, "cluster.slurm.array_limit=1", "batch.global_batch_size=24"),
        *("nodes=1,2,3,4,8", "steps=4", "warmup=2", f'cluster.environment.setup=["{short_of_memory}"]'),
    )
    code, said = metier(cluster, work, "scale", *words, "--wait")

    runs = work / "runs"
    table = json.loads((runs / "tiny_smoke.scale/scale.json").read_text())["tables"][0]
    assert code == 1, said
    assert {row["size"]: row["state"] for row in table["rows"]} == {
        1: "measured", 2: "measured", 3: "failed", 4: "measured", 8: "failed",
    }, said  # fmt: skip
    assert "nodes=3  failed: MemoryError; see `metier why tiny_smoke.scale-strong-n3-r1`" in said
    assert "nodes=8  failed: cluster.nodes=8, but partition main has 4 nodes" in said
    measured = [row for row in table["rows"] if row["state"] == "measured"]
    for row in measured:
        assert_those_of_the_runs(row, runs, "tiny_smoke")
    first, *_, last = (row["tokens_per_second"]["median"] for row in measured)
    assert measured[-1]["efficiency"]["median"] == pytest.approx(last / first / 4)
    assert not drained_nodes(cluster)


def test_hosts_without_a_scheduler_go_through_the_sizes_together_and_the_first_makes_the_table(
    cluster: Cluster, work: Path
) -> None:
    hosts = (
        *("scale", "experiment=tiny_smoke", "cluster=torchrun", "cluster.head_address=node1", "nodes=2,3"),
        *("batch.global_batch_size=6", "cluster.threads_per_process=1", "steps=4", "warmup=2"),
    )
    started = [
        cluster.start(
            *(sys.executable, "-m", "launcher", *hosts, *number),
            on=node,
            cwd=work,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for node, number in {"node2": ["--node-rank=1"], "node3": ["--node-rank=2"], "node1": []}.items()
    ]
    second, third, head = (host.communicate(timeout=150)[0] for host in started)

    assert [host.returncode for host in started] == [0, 0, 0], head
    rows = json.loads((work / "runs/tiny_smoke.scale/scale.json").read_text())["tables"][0]["rows"]
    assert [(row["size"], row["devices"], row["state"]) for row in rows] == [
        (2, 2, "measured"),
        (3, 3, "measured"),
    ], head
    for row in rows:
        assert_those_of_the_runs(row, work / "runs", "tiny_smoke")
    trained = [text.count("metier train: finished after step 6") for text in (head, second, third)]
    assert trained == [2, 2, 1]
    assert not (work / "runs/tiny_smoke.scale/turn.json").exists()


def test_a_drill_takes_a_job_away_and_finds_the_run_unharmed(cluster: Cluster, work: Path) -> None:
    code, said = metier(cluster, work, "drill", *SMALL, "cluster.nodes=2", "kinds=requeue", "steps=40")

    assert code == 0, said
    assert "\nsafe: interrupted (requeue)" in said
    [case] = json.loads((work / "runs/drill/drill.json").read_text())["cases"]
    assert case["starts"] == 2
    assert case["unknown"] is None
    assert not strays(cluster)
    assert not drained_nodes(cluster)
