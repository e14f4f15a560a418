"""How much DeepSpeed moves at once, chosen from the model's and the cluster's size."""

from dataclasses import dataclass

_FILLS_A_LINK = 50_000_000
_PER_RANK = 500_000
_VECTORS = 10

SUB_GROUP = 100_000_000
"""Elements of optimizer state that travel to the node's disk and back at once.

Four buffers of them stay in the host's memory for it (weights, two moments, gradient): 1.6 GB. Each is a read
or write of 400 MB, beside which a disk's latency is nothing.
"""

_LEAST_SWAPPED_BYTES = 1 << 20  # DeepSpeed 0.19 leaves what is smaller in the host's memory
_WIDEST = 4  # bytes of an element


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What the choice looks at; all in elements."""

    parameters: int
    """Of the whole model."""

    trained: int
    """Of all that is trained: what has a gradient."""

    layer: int
    """Of the largest of the repeated layers."""

    hidden: int
    """Of one token's vector between layers."""

    adapter: int
    """Of the largest trained matrix of an adapter; 0 without one."""

    tensor: int
    """Of the largest parameter."""

    tensors: int
    """No elements: how many parameters the largest layer and what is outside of layers have."""


def choose_reduce_bucket(shape: ModelShape, world_size: int) -> int:
    """Choose the elements of one gradient reduction.

    100 MB in 16 bits fill a link of 400 Gb/s for 2 ms, a hundred times its latency. A ring cuts a reduction
    into one piece for each rank, and a piece under 1 MB is latency alone: so it grows with the ranks. More
    than there are gradients is never filled; the buffers take memory all the same.
    """
    return max(1, min(shape.trained, max(_FILLS_A_LINK, _PER_RANK * world_size)))


def choose_prefetch_bucket(shape: ModelShape) -> int:
    """Choose the elements that stage 3 gathers ahead of use.

    One layer: it arrives while the one before it is computed. More would wait in memory.
    """
    return shape.layer


def choose_persistence_threshold(shape: ModelShape) -> int:
    """Choose under how many elements a parameter stays on every rank at stage 3.

    Norms and biases have a few times ``hidden`` elements, and a gather of so few is latency alone. The same
    holds for an adapter's matrices: they are a hundredth of the model and are wanted in every layer.
    """
    return max(_VECTORS * shape.hidden, shape.adapter + 1)


def cap_for_nvme(threshold: int) -> int:
    """Let only those parameters stay on every rank that are too small to lie on the disk.

    DeepSpeed reads all that stay at once after each update, and has a buffer for no more than a layer's.
    """
    return min(threshold, _LEAST_SWAPPED_BYTES // _WIDEST - 1)


def choose_parameter_buffers(shape: ModelShape, world_size: int, *, adapted: bool) -> tuple[int, int]:
    """Choose how many buffers there are for parameters from the disk, and the elements of each.

    One for every part of a parameter that a layer is gathered from, each as long as the longest part. An
    adapter, which is not yet there when this is asked, puts two matrices beside each.
    """
    return shape.tensors * (3 if adapted else 1), -(-shape.tensor // world_size)
