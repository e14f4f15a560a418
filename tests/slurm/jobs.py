"""What tests ask Slurm about jobs, and wait for."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.cluster import Cluster, Process
from tests.slurm.linux import FaultyClusterError, wait_for
from tests.slurm.settings import user_name

ENDED = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
)
_FIELD = re.compile(r"(?:^| )([A-Za-z:/]+)=")
_ASK_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Job:
    """What ``scontrol show job`` says of one."""

    fields: dict[str, str]

    @property
    def state(self) -> str:
        return self.fields["JobState"]

    @property
    def restarts(self) -> int:
        return int(self.fields["Restarts"])

    @property
    def exit_code(self) -> str:
        """The code and the signal, as 0:15."""
        return self.fields["ExitCode"]

    @property
    def head(self) -> str:
        """The node that the batch script runs on."""
        return self.fields.get("BatchHost", "")

    @property
    def is_running(self) -> bool:
        return self.state == "RUNNING"

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


def submit(cluster: Cluster, *words: str, cwd: Path | None = None) -> int:
    """Submit with sbatch; what the job prints goes to the cluster's folder. Give the job's id."""
    log = f"--output={cluster.root}/log/job_%j.log"
    return int(cluster.run("sbatch", "--parsable", log, *words, cwd=cwd).stdout.split(";")[0])


def find_job(cluster: Cluster, job: int | str) -> Job | None:
    """Ask for a job; None: the controller does not answer, or knows none."""
    done = cluster.run("scontrol", "show", "job", "-o", str(job), check=False, seconds=_ASK_SECONDS)
    text = done.stdout.strip()
    if done.returncode or not text:
        return None
    names = list(_FIELD.finditer(text))
    ends = [name.start() for name in names[1:]] + [len(text)]
    return Job({name[1]: text[name.end() : end].strip() for name, end in zip(names, ends, strict=True)})


def wait_for_job(
    cluster: Cluster,
    job: int | str,
    is_so: Callable[[Job], bool],
    seconds: float,
    what: str = "what was asked for",
) -> Job:
    """Ask for a job until something is true of it.

    Raises:
        FaultyClusterError: It is not, in this time; what is true is told.
    """
    deadline = time.monotonic() + seconds
    found = None
    while time.monotonic() < deadline:
        found = find_job(cluster, job) or found
        if found is not None and is_so(found):
            return found
        time.sleep(0.1)
    raise FaultyClusterError(f"job {job} has not reached {what} in {seconds:g} s: {found}")


def wait_for_state(cluster: Cluster, job: int, *states: str, seconds: float = 60, restarts: int = 0) -> Job:
    """Wait until a job is in one of some states, and has been restarted so many times or more."""
    return wait_for_job(
        cluster,
        job,
        lambda found: found.state in states and found.restarts >= restarts,
        seconds,
        f"{' or '.join(states)} with {restarts} restarts",
    )


def wait_until_ended(cluster: Cluster, job: int | str, seconds: float = 120) -> Job:
    """Wait until a job has ended for good."""
    return wait_for_job(cluster, job, lambda found: found.has_ended, seconds, "its end")


def job_nodes(cluster: Cluster, job: Job) -> list[str]:
    """Give the nodes of a job, the head node first."""
    names = cluster.run("scontrol", "show", "hostnames", job.fields["NodeList"]).stdout.split()
    return sorted(names, key=lambda name: (name != job.head, name))


def accounts(cluster: Cluster, job: int, *, steps: bool = False) -> list[dict[str, str]]:
    """Give the rows of sacct, also those of earlier starts of the same job."""
    fields = "JobID,State,ExitCode,DerivedExitCode,NodeList,Start,End,Reason"
    words = ["sacct", "-D", "-P", "-n", *([] if steps else ["-X"]), "-j", str(job), "-o", fields]
    rows = cluster.run(*words).stdout.splitlines()
    return [dict(zip(fields.split(","), row.split("|"), strict=True)) for row in rows]


def wait_for_accounts(cluster: Cluster, job: int, *last: str) -> list[str]:
    """Give the states of a job's starts once they end with these: accounts come a moment later."""

    def states() -> list[str]:
        told = [row["State"] for row in accounts(cluster, job)]
        return told if told[-len(last) :] == [*last] else []

    return wait_for(states, 60, f"sacct to say {', '.join(last)} of job {job}", pause=0.5)


def node_states(cluster: Cluster) -> dict[str, str]:
    """Give what sinfo says of every node, as idle, allocated, down*, drained."""
    lines = cluster.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").stdout.splitlines()
    return dict(line.split() for line in lines)


def drained_nodes(cluster: Cluster) -> list[str]:
    """Name the nodes that Slurm has taken out of use: somebody would have to put them back."""
    return [name for name, state in node_states(cluster).items() if state.startswith("drain")]


def strays(cluster: Cluster, *nodes: str) -> list[Process]:
    """Find what lives on nodes although no job runs there; wait a little for what is about to end.

    Call it when no job of the cluster runs on these nodes.
    """
    deadline = time.monotonic() + 10
    while (left := cluster.processes(*nodes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def clear(cluster: Cluster, seconds: float = 60) -> None:
    """Undo what was done to the hosts, cancel all jobs, and wait until every node is idle.

    Raises:
        FaultyClusterError: One is not.
    """
    cluster.restore()
    deadline = time.monotonic() + seconds
    states: set[str] = set()
    while states != {"idle"}:
        if time.monotonic() > deadline:
            raise FaultyClusterError(f"not all nodes are idle after {seconds:g} s: {sorted(states)}")
        # Asked again: a controller that has just started may not have heard the first time.
        cluster.run("scancel", "--user", user_name(), check=False)
        said = cluster.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).stdout
        states = set(said.split())
        time.sleep(0.1)
