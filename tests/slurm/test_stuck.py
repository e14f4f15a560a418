"""Ranks that hang, and a controller that is away."""

import signal
import time
from pathlib import Path

from tests.slurm.jobs import find_job
from tests.slurm.linux import wait_for
from tests.slurm.runs import SAVED_EVERY, Training

LIMIT_SECONDS = 12
AWAY_SECONDS = 15
"""So long nobody answers the job that wants to start its ranks again."""


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


def test_a_rank_that_dies_while_the_controller_is_away_is_started_again_when_it_is_back(
    training: Training, whole: Path
) -> None:
    training.submit()
    training.wait_for_step()
    training.cluster.stop_controller()
    training.kill_rank(1)
    training.assert_inside()
    wait_for(lambda: training.journal("ended"), 60, "the end of the first start", pause=0.1)
    time.sleep(AWAY_SECONDS)
    assert not training.ends()
    training.cluster.start_controller()
    assert training.finish().restarts == 0
    training.assert_same_as(whole, lost=SAVED_EVERY)
