"""Optimizer state that DeepSpeed keeps in files on the node's own disk, one group of parameters at a time.

Everything that knows its swapper from inside (version 0.19) is here. A group's tensors are empty while they
lie in their files. To be saved they are looked at through maps of the files; to be loaded they are brought
into memory a group at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def look_at(optimizer: Any, owner: Tensor, tensor: Tensor) -> Tensor:
    """Give a tensor of the state kept under ``owner``: itself, or a map of the file that it lies in."""
    files = _find_files(optimizer, owner)
    if id(tensor) not in files:
        return tensor
    length = optimizer.optimizer_swapper.swap_params_info[owner.ds_id].numel()  # type: ignore[attr-defined]
    # A private map: nobody writes. It is made anew for each look, for DeepSpeed writes past the page cache.
    return torch.from_file(str(files[id(tensor)]), shared=False, size=length, dtype=tensor.dtype)


def lies_on_disk(optimizer: Any, owner: Tensor) -> bool:
    """Whether the state kept under ``owner`` is in files now."""
    return bool(_find_files(optimizer, owner))


@contextmanager
def at_hand(optimizer: Any, number: int, owner: Tensor) -> Iterator[Tensor | None]:
    """Have a group's state in memory, and write it and the model's weights that follow from it back.

    Args:
        optimizer: DeepSpeed's.
        number: The group's.
        owner: What its state is kept under.

    Yields:
        The weights [N] for as long as they are in memory; None where they always are.
    """
    if not lies_on_disk(optimizer, owner):
        yield None
        return
    optimizer._optimizer_states_and_gradient_swap_in(number)
    yield owner.detach()
    optimizer._reassign_or_swap_out_partitioned_parameters(number)
    optimizer._optimizer_states_and_gradient_swap_out(number)


def keep_gradients(optimizer: Any) -> None:
    """Leave gradients where they are summed, in the host's memory, instead of copying them to the disk.

    They stay there either way, so a copy saves nothing.
    """
    swapper = getattr(optimizer, "optimizer_swapper", None)
    if swapper is None:
        return
    sums: dict[str, dict[int, Tensor]] = {}
    by_parameter = optimizer._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
    for group, owner in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        places = {optimizer.grad_position[optimizer.get_param_id(each)][1]: each.ds_id for each in group}
        sums[owner.ds_id] = {offset: by_parameter[number] for offset, number in places.items()}

    def keep(parameter: Any, gradient_offsets: Sequence[int], gradient_tensors: object) -> None:
        kept = swapper.swap_params_info[parameter.ds_id].unswapped_gradients
        kept.update({offset: sums[parameter.ds_id][offset] for offset in gradient_offsets})

    swapper.swap_out_gradients = keep


def drop_kept_gradients(optimizer: Any) -> None:
    """Forget what ``keep_gradients`` has kept for a step that is not taken."""
    swapper = getattr(optimizer, "optimizer_swapper", None)
    for info in swapper.swap_params_info.values() if swapper else ():
        info.release_unswapped_gradients()


def _find_files(optimizer: Any, owner: Any) -> dict[int, Path]:
    """Give the file of each tensor by its ``id``; nothing where they are in memory."""
    swapper = getattr(optimizer, "optimizer_swapper", None)
    info = swapper.swap_params_info.get(owner.ds_id) if swapper else None
    if info is None or owner.numel():
        return {}
    return {id(each.compute_tensor): Path(each.swap_path) for each in info.tensors}
