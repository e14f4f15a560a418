"""What a rank's tensors hold, measured from the tensors themselves: each storage once, wherever it lies."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
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
_TRANSIT = (
    "param_buffer_of_bit16_for_cpu_offload_groups",
    "temp_grad_buffer_for_cpu_offload",
    "temp_grad_buffer_for_gpu_offload",
)
"""Through which ZeRO 1 and 2 send gradients to an optimizer in the host's memory, and weights back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryAccount:
    """Bytes of one rank, without activations and what ZeRO-3 has gathered of a layer for a moment."""

    weights: int
    """Of the model: its own share of them under ZeRO-3, with those that are small enough to stay whole. With
    4 bits, the scales of the blocks as well."""

    gradients: int
    """The sums after the last backward of a step, when they are fullest: its own share under ZeRO 2 and 3."""

    optimizer: int
    """Moments and fp32 master weights."""

    buckets: int
    """In which gradients are reduced: held all the time by ZeRO 3, during each backward by ZeRO 1 and 2."""

    transit: int
    """What offload holds beside: the same gradients a second time, where the optimizer steps, and buffers for
    tensors on their way between device, host and disk."""

    buffers: int
    """The model's own, which no gradient changes."""

    host: int
    """How much of all this lies in the host's memory though the rank has a device: what is offloaded."""

    disk: int
    """In the files that this rank has swapped tensors to; not memory, and not part of the others."""


class MemoryMeter:
    """Measures once: buckets in a backward, gradients when they are fullest, the rest after an update."""

    def __init__(self, device: torch.device, swap_folder: str | None = None) -> None:
        """Know nothing yet.

        Args:
            device: The rank's.
            swap_folder: Where this process, and no other, swaps tensors to; None: it does not.
        """
        self._device = device
        self._swap_folder = swap_folder
        self._gradients = self._transit = self._on_host_then = self._buckets_then = 0
        self.account: MemoryAccount | None = None

    def watch(self, engine: Any) -> None:
        """Look at the buckets of DeepSpeed's ``engine`` once it has made them, in its first backward.

        Under ZeRO 1 and 2 it lets them go before a backward is over.
        """
        optimizer = engine.optimizer
        make_buckets = getattr(optimizer, "setup_buckets", None)
        if make_buckets is None:
            return

        def make_and_look() -> None:
            make_buckets()
            self._buckets_then = _bytes(_storages(_buckets(engine), set()))
            optimizer.setup_buckets = make_buckets

        optimizer.setup_buckets = make_and_look

    def before_update(self, engine: Any) -> None:
        """Look at the gradients of DeepSpeed's ``engine``; later steps are not looked at."""
        if self.account is not None:
            return
        known: set[int] = set()
        gradients = _storages(_gradients(engine), known)
        copies = _storages((master.grad for master in _flatten(_masters(engine))), known)
        self._gradients, self._transit = _bytes(gradients), _bytes(copies)
        self._on_host_then = self._on_host([*gradients, *copies])

    def after_update(self, engine: Any) -> None:
        """Look at everything else: some optimizers make their moments when they first step."""
        if self.account is not None:
            return
        known: set[int] = set()
        weights = _storages(_weights(engine), known)
        optimizer = _storages(_optimizer(engine), known)
        buckets = _storages(_buckets(engine), known)
        transit = _storages(_transit(engine), known)
        buffers = _storages(engine.module.buffers(), known)
        kept = [*weights, *optimizer, *buckets, *transit, *buffers]
        self.account = MemoryAccount(
            weights=_bytes(weights),
            gradients=self._gradients,
            optimizer=_bytes(optimizer),
            buckets=max(self._buckets_then, _bytes(buckets)),
            transit=self._transit + _bytes(transit),
            buffers=_bytes(buffers),
            host=self._on_host_then + self._on_host(kept),
            disk=_bytes_on_disk(self._swap_folder),
        )

    def _on_host(self, tensors: Iterable[Tensor]) -> int:
        if self._device.type == "cpu":
            return 0
        return _bytes(tensor for tensor in tensors if tensor.device.type == "cpu")


def _weights(engine: Any) -> Iterator[Any]:
    for parameter in engine.module.parameters():
        yield parameter.data
        yield getattr(parameter, "ds_tensor", None)
    for module in engine.module.modules():
        yield from _scales(getattr(getattr(module, "weight", None), "quant_state", None))


def _scales(state: Any) -> Iterator[Any]:
    """Yield what bitsandbytes keeps beside the blocks of a 4-bit weight; it may be quantised again."""
    if state is not None:
        yield from (state.absmax, state.code, state.offset)
        yield from _scales(getattr(state, "state2", None))


def _gradients(engine: Any) -> Iterator[Any]:
    for parameter in engine.module.parameters():
        yield parameter.grad
        yield getattr(parameter, "grad_accum", None)
    for name in _GRADIENTS:
        yield getattr(engine.optimizer, name, None)


def _optimizer(engine: Any) -> Iterator[Any]:
    yield from _masters(engine)
    yield from engine.optimizer.state.values()


def _masters(engine: Any) -> Iterator[Any]:
    for name in _MASTERS:
        yield getattr(engine.optimizer, name, None)


def _buckets(engine: Any) -> Iterator[Any]:
    for bucket in getattr(engine.optimizer, "ipg_buckets", {}).values():
        yield getattr(bucket, "buffer", None)


def _transit(engine: Any) -> Iterator[Any]:
    for name in _TRANSIT:
        yield getattr(engine.optimizer, name, None)
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


def _bytes_on_disk(folder: str | None) -> int:
    if folder is None:
        return 0
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
