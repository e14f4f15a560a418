"""Whom a step's signal reaches depends on the site: the ranks alone, or every process that they started."""

import os
import signal
from pathlib import Path

import pytest

from tests.slurm.conftest import Order
from tests.slurm.linux import wait_for
from tests.slurm.runs import Training

HELPER = "training.metrics.tracker"


@pytest.mark.parametrize("tracking", ["cgroup", "pgid", "linuxproc"])
def test_a_signal_to_the_whole_step_leaves_the_helper_of_wandb_alive_and_the_save_whole(
    tracking: str, order: Order, work: Path, whole: Path
) -> None:
    if tracking == "cgroup" and not (os.geteuid() == 0 and Path("/sys/fs/cgroup/freezer").is_dir()):
        pytest.skip("proctrack/cgroup of this Slurm needs root and the freezer of cgroup v1")
    training = Training(order(nodes=2, tracking=tracking), work)
    job = training.submit("tracker=offline")
    training.wait_for_step()
    helper = [process.pid for process in training.cluster.processes() if HELPER in process.words]
    assert len(helper) == 1
    training.cluster.run("scancel", f"--signal={signal.SIGTERM.name[3:]}", f"{job}")
    training.assert_inside()
    wait_for(lambda: training.journal("ended"), 60, "the end of the first start", pause=0.05)
    assert training.finish().restarts == 1
    assert "Traceback" not in (training.run / "logs/tracker.log").read_text()
    training.assert_same_as(whole, lost=0)
