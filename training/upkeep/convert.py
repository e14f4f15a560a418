"""A checkpoint's whole state as safetensors files that any tool reads: one for the weights, one per moment.

The fragments are copied from the mapped files a band at a time: no tensor is ever whole in memory, whatever
the model's size, and no torch is needed.
"""

import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.checkpoint.manifest import read_manifest
from training.errors import CheckpointError
from training.files import write_atomically
from training.fragments.index import ITEM_BYTES, Index
from training.fragments.reader import FragmentReader
from training.fragments.runs import Stretch

_BAND_ELEMENTS = 2**20
_LONGEST_HEADER = 100 << 20  # safetensors refuses more


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
        CheckpointError: ``target`` holds something else than what this run's checkpoints were converted to.
        StorageError: The disk is full or refuses.
    """
    manifest = read_manifest(folder)
    _check_target(target, manifest.run)
    origin = {"run": manifest.run, "step": str(manifest.step)}
    with FragmentReader(folder) as reader:
        keys = dict.fromkeys(key for entry in reader.index.parameters.values() for key in entry.keys)
        for key in keys:
            path = target / f"{key}.safetensors"
            write_atomically(path, partial(_write, reader, key, origin))
            yield path, path.stat().st_size


def _check_target(target: Path, run: str) -> None:
    """Refuse a folder in which something else lies: nothing of the user's is written over."""
    if not target.exists():
        return
    if not target.is_dir():
        raise CheckpointError(f"{target} is no folder; give to= a new or an empty one")
    strangers = sorted(path.name for path in target.iterdir() if not _is_own(path, run))
    if strangers:
        raise CheckpointError(
            f"{target} holds something else already ({strangers[0]}); give to= a new or an empty folder"
        )


def _is_own(path: Path, run: str) -> bool:
    """Whether a file came of an earlier conversion of this run, whole or killed halfway."""
    if path.name.startswith(".") and path.name.endswith(".partial"):
        return True
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            return size < _LONGEST_HEADER and json.loads(stream.read(size))["__metadata__"]["run"] == run
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(reader: FragmentReader, key: str, origin: Mapping[str, str], path: Path) -> None:
    header = _header(reader.index, key, origin)
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for name, entry in reader.index.parameters.items():
            if key in entry.keys:
                for band in read_bands(reader, name, key):
                    stream.write(band.data)


def read_bands(reader: FragmentReader, name: str, key: str) -> Iterator[npt.NDArray[np.uint8]]:
    """Read all bytes of one key of a parameter, a band of its elements at a time."""
    numel = reader.index.parameters[name].numel
    for start in range(0, numel, _BAND_ELEMENTS):
        yield _read(reader, name, key, Stretch(start, min(start + _BAND_ELEMENTS, numel)))


def _read(reader: FragmentReader, name: str, key: str, band: Stretch) -> npt.NDArray[np.uint8]:
    size = ITEM_BYTES[reader.index.parameters[name].keys[key]]
    flat = np.empty((band.stop - band.start) * size, dtype=np.uint8)
    for part, data in reader.read(name, key, band):
        target = np.ndarray(
            data.shape, np.uint8, buffer=flat, offset=part.place * size, strides=(part.pitch * size, 1)
        )
        target[:] = data
    return flat


def _header(index: Index, key: str, origin: Mapping[str, str]) -> bytes:
    """Lay out the header that the safetensors format asks for, padded to 8 bytes."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt", "key": key, **origin}}
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
