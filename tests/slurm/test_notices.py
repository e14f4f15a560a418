"""Whoever is told in time loses nothing: requeue, time's end, preemption, cancellation."""

from pathlib import Path

from tests.slurm.conftest import Order
from tests.slurm.jobs import submit, wait_for_accounts, wait_until_ended
from tests.slurm.linux import wait_for
from tests.slurm.runs import SAVED_EVERY, STEPS, WORDS, Training


def preempt(training: Training) -> int:
    """Have a job of the higher partition want all nodes; give its id."""
    nodes = f"-N{len(training.cluster.nodes)}"
    words = ("-p", "high", nodes, "--exclusive", "--wrap", "srun true")
    job = submit(training.cluster, *words)
    training.assert_inside()
    return job


def test_a_requeue_from_outside_saves_at_one_step_and_costs_none(training: Training, whole: Path) -> None:
    job = training.submit()
    training.wait_for_step()
    training.cluster.run("scontrol", "requeue", str(job))
    training.assert_inside()
    assert training.finish().restarts == 1
    training.assert_same_as(whole, lost=0)


def test_the_notice_of_the_times_end_saves_and_the_same_job_goes_on(training: Training, whole: Path) -> None:
    job = training.submit()
    training.wait_for_step()
    training.cluster.run("scancel", "--batch", "--signal=USR1", str(job))
    training.assert_inside()
    assert training.finish().restarts == 1
    training.assert_same_as(whole, lost=0)


def test_a_notice_where_no_job_may_requeue_goes_on_in_a_job_that_waited(
    training: Training, whole: Path
) -> None:
    job = training.submit("cluster.slurm.requeue=false", "cluster.slurm.partition=norequeue")
    training.wait_for_step()
    training.cluster.run("scancel", "--batch", "--signal=USR1", str(job))
    training.assert_inside()
    ended = training.finish()
    assert ended.fields["JobId"] != str(job)
    assert ended.restarts == 0
    training.assert_same_as(whole, lost=0)


def test_preempted_with_five_seconds_grace_it_saves_is_requeued_and_never_counts_as_completed(
    training: Training, whole: Path
) -> None:
    job = training.submit("cluster.slurm.partition=low")
    training.wait_for_step()
    preempt(training)
    assert training.finish().restarts >= 1
    states = wait_for_accounts(training.cluster, job, "COMPLETED")
    assert set(states[:-1]) <= {"PREEMPTED", "REQUEUED"}
    training.assert_same_as(whole, lost=0)


def test_preempted_without_grace_it_still_saves(training: Training, whole: Path) -> None:
    training.submit("cluster.slurm.partition=abrupt")
    training.wait_for_step()
    preempt(training)
    assert training.finish().restarts >= 1
    training.assert_same_as(whole, lost=0)


def slow_down(training: Training, nodes: set[str]) -> set[int]:
    """Let hardly anything happen on these nodes; name the steps that come after the last checkpoint."""
    for node in nodes:
        training.cluster.slow(node, 0.999)
    reached = training.lines()[-1]["step"]
    return set(range(reached - reached % SAVED_EVERY + 1, reached + 1))


def test_preempted_too_slow_to_save_it_goes_on_from_the_last_checkpoint(
    training: Training, whole: Path
) -> None:
    training.submit("cluster.slurm.partition=abrupt")
    training.wait_for_step()
    nodes = {process.host for process in training.ranks().values()}
    # Right behind a checkpoint there is nothing to lose.
    while not (lost := slow_down(training, nodes)):
        for node in nodes:
            training.cluster.slow(node, 0)
        training.wait_for_step(training.lines()[-1]["step"] + 2)
    preempt(training)
    wait_for(lambda: not training.ranks(), 60, "the end of the first ranks", pause=0.1)
    for node in training.cluster.nodes:
        training.cluster.slow(node, 0)
    assert training.finish().restarts >= 1
    assert training.redone() >= lost
    training.assert_same_as(whole, lost=SAVED_EVERY)


def test_where_the_site_signals_a_preemption_the_script_does_not_die_of_the_signal(
    order: Order, work: Path, whole: Path
) -> None:
    training = Training(order(nodes=2, signals_preemption=True), work)
    training.submit("cluster.slurm.partition=low")
    training.wait_for_step()
    preempt(training)
    assert training.finish().restarts >= 1
    training.assert_same_as(whole, lost=0)


def test_cancelled_it_saves_and_stays_away_until_submitted_again_which_a_living_run_refuses(
    training: Training, whole: Path
) -> None:
    job = training.submit()
    training.wait_for_step()
    second = training.type("train", *WORDS)
    training.cluster.run("scancel", str(job))
    training.assert_inside()
    assert second.returncode == 2
    assert f"job {job} of tiny_smoke is running already" in second.stderr
    assert wait_until_ended(training.cluster, job).state == "CANCELLED"
    stopped_at = training.lines()[-1]["step"]
    assert (training.run / f"checkpoints/step_{stopped_at:08d}/manifest.json").exists()
    assert stopped_at < STEPS
    assert len(training.journal("submitted", "next")) == 1
    training.submit()
    training.finish()
    training.assert_same_as(whole, lost=0)
