"""A stretch of a parameter with all that is kept of it, as tensors in memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.fragments.reader import FragmentReader
from training.fragments.runs import Runs, Stretch

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
    """The first element's number in the flattened parameter or, with ``runs``, among those they pick."""

    tensors: dict[str, Tensor]
    """By key, all [N]: ``weight`` and the optimizer's own, such as ``exp_avg``. Views of the live state."""

    scalars: dict[str, float]
    runs: Runs | None = None
    """Where the rank has only some columns of a matrix: which."""

    on_disk: bool = False
    """The tensors are maps of files: to copy them into memory would take what was to be spared."""

    @property
    def stretch(self) -> Stretch:
        """Which elements these are."""
        return Stretch(self.start, self.start + len(next(iter(self.tensors.values()))), self.runs)


def read_into(flat: Tensor, reader: FragmentReader, name: str, key: str, wanted: Stretch) -> None:
    """Copy ``key`` of some elements of a parameter from a checkpoint's mapped files into ``flat``.

    Args:
        flat: [N], one for each element wanted; on any device.
        reader: The checkpoint.
        name: The parameter.
        key: What is kept of it: its weight, or a moment.
        wanted: Which elements.

    Raises:
        CheckpointError: A file is missing or too short.
    """
    dtype = DTYPES[reader.index.parameters[name].keys[key]]
    for part, data in reader.read(name, key, wanted):
        target = flat.as_strided((part.rows, part.width), (part.pitch, 1), flat.storage_offset() + part.place)
        target.copy_(torch.from_numpy(data).view(dtype))
