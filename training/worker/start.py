"""What a rank does before anything else: find itself, its log, its device and its peers."""

import os
import sys
from collections.abc import Mapping

import torch

from training.batch import find_world_size, plan_run
from training.collectives import join
from training.config.schema import RunConfig
from training.engine.deepspeed_engine import Place
from training.errors import ClusterError
from training.fence import find_incarnation
from training.layout import ASKED, RunLayout
from training.ranks import Ranks


def redirect_to_log(layout: RunLayout, ranks: Ranks) -> None:
    """Send this process's stderr to its log file, and stdout too unless it is the lead's screen."""
    layout.logs.mkdir(parents=True, exist_ok=True)
    log = os.open(layout.rank_log(ranks.rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, sys.stderr.fileno())
    if not ranks.is_lead:
        os.dup2(log, sys.stdout.fileno())
    os.close(log)


def forget_earlier_attempt(layout: RunLayout, environ: Mapping[str, str]) -> None:
    """Remove the outcome of this same start's last attempt, which torchrun has made again by itself.

    Each outcome is written once; the launcher removes that of an earlier start, and knows of no attempts.
    torchrun counts restarts on the host that failed alone, so the claims are asked as well.
    """
    restarted = environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    claimed = ASKED in environ and find_incarnation(layout.incarnations, float(environ[ASKED])) is not None
    if restarted or claimed:
        layout.outcome.unlink(missing_ok=True)


def take_place(config: RunConfig, ranks: Ranks) -> Place:
    """Choose this rank's device, meet the others, and plan the batch. Collective.

    Raises:
        ClusterError: There are more or fewer processes than the run was planned for, or too few GPUs.
    """
    planned = find_world_size(config.cluster)
    if ranks.world_size != planned:
        raise ClusterError(
            f"{ranks.world_size} processes were started, the run was planned for {planned} (cluster.nodes x "
            "processes on each); start it through `metier train`"
        )
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
