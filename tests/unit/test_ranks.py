"""Which process this is, read from the environment."""

import pytest

from training.errors import ClusterError
from training.ranks import Ranks

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "5", "SLURM_LOCALID": "2", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"}


def test_torchruns_variables_win_over_slurms() -> None:
    assert Ranks.from_environ(SLURM | TORCHRUN) == Ranks(rank=3, local_rank=1, world_size=4)


def test_a_slurm_step_is_recognised() -> None:
    assert Ranks.from_environ(SLURM) == Ranks(rank=5, local_rank=2, world_size=8)


def test_a_batch_script_without_srun_is_alone() -> None:
    shell = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}

    assert Ranks.from_environ(shell) == Ranks(rank=0, local_rank=0, world_size=1)


def test_half_an_environment_is_refused_by_name() -> None:
    with pytest.raises(ClusterError, match="sets RANK but not LOCAL_RANK, WORLD_SIZE"):
        Ranks.from_environ({"RANK": "0"})


def test_only_rank_zero_leads() -> None:
    assert [Ranks(rank=r, local_rank=r, world_size=2).is_lead for r in (0, 1)] == [True, False]
