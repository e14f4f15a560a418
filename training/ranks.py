"""Which process this is: read once from the environment that torchrun or Slurm set."""

from collections.abc import Mapping
from dataclasses import dataclass

from training.errors import ClusterError

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_FIRST_SHELL_STEP = 0xFFFFFFFA
_SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among all processes of the run: one process per device."""

    rank: int
    local_rank: int
    world_size: int

    @property
    def is_lead(self) -> bool:
        """Whether this process writes the files and metrics that are written once."""
        return self.rank == 0

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Ranks":
        """Read torchrun's variables, else Slurm's inside a job step; alone when neither is set.

        Raises:
            ClusterError: Only some of a launcher's variables are set, or two launchers are at work.
        """
        _refuse_many_torchruns(environ)
        for names, wanted in ((_TORCHRUN, True), (_SLURM, is_in_step(environ))):
            found = [name for name in names if name in environ]
            if wanted and len(found) == len(names):
                rank, local_rank, world_size = (int(environ[name]) for name in names)
                return cls(rank=rank, local_rank=local_rank, world_size=world_size)
            if wanted and found:
                missing = sorted(set(names) - set(found))
                raise ClusterError(
                    f"the environment sets {', '.join(found)} but not {', '.join(missing)}; "
                    "start every rank through torchrun or srun"
                )
        return cls(rank=0, local_rank=0, world_size=1)


def is_in_step(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process: the shells of a batch script and of salloc have its variables too.

    srun alone sets a step's number in a job's script; the steps of shells have numbers beyond all others
    (slurm.h: SLURM_INTERACTIVE_STEP and SLURM_BATCH_SCRIPT).
    """
    step = environ.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < _FIRST_SHELL_STEP


def explain_count(environ: Mapping[str, str], found: int, planned: int) -> str:
    """Say in one line why there are more or fewer processes than planned, and how to start as many."""
    wanted = f"the run was planned for {planned} (cluster.nodes x processes on each)"
    if "TORCHELASTIC_RUN_ID" in environ:
        return f"torchrun started {found} processes, {wanted}; set its --nnodes and --nproc-per-node"
    if is_in_step(environ):
        return (
            f"srun started {found} tasks, {wanted}; start it with srun --ntasks={planned}, one task per rank"
        )
    if "SLURM_JOB_ID" in environ:
        return (
            f"this is a shell of Slurm job {environ['SLURM_JOB_ID']} and one process, {wanted}; put "
            f"srun --ntasks={planned} --kill-on-bad-exit=1 in front of the command"
        )
    return f"{found} processes were started, {wanted}; start it through `metier train`"


def check_meeting_place(environ: Mapping[str, str]) -> None:
    """Make sure that the ranks know where they meet.

    Raises:
        ClusterError: Nobody told them.
    """
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environ.get(name)]
    if missing:
        raise ClusterError(
            f"{' and '.join(missing)}: not set, so the ranks do not know where to meet: a host of rank 0 and "
            "a free port there, the same for all; the job script that `metier train` writes sets both"
        )


def _refuse_many_torchruns(environ: Mapping[str, str]) -> None:
    tasks, nodes = environ.get("SLURM_STEP_NUM_TASKS", ""), environ.get("SLURM_STEP_NUM_NODES", "")
    if "TORCHELASTIC_RUN_ID" not in environ or not is_in_step(environ):
        return
    if tasks.isdigit() and nodes.isdigit() and int(tasks) > int(nodes):
        raise ClusterError(
            f"srun started torchrun {tasks} times on {nodes} nodes, and each starts ranks of its own; "
            "start torchrun with srun --ntasks-per-node=1, or the ranks by srun alone"
        )
