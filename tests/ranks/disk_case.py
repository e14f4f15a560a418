"""A disk to which small tensors go as well."""

import tempfile
from pathlib import Path
from typing import Any

_LEAST_BYTES = 4096
_AIO = {"block_size": _LEAST_BYTES, "intra_op_parallelism": 4}


def on_disk(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Complete a strategy's settings for a new folder of the disk, where it swaps to one at all."""
    if "nvme" not in settings.values():
        return settings
    (folder / "nvme").mkdir(exist_ok=True)
    place = tempfile.mkdtemp(dir=folder / "nvme")
    return settings | {"nvme_path": place, "deepspeed_extra": {"aio": _AIO}}


def swap_small_tensors() -> None:
    """Have DeepSpeed swap what is larger than a page; it leaves what is under 1 MiB in memory."""
    from deepspeed.runtime.swap_tensor import optimizer_utils, partitioned_param_swapper

    optimizer_utils.MIN_AIO_BYTES = partitioned_param_swapper.MIN_AIO_BYTES = _LEAST_BYTES
