"""A checkpoint's whole state as safetensors files that any tool reads: one for the weights, one per moment.

The fragments are copied straight from the mapped files, a stretch at a time: no tensor is ever whole in
memory, whatever the model's size, and no torch is needed.
"""

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from training.files import write_atomically
from training.fragments.index import ITEM_BYTES, Index
from training.fragments.reader import FragmentReader


def convert(folder: Path, target: Path) -> Iterator[tuple[Path, int]]:
    """Write ``weight.safetensors``, ``exp_avg.safetensors`` and so on into ``target``.

    Weights are the optimizer's own, in fp32, under the model's names. A whole Hugging Face folder, adapters
    folded in, is what `metier export` writes.

    Args:
        folder: A complete checkpoint, verified.
        target: Made when missing.

    Yields:
        Each file and its size in bytes.

    Raises:
        StorageError: The disk is full or refuses.
    """
    with FragmentReader(folder) as reader:
        keys = dict.fromkeys(key for entry in reader.index.parameters.values() for key in entry.keys)
        for key in keys:
            path = target / f"{key}.safetensors"
            write_atomically(path, partial(_write, reader, key))
            yield path, path.stat().st_size


def _write(reader: FragmentReader, key: str, path: Path) -> None:
    header = _header(reader.index, key)
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for name, entry in reader.index.parameters.items():
            if key in entry.keys:
                for _, data in reader.read(name, key, 0, entry.numel):
                    stream.write(data)


def _header(index: Index, key: str) -> bytes:
    """Lay out the header that the safetensors format asks for, padded to 8 bytes."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt", "key": key}}
    offset = 0
    for name, entry in index.parameters.items():
        if key in entry.keys:
            size = math.prod(entry.shape) * ITEM_BYTES[entry.keys[key]]
            fields[name] = {
                "dtype": entry.keys[key],
                "shape": entry.shape,
                "data_offsets": [offset, offset + size],
            }
            offset += size
    text = json.dumps(fields).encode()
    return text + b" " * (-len(text) % 8)
