"""What a rank's tensors hold, measured from the tensors themselves: each storage once, wherever it lies."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_MASTERS = (
    "single_partition_of_fp32_groups",
    "fp32_partitioned_groups_flat",
    "fp32_groups_flat_partition",
    "fp32_groups",
)
"""What DeepSpeed's optimizers call the fp32 weights: ZeRO 1 and 2, ZeRO 3, bf16 with ZeRO 1, bf16 without."""

_GRADIENTS = (
    "averaged_gradients",
    "all_grad_tensors",
    "accumulated_grads_in_cpu",
    "grad_partitions_flat_buffer",
    "fp32_groups_gradients_flat",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryAccount:
    """Bytes of one rank."""

    weights: int
    """Of the model: its own share of them under ZeRO-3, with those that are small enough to stay whole."""

    gradients: int
    """After the last backward of a step, when they are fullest."""

    optimizer: int
    """Moments and fp32 master weights."""

    buffers: int
    """Those of the model, and what DeepSpeed keeps between steps: for gradients that are reduced, and for
    tensors on their way to a disk."""

    host: int
    """How much of all this lies in the host's memory though the rank has a device: what is offloaded."""


class MemoryMeter:
    """Measures once: gradients when they are fullest, the rest after the first update."""

    def __init__(self, device: torch.device) -> None:
        """Know nothing yet; ``device`` is the rank's."""
        self._device = device
        self._gradients = self._gradients_on_host = 0
        self.account: MemoryAccount | None = None

    def before_update(self, engine: Any) -> None:
        """Look at the gradients of DeepSpeed's ``engine``; later steps are not looked at."""
        if self.account is None:
            found = _storages(_gradients(engine), set())
            self._gradients, self._gradients_on_host = _bytes(found), self._on_host(found)

    def after_update(self, engine: Any) -> None:
        """Look at everything else: some optimizers make their moments when they first step."""
        if self.account is not None:
            return
        known: set[int] = set()
        weights = _storages(_weights(engine), known)
        optimizer = _storages(_optimizer(engine), known)
        buffers = _storages(_buffers(engine), known)
        self.account = MemoryAccount(
            weights=_bytes(weights),
            gradients=self._gradients,
            optimizer=_bytes(optimizer),
            buffers=_bytes(buffers),
            host=self._gradients_on_host + self._on_host([*weights, *optimizer, *buffers]),
        )

    def _on_host(self, tensors: Iterable[Tensor]) -> int:
        if self._device.type == "cpu":
            return 0
        return _bytes(tensor for tensor in tensors if tensor.device.type == "cpu")


def _weights(engine: Any) -> Iterator[Any]:
    for parameter in engine.module.parameters():
        yield parameter.data
        yield getattr(parameter, "ds_tensor", None)


def _gradients(engine: Any) -> Iterator[Any]:
    for parameter in engine.module.parameters():
        yield parameter.grad
        yield getattr(parameter, "grad_accum", None)
    for name in _GRADIENTS:
        yield getattr(engine.optimizer, name, None)
    for master in _flatten(_masters(engine)):
        yield master.grad


def _optimizer(engine: Any) -> Iterator[Any]:
    yield from _masters(engine)
    yield from engine.optimizer.state.values()


def _masters(engine: Any) -> Iterator[Any]:
    for name in _MASTERS:
        yield getattr(engine.optimizer, name, None)


def _buffers(engine: Any) -> Iterator[Any]:
    yield from engine.module.buffers()
    for bucket in getattr(engine.optimizer, "ipg_buckets", {}).values():
        yield getattr(bucket, "buffer", None)
    swappers = {getattr(parameter, "nvme_swapper", None) for parameter in engine.module.parameters()}
    for swapper in (*swappers, getattr(engine.optimizer, "optimizer_swapper", None)):
        yield getattr(swapper, "buffers", None)
        yield getattr(swapper, "partitioned_swap_buffer", None)
        yield getattr(getattr(swapper, "swap_buffer_manager", None), "all_buffers", None)


def _storages(values: Iterable[Any], known: set[int]) -> list[Tensor]:
    """Find one tensor of each storage that is not yet ``known``, and add it there."""
    found = []
    for tensor in _flatten(values):
        place = tensor.untyped_storage().data_ptr()
        if place and place not in known:
            known.add(place)
            found.append(tensor)
    return found


def _flatten(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _flatten(values.values())
    elif isinstance(values, Iterable) and not isinstance(values, (str, bytes)):
        for value in values:
            yield from _flatten(value)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
