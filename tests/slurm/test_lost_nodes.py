"""Ranks and nodes that die without a word: the run goes on from the last checkpoint, and never twice."""

import signal
from pathlib import Path

import pytest

from tests.slurm.jobs import find_job, job_nodes, node_states, wait_for_accounts
from tests.slurm.linux import wait_for
from tests.slurm.runs import SAVED_EVERY, Training


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
    assert "NODE_FAIL" in wait_for_accounts(training.cluster, job, "COMPLETED")
    training.cluster.boot(victim)
    training.assert_same_as(whole, lost=SAVED_EVERY)


def test_with_a_spare_node_the_job_survives_a_dead_one_which_is_none_of_its_nodes_when_it_is_back(
    training: Training, whole: Path
) -> None:
    job = training.submit("cluster.slurm.spare_nodes=1")
    training.wait_for_step()
    head, victim, spare = nodes_of(training, job)
    training.cluster.power_off(victim)
    training.assert_inside()
    wait_for(lambda: len(training.journal("started")) == 2, 90, "another start", pause=0.1)
    training.cluster.boot(victim)
    wait_for(lambda: node_states(training.cluster)[victim] == "idle", 60, f"{victim} back", pause=0.1)
    wait_for(lambda: 1 in training.ranks(), 60, "the ranks", pause=0.05)
    training.kill_rank(1)
    assert training.finish().restarts == 0
    assert [line["nodes"] for line in training.journal("started")[1:]] == [[head, spare], [head, spare]]
    training.assert_same_as(whole, lost=2 * SAVED_EVERY)


@pytest.mark.parametrize("may_requeue", [True, False])
def test_a_job_with_a_spare_node_that_loses_the_one_of_its_script_is_not_left_to_run_empty(
    may_requeue: bool, training: Training, whole: Path
) -> None:
    partition = "main" if may_requeue else "norequeue"
    words = (f"cluster.slurm.requeue={str(may_requeue).lower()}", f"cluster.slurm.partition={partition}")
    job = training.submit("cluster.slurm.spare_nodes=1", *words)
    training.wait_for_step()
    victim = nodes_of(training, job)[0]
    training.cluster.power_off(victim)
    training.assert_inside()
    ended = training.finish()
    assert ended.fields["JobId"] != str(job)
    assert ended.restarts == 0
    assert victim not in training.journal("started")[-1]["nodes"]
    assert "is gone" in (training.run / f"logs/job_{job}.log").read_text()
    training.cluster.boot(victim)
    training.assert_same_as(whole, lost=SAVED_EVERY)


@pytest.mark.parametrize("how_long", ["for_ever", "until_it_runs_elsewhere"])
def test_ranks_of_a_cut_node_that_go_on_after_the_run_runs_elsewhere_never_write_into_it(
    how_long: str, training: Training, whole: Path
) -> None:
    cluster = training.cluster
    job = training.submit("cluster.nodes=1", "cluster.processes_per_node=2")
    training.wait_for_step()
    victim = nodes_of(training, job)[0]
    old = list(training.ranks().values())
    cluster.cut(victim)
    # They lose no time of their own: however long the other start takes, they are in the midst of it.
    cluster.signal(signal.SIGSTOP, *old)
    training.assert_inside()
    wait_for(lambda: training.events("resumed"), 120, "another start", pause=0.05)
    cluster.signal(signal.SIGCONT, *old)
    if how_long == "until_it_runs_elsewhere":
        cluster.heal(victim)
    assert training.finish().restarts == 1
    assert victim not in training.journal("started")[-1]["nodes"]
    if how_long == "for_ever":
        wait_for(lambda: not living(training, victim), 90, "the old ranks' end by themselves", pause=0.2)
        assert "has taken over" in (training.run / "logs/rank_0.log").read_text()
        cluster.heal(victim)
    training.assert_same_as(whole, lost=SAVED_EVERY)


def test_when_a_slurmd_dies_the_run_goes_on_on_another_node(training: Training, whole: Path) -> None:
    job = training.submit("cluster.nodes=1", "cluster.processes_per_node=2")
    training.wait_for_step()
    victim = nodes_of(training, job)[0]
    # So slowly that the ranks, which live on, are still at it when Slurm has noticed.
    training.cluster.slow(victim, 0.9)
    training.cluster.kill_slurmd(victim)
    training.assert_inside()
    wait_for(lambda: len(training.journal("started")) == 2, 120, "a second start", pause=0.1)
    assert training.finish().restarts == 1
    assert victim not in training.journal("started")[-1]["nodes"]
    training.cluster.restore()
    training.assert_same_as(whole, lost=SAVED_EVERY)


def living(training: Training, node: str) -> list[int]:
    return [
        process.pid
        for process in training.cluster.processes(node)
        if "training.worker" in process.words and Path(process.words[0]).name.startswith("python")
    ]
