"""Tensor parallelism as a user meets it: stopped, gone on with, measured, exported."""

import signal
from pathlib import Path

import pytest

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from tests.end_to_end.runs import journal, kinds, link_prepared, start, succeed
from tests.end_to_end.test_interrupted import wait_for_step
from tests.end_to_end.test_strategies import COMMON, STEPS, plain_losses


def test_a_run_in_teams_that_is_stopped_goes_on_has_the_same_loss_curve_and_is_exported(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = link_prepared(prepared, tmp_path / "work")
    monkeypatch.chdir(folder)
    expected = plain_losses(compose_run(COMMON, ConfigTree.open(None)).config)
    teams = ["strategy.tensor_parallel_size=2", "cluster.processes_per_node=2", "name=teams"]
    measures = [
        "loop.evaluate_every_steps=8",
        "loop.held_out_documents=4",
        "loop.sample_documents=1",
        "evaluation.held_out_documents=3",
    ]
    command = ("train", *COMMON, *teams, *measures)
    process = start(folder, *command)
    wait_for_step(folder / "runs" / "teams", 4, process)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0, told

    succeed(folder, *command)

    lines = journal(folder / "runs" / "teams")
    assert [lines[step]["loss"] for step in range(1, STEPS + 1)] == pytest.approx(expected, rel=1e-4)
    assert {"stopped", "resumed", "finished"} <= set(kinds(folder / "runs" / "teams"))
    succeed(folder, "export", "name=teams")
    assert (folder / "runs" / "teams" / "model" / "model.safetensors").is_file()
