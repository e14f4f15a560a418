"""What one command submits: a whole run as jobs that wait for each other, a sweep as one array."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.runs import environment, journal
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import submit, wait_until_ended
from tests.slurm.runs import WORDS, Training

SMALL = (
    "experiment=tiny_smoke",
    "cluster=slurm",
    "cluster.slurm.time=5:00",
    "cluster.preflight.mode=off",
    "cluster.threads_per_process=1",
)


def metier(cluster: Cluster, folder: Path, *words: str) -> str:
    folder.mkdir(exist_ok=True)
    return cluster.run(sys.executable, "-m", "launcher", *words, cwd=folder, env=environment()).stdout


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "jobs.jsonl").read_text().splitlines()]


def logs_of(run: Path) -> str:
    return "\n".join(f"{log}:\n{log.read_text()[-3000:]}" for log in run.glob("logs/*.log"))


@pytest.mark.parametrize("nodes", [2, 4])
def test_one_command_prepares_trains_evaluates_and_exports_in_jobs_that_wait_for_each_other(
    nodes: int, cluster: Cluster, tmp_path: Path
) -> None:
    small = ("prepare.tasks=2", "prepare.processes=1", "loop.max_steps=2", "evaluation.bootstrap_samples=50")
    batch = f"batch.global_batch_size={2 * nodes}"
    shape = (f"cluster.nodes={nodes}", "cluster.processes_per_node=2", batch)
    before = submit(cluster, "--hold", f"--output={tmp_path}/before.log", "--wrap", "true")
    said = metier(cluster, tmp_path, "run", *SMALL, *shape, *small, f"after={before}")
    rows = [line.split() for line in said.splitlines()[1:6]]
    jobs = [row[0].partition("_")[0] for row in rows]
    assert [row[1] for row in rows] == ["prepare", "prepare", "train", "evaluate", "export"]
    assert [row[2:-1] for row in rows] == [[str(before)], [jobs[0]], [jobs[1]], [jobs[2]], [jobs[2]]]
    assert rows[0][0] == f"{jobs[0]}_[0-1]"

    run = tmp_path / "runs/tiny_smoke"
    assert [line["after"] for line in lines_of(run)] == [str(before), *jobs[:2], jobs[2], jobs[2]]
    cluster.run("scontrol", "release", str(before))
    for job in jobs[1:]:
        assert wait_until_ended(cluster, int(job)).state == "COMPLETED", logs_of(run)
    assert len(journal(run)) == 2
    assert (run / "report/report.html").exists()
    assert (run / "model/model.safetensors").exists()
    assert sorted(path.name for path in (run / "logs").glob("job_*.log")) == sorted(
        f"job_{name}.log" for name in (f"{jobs[0]}_0", f"{jobs[0]}_1", *jobs[1:])
    )


def test_a_sweep_is_one_array_whose_tasks_run_some_at_a_time_and_fail_alone(
    cluster: Cluster, work: Path
) -> None:
    # What grows without bound is no number after a step: no other start could help.
    rates = "optimizer.learning_rate=0.003,1e30,0.001"
    sweep = (*SMALL, rates, "loop.max_steps=4", "loop.max_skipped_in_a_row=1", "cluster.slurm.array_limit=2")
    said = metier(cluster, work, "train", "-m", *sweep)
    rows = dict(reversed(line.split()) for line in said.splitlines()[1:4])
    names = [f"tiny_smoke,learning_rate={rate}" for rate in ("0.003", "1e+30", "0.001")]
    array = rows[names[0]].partition("_")[0]
    assert rows == {name: f"{array}_{task}" for task, name in enumerate(names)}

    states = {name: wait_until_ended(cluster, job).state for name, job in rows.items()}
    runs = {name: work / "runs" / name for name in names}
    assert states == dict(zip(names, ("COMPLETED", "FAILED", "COMPLETED"), strict=True)), [
        logs_of(run) for run in runs.values()
    ]
    outcomes = {name: json.loads((run / "outcome.json").read_text()) for name, run in runs.items()}
    assert [outcome["state"] for outcome in outcomes.values()] == ["COMPLETED", "FAILED", "COMPLETED"]
    for name, run in runs.items():
        assert [line["job"] for line in lines_of(run)] == [rows[name]] * len(lines_of(run))
        assert (run / f"logs/job_{rows[name]}.log").read_text().startswith("metier job: start 1")

    times = {name: {line["event"]: line["time"] for line in lines_of(run)} for name, run in runs.items()}
    assert times[names[2]]["started"] > min(times[name]["decided"] for name in names[:2]), "two at a time"

    again = metier(cluster, work, "train", "-m", *sweep)
    assert re.findall(r"finished already +(\S+)", again) == [names[0], names[2]]
    assert "1 run as one job array" in again


def test_evaluation_and_export_wait_for_the_job_in_which_a_chain_of_trainings_ends(
    cluster: Cluster, work: Path
) -> None:
    training = Training(cluster, work)
    chain = ("cluster.slurm.requeue=false", "cluster.slurm.partition=norequeue", "cluster.slurm.time=5:00")
    done = training.type("run", *WORDS, *chain, "evaluation.bootstrap_samples=50")
    assert done.returncode == 0, done.stdout + done.stderr
    first = training.job()
    training.wait_for_step()
    cluster.run("scancel", "--batch", "--signal=USR1", str(first))
    training.assert_inside()
    last = training.finish().fields
    assert last["JobId"] != str(first)
    for stage in training.journal("stage"):
        ended = wait_until_ended(cluster, stage["job"])
        assert ended.state == "COMPLETED", training.tell()
        assert ended.fields["StartTime"] >= last["EndTime"], stage
    # Two jobs trained, and the third, which was to go on after the second, was called off.
    assert len(training.journal("submitted", "next")) == 3
    assert (training.run / "report/report.html").exists()
    assert (training.run / "model/model.safetensors").exists()


def test_where_no_job_may_requeue_a_sweep_keeps_its_limit_over_the_jobs_in_which_its_runs_go_on(
    cluster: Cluster, work: Path
) -> None:
    chain = (
        "cluster.slurm.requeue=false",
        "cluster.slurm.partition=norequeue",
        "cluster.slurm.array_limit=1",
    )
    sweep = ("optimizer.learning_rate=0.003,0.001", *chain)
    first, second = (
        Training(cluster, work, f"tiny_smoke,learning_rate={rate}") for rate in ("0.003", "0.001")
    )
    done = first.type("train", "-m", *WORDS, *sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    begun = first.job()
    first.wait_for_step()
    cluster.run("scancel", "--batch", "--signal=USR1", str(begun))
    assert first.finish().fields["JobId"] != str(begun)
    second.finish()
    assert second.journal("started")[0]["time"] >= first.ends()[-1]["time"]
