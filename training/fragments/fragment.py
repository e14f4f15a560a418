"""A stretch of a parameter with all that is kept of it, as tensors in memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Torch's dtypes by the names that a checkpoint's index gives them."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """Some elements of one parameter, and what the optimizer remembers of them."""

    name: str
    shape: tuple[int, ...]
    """Of the whole parameter."""

    start: int
    """The first element's number in the flattened parameter."""

    tensors: dict[str, Tensor]
    """By key, all [N]: ``weight`` and the optimizer's own, such as ``exp_avg``. Views of the live state."""

    scalars: dict[str, float]

    on_disk: bool = False
    """The tensors are maps of files: to copy them into memory would take what was to be spared."""
