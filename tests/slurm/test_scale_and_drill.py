"""`metier scale` and `metier drill` under a real Slurm."""

import json
import sys
from pathlib import Path

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


def test_scale_over_nodes_measures_those_that_there_are_and_names_the_size_that_failed(
    cluster: Cluster, work: Path
) -> None:
    small = ("experiment=tiny_smoke", *SMALL, "cluster.slurm.array_limit=1", "batch.global_batch_size=16")
    code, said = metier(cluster, work, "scale", *small, "nodes=1,2,8", "steps=4", "warmup=2", "--wait")

    table = json.loads((work / "runs/tiny_smoke.scale/scale.json").read_text())["tables"][0]
    one, two, eight = table["rows"]
    assert code == 1, said
    assert [row["state"] for row in table["rows"]] == ["measured", "measured", "failed"], said
    assert "nodes=8  failed: cluster.nodes=8, but partition main has 4 nodes" in said
    for row in (one, two):
        lines = read_lines(work / f"runs/tiny_smoke.scale-strong-n{row['size']}-r1/metrics.jsonl")[2:]
        rate = sum(line["tokens"] for line in lines) / sum(line["step_seconds"] for line in lines)
        assert row["tokens_per_second"]["median"] == pytest.approx(rate)
    assert eight["tokens_per_second"] is None
    assert not drained_nodes(cluster)


def test_a_drill_takes_a_job_away_and_finds_the_run_unharmed(cluster: Cluster, work: Path) -> None:
    code, said = metier(cluster, work, "drill", *SMALL, "cluster.nodes=2", "kinds=requeue", "steps=40")

    assert code == 0, said
    assert said.splitlines()[-1].startswith("safe: interrupted (requeue)")
    [case] = json.loads((work / "runs/drill/drill.json").read_text())["cases"]
    assert case["starts"] == 2
    assert case["unknown"] is None
    assert not strays(cluster)
    assert not drained_nodes(cluster)
