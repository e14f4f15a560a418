"""Ranks and nodes that die without a word: the run goes on from the last checkpoint, and never twice."""

from pathlib import Path

import pytest

from tests.slurm.jobs import accounts, find_job, job_nodes
from tests.slurm.linux import wait_for
from tests.slurm.runs import SAVED_EVERY, STEPS, Training


def nodes_of(training: Training, job: int) -> list[str]:
    """Give the job's nodes, the head node first."""
    found = find_job(training.cluster, job)
    assert found is not None
    return job_nodes(training.cluster, found)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_started_again_within_the_same_job(
    rank: int, training: Training, whole: Path
) -> None:
    training.submit()
    training.wait_for_step()
    training.kill_rank(rank)
    training.assert_inside()
    assert training.finish().restarts == 0
    assert len(training.journal("started")) == 2
    training.assert_same_as(whole, lost=SAVED_EVERY)


@pytest.mark.parametrize("which", ["the head node", "another node"])
def test_when_a_node_loses_its_power_the_job_goes_on_without_it(
    which: str, training: Training, whole: Path
) -> None:
    job = training.submit()
    training.wait_for_step()
    victim = nodes_of(training, job)[0 if which == "the head node" else 1]
    training.cluster.power_off(victim)
    training.assert_inside()
    assert training.finish().restarts == 1
    assert victim not in training.journal("started")[-1]["nodes"]
    assert "NODE_FAIL" in [row["State"] for row in accounts(training.cluster, job)]
    training.cluster.boot(victim)
    training.assert_same_as(whole, lost=SAVED_EVERY)


def test_with_a_spare_node_the_job_survives_a_dead_one(training: Training, whole: Path) -> None:
    job = training.submit("cluster.slurm.spare_nodes=1")
    training.wait_for_step()
    _, victim, spare = nodes_of(training, job)
    training.cluster.power_off(victim)
    training.assert_inside()
    assert training.finish().restarts == 0
    assert spare in training.journal("started")[-1]["nodes"]
    training.cluster.boot(victim)
    training.assert_same_as(whole, lost=SAVED_EVERY)


@pytest.mark.parametrize(
    "fault",
    [
        "cut_off_for_ever",
        pytest.param("cut_off_for_30_s", marks=pytest.mark.slurm_long),
        pytest.param("slurmd_killed", marks=pytest.mark.slurm_long),
    ],
)
def test_what_lives_on_where_slurm_cannot_see_it_is_fenced_and_none_of_it_comes_into_the_run(
    fault: str, training: Training, whole: Path
) -> None:
    cluster = training.cluster
    job = training.submit("cluster.nodes=1", "cluster.processes_per_node=2")
    training.wait_for_step()
    victim = nodes_of(training, job)[0]
    # So slowly that the old ranks are still at it when the new ones begin.
    cluster.slow(victim, 0.9)
    if fault == "slurmd_killed":
        cluster.kill_slurmd(victim)
    else:
        cluster.cut(victim)
    training.assert_inside()
    wait_for(lambda: len(training.journal("started")) == 2, 60, "a second start", pause=0.1)
    assert cluster.processes(victim), "the old ranks did not outlive the fault"
    if fault == "cut_off_for_30_s":
        cluster.heal(victim)
    assert training.finish().restarts == 1
    assert [line["nodes"] for line in training.journal("started")] != [[victim], [victim]]
    cluster.slow(victim, 0)
    assert training.lines()[-1]["step"] == STEPS
    if fault == "cut_off_for_ever":
        wait_for(lambda: not living(training, victim), 90, "the old ranks' end by themselves", pause=0.2)
        assert "has taken over" in (training.run / "logs/rank_0.log").read_text()
        cluster.heal(victim)
    if fault == "slurmd_killed":
        cluster.start_slurmd(victim)
    training.assert_same_as(whole, lost=STEPS)


def living(training: Training, node: str) -> list[int]:
    return [
        process.pid
        for process in training.cluster.processes(node)
        if "training.worker" in process.words and Path(process.words[0]).name.startswith("python")
    ]
