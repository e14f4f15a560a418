"""The drill under Slurm: jobs, struck by Slurm's own commands, that come back by themselves."""

import contextlib
import json
import os
import shlex
import subprocess
import time
from typing import Any

from launcher.commands import merge_environment, package_variables
from launcher.drill.local import train_command
from launcher.drill.plan import Kind, Plan
from launcher.drill.stage import Left
from launcher.scaling.jobs import find_alive
from launcher.slurm.call import SlurmAwayError, SlurmError, call_slurm
from launcher.slurm.journal import read_journal
from launcher.tree import ConfigTree
from training.errors import ClusterError
from training.fence import newest_incarnation
from training.files import write_text
from training.layout import RunLayout

_ATTEMPTS = 6
_ASK_EVERY_SECONDS = 2.0
_LOOK_WITHIN_SECONDS = 45
"""The look at the nodes is given up where Slurm does not find it a place so soon."""

_LOOK = r"""
for entry in /proc/[0-9]*; do
  if [ -O "$entry" ] && tr '\0' ' ' < "$entry/cmdline" 2>/dev/null | grep -qF -- "training.worker $1"; then
    echo "LEFT $(hostname): process ${entry#/proc/}"
  fi
done
used=$({ cat /proc/[0-9]*/maps; ls -l /proc/[0-9]*/fd; } 2>/dev/null | grep -o '/dev/shm/[^ ]*' | sort -u)
find /dev/shm -maxdepth 1 -mindepth 1 -user "$(id -un)" -newermt "@$2" 2>/dev/null | while read -r file; do
  grep -qxF -- "$file" <<<"$used" || echo "LEFT $(hostname): shared memory $file"
done
echo LOOKED
"""


class SlurmStage:
    """A cluster under Slurm."""

    def __init__(self, tree: ConfigTree) -> None:
        """Let starts look for configurations where the drill itself does."""
        self._tree = tree
        self._began = time.time()
        self._asked = 0.0

    def start(self, plan: Plan, name: str) -> None:
        """Type `metier train`, which submits a job.

        Raises:
            ClusterError: It was refused.
        """
        done = subprocess.run(
            train_command(plan, name, self._tree),
            env=merge_environment(os.environ, package_variables()),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ClusterError(said.removeprefix("metier train: "))

    def is_over(self, plan: Plan, name: str) -> bool:
        """Whether no job of the run is left; Slurm is not asked more often than every other second."""
        if time.monotonic() - self._asked < _ASK_EVERY_SECONDS:
            return False
        try:
            return find_alive(plan.layout(name)) is None
        except SlurmAwayError:
            return False  # a controller that does not answer has not ended it
        finally:
            self._asked = time.monotonic()

    def strike(self, plan: Plan, name: str, kind: Kind) -> str:
        """Interrupt the run's job.

        Raises:
            ClusterError: It has none, or Slurm refuses.
        """
        layout = plan.layout(name)
        # Not the newest: in a chain that one waits for the end of the one that runs.
        started = [line for line in read_journal(layout.jobs) if line["event"] == "started"]
        if not started:
            raise ClusterError(f"no job of {name} has started")
        job = str(started[-1]["job"])
        match kind:
            case "notice":
                call_slurm(["scancel", "--batch", "--signal=USR1", job], attempts=_ATTEMPTS)
                return f"USR1 to the script of job {job}"
            case "requeue":
                call_slurm(["scontrol", "requeue", job], attempts=_ATTEMPTS)
                return f"scontrol requeue {job}"
            case "stop":
                write_text(layout.stop_request, "metier drill\n")
                return f"wrote {layout.stop_request.name}"
        # Rank 0 is on the first node; its host may call itself by a longer name than Slurm does.
        host, pid = str(started[-1]["nodes"][0]), str(_read_claim(layout)["pid"])
        step = ["srun", f"--jobid={job}", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={host}"]
        call_slurm([*step, "--mem=0", "kill", "-KILL", pid], attempts=_ATTEMPTS)
        return f"SIGKILL to rank 0 on {host}"

    def find_left(self, plan: Plan, name: str) -> Left:
        """Look at the nodes through a short step of its own; a cluster that gives none is no fault."""
        layout, config = plan.layout(name), plan.config
        slurm = config.cluster.slurm
        starts = [line for line in read_journal(layout.jobs) if line["event"] == "started"]
        hosts = sorted({host for line in starts for host in line["nodes"]})
        asked = {
            "nodes": len(hosts),
            "account": slurm.account,
            "partition": slurm.partition,
            "qos": slurm.qos,
            "constraint": slurm.constraint,
            "reservation": slurm.reservation,
        }
        options = [f"--{key}={value}" for key, value in asked.items() if value is not None]
        command = [
            "srun",
            f"--immediate={_LOOK_WITHIN_SECONDS}",
            *options,
            "--ntasks-per-node=1",
            "--time=2",
            f"--nodelist={','.join(hosts)}",
        ]
        script = ["bash", "-c", _LOOK, "look", str(layout.root), str(int(self._began))]
        try:
            said = call_slurm([*command, *script])
        except SlurmError as error:
            return Left(found=(), unknown=f"the nodes could not be looked at ({error})")
        rows = said.splitlines()
        looked = rows.count("LOOKED")
        return Left(
            found=tuple(sorted({row.removeprefix("LEFT ") for row in rows if row.startswith("LEFT ")})),
            unknown=None if looked == len(hosts) else f"{looked} of {len(hosts)} nodes were looked at",
        )

    def say_why(self, plan: Plan, name: str) -> str:
        """Name the command that looks for causes."""
        return f"see `metier why {shlex.quote(str(plan.layout(name).root))}`"

    def end(self, plan: Plan, name: str) -> None:
        """Cancel the run's jobs: in a chain the next one is there already."""
        lines = read_journal(plan.layout(name).jobs)
        jobs = {str(line["job"]) for line in lines if line["event"] in {"submitted", "next"}}
        if jobs:
            with contextlib.suppress(SlurmError):
                call_slurm(["scancel", *sorted(jobs)], attempts=_ATTEMPTS)


def _read_claim(layout: RunLayout) -> dict[str, Any]:
    """Read who claimed the run last: rank 0 does."""
    number = newest_incarnation(layout.incarnations)
    path = layout.incarnations / f"{number:06d}.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise ClusterError(f"{path} does not say where rank 0 lives") from None
