"""What a rank does before anything else: find its device and its peers."""

import os

import torch

from training.batch import find_world_size, plan_run
from training.collectives import join
from training.config.schema import RunConfig
from training.engine.deepspeed_engine import Place
from training.errors import ClusterError
from training.ranks import Ranks, check_meeting_place, explain_count


def take_place(config: RunConfig, ranks: Ranks) -> Place:
    """Choose this rank's device, meet the others, and plan the batch. Collective.

    Raises:
        ClusterError: There are more or fewer processes than the run was planned for, or too few GPUs.
    """
    planned = find_world_size(config.cluster)
    if ranks.world_size != planned:
        raise ClusterError(explain_count(os.environ, ranks.world_size, planned))
    check_meeting_place(os.environ)
    device = _find_device(config, ranks)
    # DeepSpeed reads torchrun's variables, which srun does not set, and takes the local rank for the GPU's
    # number: where srun shows each rank its own GPU alone, that is 0 for all of them.
    os.environ |= {
        "RANK": str(ranks.rank),
        "LOCAL_RANK": str(ranks.local_rank if device.index is None else device.index),
        "WORLD_SIZE": str(ranks.world_size),
    }
    plan = plan_run(config)
    join(ranks, device=device, timeout_seconds=config.cluster.timeout_seconds)
    return Place(ranks=ranks, device=device, plan=plan)


def _find_device(config: RunConfig, ranks: Ranks) -> torch.device:
    if config.cluster.gpus_per_node == 0:
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    # srun --gpus-per-task=1 shows each rank its own device only.
    index = 0 if visible == 1 else ranks.local_rank
    if index >= visible:
        raise ClusterError(
            f"rank {ranks.rank} needs GPU {index} and sees {visible}; "
            "set cluster.gpus_per_node to what each node has"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
