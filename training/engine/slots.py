"""Where DeepSpeed keeps what an optimizer step changes: which elements of which parameter lie where.

Everything that knows DeepSpeed's optimizers from inside (version 0.19) is here. Each of them comes down to
*slots*: flat tensors that the wrapped torch optimizer steps, and in which elements of parameters lie one
behind the other.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed import comm as distributed
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from training.engine.swapped import look_at


@dataclass(frozen=True, slots=True)
class Held:
    """Elements [start, start + length) of parameter ``name``, from ``offset`` on in a slot."""

    name: str
    start: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor that the optimizer steps."""

    values: Tensor
    """Weights [N], in fp32 unless the optimizer keeps none. Behind the last parameter may be padding."""

    owner: Tensor
    """What the wrapped optimizer's state is kept under."""

    held: tuple[Held, ...]
    members: tuple[str, ...]
    """All parameters of this slot, those included of which only other ranks hold elements."""


def find_slots(optimizer: Any, names: Mapping[int, str]) -> list[Slot]:
    """List the slots of this rank.

    Args:
        optimizer: DeepSpeed's, or torch's own where DeepSpeed wraps none.
        names: Each trained parameter's name by ``id``.
    """
    match optimizer:
        case DeepSpeedZeroOptimizer_Stage3():
            return list(_partitioned_parameters(optimizer, names))
        case DeepSpeedZeroOptimizer():
            groups = zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True)
            return [_mapped(group, flat, names) for group, flat in groups]
        case BF16_Optimizer():
            groups = zip(optimizer.bf16_groups, optimizer.fp32_groups_flat_partition, strict=True)
            return [_mapped(group, flat, names) for group, flat in groups]
        case FP16_Optimizer():
            groups = zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True)
            return [_flattened(group, flat, names) for group, flat in groups]
        case FP16_UnfusedOptimizer():
            pairs = (
                zip(*each, strict=True)
                for each in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
            )
            return [_whole(names[id(model)], master) for pair in pairs for model, master in pair]
    return [_whole(names[id(p)], p) for group in optimizer.param_groups for p in group["params"]]


def holds_everything(optimizer: Any) -> bool:
    """Whether every rank holds the whole of every parameter (ZeRO stage 0)."""
    return not isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3 | DeepSpeedZeroOptimizer | BF16_Optimizer)


def state_of(optimizer: Any, slot: Slot) -> dict[str, Any]:
    """Give what the wrapped torch optimizer remembers of a slot; it is empty before the first step."""
    state: dict[str, Any] = getattr(optimizer, "optimizer", optimizer).state[slot.owner]
    return state


def saved_state_of(optimizer: Any, slot: Slot) -> dict[str, Any]:
    """Give the same to be looked at alone, also where DeepSpeed has swapped it out."""
    known = state_of(optimizer, slot).items()
    return {
        key: look_at(optimizer, slot.owner, value) if isinstance(value, Tensor) else value
        for key, value in known
    }


def counts_in_tensors(optimizer: Any) -> bool:
    """Whether the wrapped optimizer keeps scalars as tensors, as torch's own do; others keep numbers."""
    return isinstance(getattr(optimizer, "optimizer", optimizer), torch.optim.AdamW | torch.optim.Adafactor)


def release_weights(optimizer: Any) -> None:
    """Let go of parameters that ZeRO 3 has gathered, or is reading from a disk: they are about to change.

    Collective.
    """
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer._partition_all_parameters()


@torch.no_grad()
def publish_weights(optimizer: Any) -> None:
    """Let the model's own weights follow the slots' values. Collective."""
    match optimizer:
        case DeepSpeedZeroOptimizer_Stage3():
            _publish_partitions(optimizer)
        case DeepSpeedZeroOptimizer() | BF16_Optimizer():
            optimizer.update_lp_params()
        case FP16_Optimizer():
            for model, master in zip(optimizer.fp16_groups_flat, optimizer.fp32_groups_flat, strict=True):
                model.copy_(master)
        case FP16_UnfusedOptimizer():
            for models, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
                for model, master in zip(models, masters, strict=True):
                    model.copy_(master)


def _whole(name: str, tensor: Tensor) -> Slot:
    return Slot(tensor.detach().view(-1), tensor, (Held(name, 0, 0, tensor.numel()),), (name,))


def _flattened(group: Sequence[nn.Parameter], flat: Tensor, names: Mapping[int, str]) -> Slot:
    held, offset = [], 0
    for parameter in group:
        held.append(Held(names[id(parameter)], 0, offset, parameter.numel()))
        offset += parameter.numel()
    return Slot(flat.detach(), flat, tuple(held), tuple(each.name for each in held))


def _mapped(group: Sequence[Any], flat: Tensor, names: Mapping[int, str]) -> Slot:
    """ZeRO 1 and 2: a rank has a stretch of the group's parameters laid end to end."""
    held = tuple(
        Held(
            names[id(parameter)],
            parameter._hp_mapping.lp_fragment_address.start,
            parameter._hp_mapping.hp_fragment_address.start,
            parameter._hp_mapping.hp_fragment_address.numel,
        )
        for parameter in group
        if parameter._hp_mapping is not None
    )
    return Slot(flat.detach(), flat, held, tuple(names[id(parameter)] for parameter in group))


def _partitioned_parameters(optimizer: Any, names: Mapping[int, str]) -> Iterator[Slot]:
    """ZeRO 3: a rank has a stretch of each parameter, padded at its end to one length on all ranks."""
    for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        held = []
        for parameter in group:
            _, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            among = getattr(parameter, "ds_process_group", optimizer.dp_process_group)
            start = length * distributed.get_rank(group=among)
            kept = min(length, parameter.ds_numel - start)
            if kept > 0:
                held.append(Held(names[id(parameter)], start, offset, kept))
        values = look_at(optimizer, flat, flat).detach()
        yield Slot(values, flat, tuple(held), tuple(names[id(parameter)] for parameter in group))


def _publish_partitions(optimizer: Any) -> None:
    for number, master in enumerate(optimizer.fp32_partitioned_groups_flat):
        if master.numel():  # else it is on a disk, and was written there with the weights that follow it
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
