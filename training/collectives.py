"""The few collective calls that are not DeepSpeed's. Every rank must call each of them."""

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from training.interface import tell_gloo
from training.ranks import Ranks
from training.waits import WAITS

Value = TypeVar("Value")


class _Meter:
    """Sums up the seconds of the training thread's collectives."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def count(self, device: torch.device | None = None) -> Iterator[None]:
        """Count what is done within; on a GPU its own time, not that of the work queued before it."""
        if device is not None and device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            yield
            last.record()
            self._events.append((first, last))
        else:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started

    def take(self) -> float:
        """Give the sum and begin anew."""
        for first, last in self._events:
            last.synchronize()
            self._seconds += first.elapsed_time(last) / 1000
        seconds, self._seconds = self._seconds, 0.0
        self._events.clear()
        return seconds


_meter = _Meter()


def take_blocked_seconds() -> float:
    """Give the seconds spent in the functions below since they were asked for last.

    Waiting for the slowest rank is part of it; what DeepSpeed says to other ranks is not.
    """
    return _meter.take()


def join(ranks: Ranks, *, device: torch.device, timeout_seconds: int) -> None:
    """Meet the other ranks; a later collective that takes longer than the timeout raises.

    The same holds for groups that are founded later without a timeout of their own, as DeepSpeed founds
    them: torch would not give them this one but its default, of half an hour on CPUs.
    """
    if not hasattr(dist.Work.wait, "__wrapped__"):
        dist.Work.wait = WAITS.count(dist.Work.wait)  # type: ignore[method-assign]
    tell_gloo(os.environ)
    timeout = timedelta(seconds=timeout_seconds)
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        setattr(distributed_c10d, name, timeout)
    dist.init_process_group(
        backend="nccl" if device.type == "cuda" else "gloo",
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timeout,
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
    with _meter.count(device):
        dist.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on at least one rank."""
    return sum_over_ranks([float(flag)], device)[0] > 0


def from_lead(value: Value) -> Value:
    """Give every rank the lead rank's value (any picklable object)."""
    box = [value]
    if dist.is_initialized():
        with _meter.count():
            dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_over_ranks(value: Value) -> list[Value]:
    """Give every rank the values of all ranks, in rank order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    with _meter.count():
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
