"""Which process this is: read once from the environment that torchrun or Slurm set."""

from collections.abc import Mapping
from dataclasses import dataclass

from training.errors import ClusterError

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
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
            ClusterError: Only some of a launcher's variables are set.
        """
        # SLURM_STEP_ID is set by srun only: the batch script's own shell has SLURM_PROCID=0 as well.
        for names, wanted in ((_TORCHRUN, True), (_SLURM, "SLURM_STEP_ID" in environ)):
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
