"""The few collective calls that are not DeepSpeed's. Every rank must call each of them."""

from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from training.ranks import Ranks

Value = TypeVar("Value")


def join(ranks: Ranks, *, device: torch.device, timeout_seconds: int) -> None:
    """Meet the other ranks; a later collective that takes longer than the timeout raises."""
    dist.init_process_group(
        backend="nccl" if device.type == "cuda" else "gloo",
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=timeout_seconds),
    )


def leave() -> None:
    """End what ``join`` began."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Add each value over all ranks, in fp64."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on at least one rank."""
    return sum_over_ranks([float(flag)], device)[0] > 0


def from_lead(value: Value) -> Value:
    """Give every rank the lead rank's value (any picklable object)."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_over_ranks(value: Value) -> list[Value]:
    """Give every rank the values of all ranks, in rank order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


class Council:
    """A process group beside the training's own, for a thread that must not mingle with its collectives."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        """Talk within ``group``; None where there is one process alone."""
        self._group = group

    @classmethod
    def open(cls) -> "Council":
        """Found a group of all ranks on the CPU. Collective.

        It waits for the slowest disk, so it has no deadline worth the name: a rank that dies closes its
        connections, and one that hangs is noticed by the training's own group.
        """
        if not dist.is_initialized():
            return cls(None)
        return cls(dist.new_group(backend="gloo", timeout=timedelta(days=1)))

    def from_lead(self, value: Value) -> Value:
        """Give every rank the lead rank's value (any picklable object)."""
        box = [value]
        if self._group is not None:
            dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """Give every rank the values of all ranks, in rank order."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return values

    def gather_to_lead(self, value: Value) -> list[Value]:
        """Give the lead the values of all ranks, in rank order; the others nothing."""
        if self._group is None:
            return [value]
        values: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(value, values, dst=0, group=self._group)
        return values or []
