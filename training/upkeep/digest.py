"""A checkpoint's state as one hash per tensor: two runs are the same when these are."""

import hashlib
import json
from pathlib import Path

from training.checkpoint.manifest import read_manifest
from training.fragments.reader import FragmentReader
from training.upkeep.convert import read_bands

_POSITION = "position"


def digest(folder: Path) -> dict[str, str]:
    """Hash every tensor of a checkpoint, whatever the cut it was written under, and where the run stands.

    Args:
        folder: A complete checkpoint, verified.

    Returns:
        SHA-256 by name: ``NAME/KEY`` of each parameter's weight and moments, ``NAME/scalars`` of what the
        optimizer keeps once per parameter, ``position`` of step, samples seen and the loop's memory.
    """
    manifest = read_manifest(folder)
    position = [manifest.step, manifest.samples_seen, manifest.memory]
    digests = {_POSITION: _hash(json.dumps(position, sort_keys=True).encode())}
    with FragmentReader(folder) as reader:
        for name, entry in sorted(reader.index.parameters.items()):
            for key in entry.keys:
                found = hashlib.sha256(repr((entry.shape, entry.keys[key])).encode())
                for band in read_bands(reader, name, key):
                    found.update(band.data)
                digests[f"{name}/{key}"] = found.hexdigest()
            digests[f"{name}/scalars"] = _hash(json.dumps(entry.scalars, sort_keys=True).encode())
    return digests


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
