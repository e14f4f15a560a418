"""What `metier drill` compares, and what it says."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.__main__ import main
from launcher.drill.cases import Case, say_table, say_verdict
from launcher.drill.leftovers import find_abandoned, find_half_written, list_shared_memory
from launcher.drill.plan import plan_drill
from launcher.drill.trace import Trace, compare
from launcher.tree import ConfigTree
from training.layout import RunLayout

TREE = ConfigTree(None)


def trace(**more: Any) -> Trace:
    lines: list[Mapping[str, Any]] = [
        {
            "step": step,
            "loss": 5.0 - step / 10,
            "loss_by_source": {"topics": 5.0 - step / 10},
            "grad_norm": 1.0,
            "learning_rate": 0.1,
            "samples_seen": 4 * step,
            "tokens": 100,
            "targets": 99,
            "step_seconds": step / 7,  # differs from run to run, and is not compared
        }
        for step in (1, 2, 3)
    ]
    values: dict[str, Any] = {
        "state": "COMPLETED",
        "message": "",
        "lines": tuple(lines),
        "redone": 0,
        "starts": 2,
        "digests": {"position": "a", "layer/weight": "b", "layer/exp_avg": "c"},
        "trouble": None,
    }
    return Trace(**{**values, **more})


def changed(step: int, **more: object) -> tuple[Mapping[str, Any], ...]:
    return tuple({**line, **more} if line["step"] == step else line for line in trace().lines)


def case(**more: Any) -> Case:
    values: dict[str, Any] = {
        "kind": "kill",
        "struck": "SIGKILL to rank 1",
        "step": 2,
        "starts": 2,
        "redone": 1,
        "seconds": 9.0,
        "comparison": compare(trace(), trace()),
        "left": (),
        "unknown": None,
    }
    return Case(**{**values, **more})


def test_equal_runs_are_equal_however_long_they_took() -> None:
    slower = trace(lines=changed(2, step_seconds=99.0), starts=5, redone=7)
    assert compare(trace(), slower).differences == []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            trace(lines=changed(2, loss=4.800000000000001)),
            "loss of step 2 is 4.800000000000001 instead of 4.8",
        ),
        (trace(lines=changed(3, samples_seen=14)), "samples_seen of step 3 is 14 instead of 12"),
        (trace(lines=changed(1, targets=98)), "targets of step 1 is 98 instead of 99"),
        (trace(lines=trace().lines[:2]), "metrics.jsonl holds 2 steps, not each of 1 to 3 once"),
        (trace(lines=(*trace().lines[:2], *trace().lines[1:])), "metrics.jsonl holds 4 steps"),
        (
            trace(digests={**trace().digests, "layer/exp_avg": "x"}),
            "layer/exp_avg of the final checkpoint differ",
        ),
        (trace(digests={"position": "a"}), "layer/weight and 1 more of 3 of the final checkpoint differ"),
        (trace(state="FAILED", message="no room"), "it ended as FAILED (no room)"),
        (trace(state=""), "it ended as killed"),
        (trace(trouble="damaged"), "its final checkpoint cannot be read (damaged)"),
    ],
)
def test_whatever_differs_is_named_by_step_or_tensor(found: Trace, told: str) -> None:
    [difference, *_] = compare(trace(), found).differences
    assert difference.startswith(told)
    line = say_verdict([case(comparison=compare(trace(), found))])
    assert line.startswith("NOT safe: after kill")
    assert told in line
    assert "\n" not in line


def test_only_what_was_interrupted_continued_and_cleaned_up_proves_anything() -> None:
    assert say_verdict([case(), case(kind="notice")]).startswith("safe: interrupted (kill, notice)")
    assert "it could not be interrupted: no rank" in say_verdict([case(step=None, struck="no rank")])
    assert "one start did all of it; say steps=N" in say_verdict([case(), case(starts=1)])
    assert "process 12 was left behind" in say_verdict([case(left=("process 12",))])
    two = say_verdict([case(left=("process 12",)), case(kind="notice", left=("process 13",))])
    assert "(and 1 more interruptions)" in two


def test_table_and_verdict_say_what_could_not_be_looked_at() -> None:
    assert say_verdict([case()]).endswith("the undisturbed one")
    assert say_verdict([case(), case(unknown="no node was free")]).endswith("not be looked at everywhere")
    told = say_table([case(), case(unknown="no node was free"), case(left=("half-written x",))])
    assert [line.rpartition("equal")[2].strip() for line in told.splitlines()[1:]] == [
        "nothing",
        "not known: no node was free",
        "half-written x",
    ]


def test_half_written_files_of_a_run_are_found(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    for name in (".run.json.12.partial", "checkpoints/.staging_00000004_1/rank_00000.bin", "metrics.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert find_half_written(run) == [
        "half-written .run.json.12.partial",
        "half-written checkpoints/.staging_00000004_1",
    ]


def test_a_file_that_a_living_process_has_open_is_not_abandoned(tmp_path: Path) -> None:
    held, left = tmp_path / "held", tmp_path / "left"
    left.write_text("")
    assert list_shared_memory(tmp_path) == {left}
    with held.open("w"):
        assert find_abandoned([held, left, tmp_path / "gone"]) == [left]
    assert find_abandoned([held]) == [held]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["name=mine"], "name is not yours to set"),
        (["experiment=tiny_smoke"], "experiment is not yours to set"),
        (["kinds=notice,fire"], "fire is no interruption"),
        (["kinds=requeue"], "only Slurm takes a job away"),
        (["kinds=requeue", "cluster=slurm", "cluster.slurm.requeue=false"], "the site forbids it"),
        (["kinds=kill,kill"], "kinds=kill,kill: an interruption is there twice"),
        (["steps=3"], "steps=3: wanted a whole number, 12 or more"),
        (["cluster=torchrun"], "a drill needs this machine, or Slurm"),
        (["mine"], "mine: wanted KEY=VALUE"),
    ],
)
def test_what_cannot_be_drilled_is_refused_in_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["drill", *words]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "word",
    [
        *("cluster.nodes=0", "cluster.nodes=x", "cluster.nodes=", "cluster.nodes=-1"),
        *("cluster.processes_per_node=x", "cluster.processes_per_node=0", "cluster.gpus_per_node=x"),
    ],
)
def test_a_wrong_number_of_ranks_is_refused_as_train_refuses_it(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "experiment=tiny_smoke", "cluster=slurm", word]) == 2
    wanted = capsys.readouterr().err.removeprefix("metier train")
    assert main(["drill", "cluster=slurm", word]) == 2
    assert capsys.readouterr().err == f"metier drill{wanted}"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cluster=slurm", "cluster.slurm.partition=nosuch"], "Slurm"),
        (["cluster.nodes=2"], "cluster.kind=local is this machine alone"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_anything_is_prepared(
    words: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no scontrol
    assert main(["drill", *words, f"run_root={tmp_path / 'runs'}"]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_drill_has_two_ranks_saves_often_and_keeps_to_its_folder(tmp_path: Path) -> None:
    plan = plan_drill([f"run_root={tmp_path}"], TREE)

    assert plan.kinds == ("notice", "kill")
    assert plan.config.cluster.processes_per_node == 2
    assert plan.config.loop.checkpoint_every_steps < plan.strike_after < plan.steps / 2
    for path in (plan.config.run_root, plan.config.data.path, plan.config.model.folder):
        assert Path(path or "").is_relative_to(tmp_path / "drill")


def test_under_slurm_a_drill_takes_the_job_away_and_runs_where_the_user_says(tmp_path: Path) -> None:
    words = ["cluster=slurm", "cluster.nodes=2", "cluster.gpus_per_node=4", "cluster.slurm.partition=gpu"]
    plan = plan_drill([*words, f"run_root={tmp_path}"], TREE)

    assert plan.kinds == ("notice", "kill", "requeue")
    assert plan.config.deterministic
    assert plan.config.batch.global_batch_size == 16
    assert plan.config.cluster.slurm.partition == "gpu"
    assert replace(plan, kinds=()).words("x")[-1] == "name=x"
    forbidden = plan_drill([*words, f"run_root={tmp_path}", "cluster.slurm.requeue=false"], TREE)
    assert forbidden.kinds == ("notice", "kill")
