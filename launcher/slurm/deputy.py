"""Looks after a job, from nodes that its script does not run on: ``python -m launcher.slurm.deputy RUN``.

Where a job may outlive its nodes (spare nodes: ``sbatch --no-kill``) the script's own node may be the one
that dies. Slurm 22.05 then takes that node out of the job, script and ranks end, and the job goes on to run
with nobody in it until its time is over. The first living deputy lets the run go on in another job: put back
into the queue this one could be held for ever, because a node that Slurm took out of a job is never told of
its end and refuses to begin the same job a second time ("Duplicate jobid on nodes").
"""

import os
import re
import sys
import time
from pathlib import Path

from launcher.slurm.call import PATIENT, SlurmAwayError, SlurmError, call_slurm
from launcher.slurm.facts import own_restart
from launcher.slurm.living import list_nodes
from launcher.slurm.successor import hand_over, own_job
from training.errors import EXIT_OK
from training.layout import RunLayout

_PAUSE_SECONDS = 10.0


def main(root: str) -> int:
    """Look after the job for as long as it runs."""
    layout, job, own = RunLayout(Path(root)), own_job(), os.environ["SLURMD_NODENAME"]
    while True:
        time.sleep(_PAUSE_SECONDS)
        try:
            said = call_slurm(["scontrol", "show", "job", "--oneliner", job])
        except SlurmAwayError:
            continue
        except SlurmError:
            return EXIT_OK  # Slurm has forgotten the job
        if is_over(said, own_restart()):
            return EXIT_OK
        lost = find_lost_host(said)
        if lost is not None and list_nodes(_field(said, "NodeList"))[:1] == [own]:
            return _go_on(layout, job, lost)


def is_over(said: str, restart: int) -> bool:
    """Whether this start of the job has ended, by what ``scontrol show job`` says."""
    return _field(said, "JobState") != "RUNNING" or _field(said, "Restarts") != str(restart)


def find_lost_host(said: str) -> str | None:
    """Name the node that ran the job's script, if it is none of the job's nodes any more."""
    host, nodelist = _field(said, "BatchHost"), _field(said, "NodeList")
    return host if host and nodelist and host not in list_nodes(nodelist) else None


def _go_on(layout: RunLayout, job: str, lost: str) -> int:
    _, told = hand_over(layout, job, may_requeue=False)
    with layout.job_log(job).open("a", encoding="utf-8") as log:
        log.write(f"metier job: {lost}, where this job's script ran, is gone; {told}\n")
    call_slurm(["scancel", job], attempts=PATIENT)
    return EXIT_OK


def _field(said: str, name: str) -> str:
    found = re.search(rf"(?:^|\s){name}=(\S*)", said)
    return found[1] if found else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
