"""`metier preflight` as a user types it."""

import json
import os
from pathlib import Path

from tests.end_to_end.runs import metier


def test_a_preflight_needs_no_experiment_and_prints_a_line_per_node_and_a_verdict(tmp_path: Path) -> None:
    # Where tests share the cores, one process may be slower than the other.
    done = metier(tmp_path, "preflight", "cluster.processes_per_node=2", "cluster.preflight.slow_factor=100")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["node", "ranks", "product"]
    assert lines[1].split()[:2] == [os.uname().nodename, "2"]
    assert lines[2].startswith("all-reduce over 2 ranks: ")
    assert lines[-1].startswith(("verdict: ok", "verdict: warn"))
    folder = tmp_path / "runs" / "preflight"
    report = json.loads((folder / "preflight.json").read_text())
    assert report["nodes"] == [os.uname().nodename]
    assert [rank["rank"] for rank in report["facts"]["ranks"]] == [0, 1]
    assert not list(folder.glob(".preflight-*"))


def test_what_is_bad_is_told_in_a_line_each_and_by_the_exit_code(tmp_path: Path) -> None:
    done = metier(
        tmp_path,
        "preflight",
        "experiment=tiny_smoke",
        "cluster.preflight.min_free_bytes=1000000000000000000",
        "cluster.preflight.mode=stop",
    )
    assert done.returncode == 4
    assert "metier preflight: " in done.stderr
    assert "at least 1,000,000,000.0 GB wanted; bad\n" in done.stderr
    assert not (tmp_path / "runs" / "tiny_smoke" / "run.json").exists()
    assert "verdict: stop" in done.stdout


def test_under_slurm_the_command_asks_for_nodes_as_the_run_would_but_for_minutes(tmp_path: Path) -> None:
    words = (
        "cluster=slurm",
        "cluster.nodes=4",
        "cluster.slurm.partition=gpu",
        "cluster.slurm.exclude=[bad7]",
    )
    done = metier(tmp_path, "preflight", *words, "dry_run=true")
    assert done.returncode == 0, done.stderr
    for word in ("--nodes=4", "--partition=gpu", "--exclude=bad7", "--time=6", "--kill-on-bad-exit=0"):
        assert f" {word} " in done.stdout
    for word in ("--output", "--signal", "--requeue", "--open-mode"):
        assert word not in done.stdout
    assert not (tmp_path / "runs").exists()
