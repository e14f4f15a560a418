"""What a strategy needs of the node's disk: asked before anything is written to it."""

import shutil

from training.config.schema import RunConfig
from training.deepspeed_sizes import ModelShape
from training.errors import StorageError
from training.files import say_bytes

_STATE_BYTES = 12  # of a trained element: fp32 weight and two moments


def check_room(config: RunConfig, shape: ModelShape, world_size: int) -> None:
    """Refuse a disk that cannot take what the ranks of a node will put there.

    Raises:
        StorageError: It has too little space.
    """
    strategy, cluster = config.strategy, config.cluster
    if not strategy.swaps_to_disk or strategy.nvme_path is None:
        return
    each = 0
    if strategy.offload_parameters == "nvme":
        each += 4 if config.precision == "fp32" else 2
    if strategy.offload_optimizer == "nvme" and config.adapter.kind == "none":
        each += _STATE_BYTES
    on_node = min(world_size, cluster.gpus_per_node or cluster.processes_per_node)
    wanted, free = each * shape.parameters * on_node // world_size, shutil.disk_usage(strategy.nvme_path).free
    if free < wanted:
        raise StorageError(
            f"strategy.nvme_path={strategy.nvme_path} has {say_bytes(free)} free and the {on_node} "
            f"processes of this node want {say_bytes(wanted)}; free some, name another disk, or use more "
            "nodes"
        )
