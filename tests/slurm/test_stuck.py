"""Ranks that hang, and a controller that is away."""

import signal
from pathlib import Path

from tests.slurm.jobs import find_job
from tests.slurm.linux import wait_for
from tests.slurm.runs import SAVED_EVERY, Training

LIMIT_SECONDS = 12


def test_a_stopped_rank_is_found_out_and_the_job_starts_again(training: Training, whole: Path) -> None:
    job = training.submit(f"cluster.watch.step_seconds={LIMIT_SECONDS}", "cluster.timeout_seconds=60")
    training.wait_for_step()
    stopped = training.ranks()[1]
    training.cluster.signal(signal.SIGSTOP, stopped)
    training.assert_inside()
    assert training.finish().restarts == 0
    assert find_job(training.cluster, job).restarts == 0
    assert stopped.pid not in {rank.pid for rank in training.ranks().values()}
    training.assert_same_as(whole, lost=SAVED_EVERY)


def test_a_rank_that_dies_while_the_controller_is_away_costs_a_start_and_no_try(
    training: Training, whole: Path
) -> None:
    training.submit()
    training.wait_for_step()
    training.cluster.stop_controller()
    training.kill_rank(1)
    training.assert_inside()
    wait_for(lambda: tries(training) == [False, True], 120, "a start in vain", pause=0.1)
    assert not training.ends()
    training.cluster.start_controller()
    assert training.finish().restarts == 0
    training.assert_same_as(whole, lost=SAVED_EVERY)


def tries(training: Training) -> list[bool]:
    """Say of every start that ended whether it did because the controller was away."""
    return [bool(line["away"]) for line in training.journal("ended")]
