"""Hugging Face folders that are complete or absent, and what must be true of one."""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import xxhash
from safetensors import safe_open

from training.config.learning import ModelConfig
from training.errors import ModelError, StorageError
from training.files import sync_file, sync_folder
from training.model.place import CONFIG, find_model_folder
from training.model.weights import find_weights

_ATTEMPTS = 100
_STRETCHES = 32
_STRETCH_BYTES = 4096


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a hidden sibling of ``folder``, then put it in place; an older one leaves only then.

    Raises:
        StorageError: The disk is full or refuses; the older folder, if any, is still there.
    """
    # Tasks of an array write the same folder at once, from nodes that each count processes for themselves.
    mine = f".{folder.name}.{os.uname().nodename}.{os.getpid()}"
    staged, previous = folder.with_name(f"{mine}.partial"), folder.with_name(f"{mine}.previous")
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        write(staged)
        # safetensors lets its owner alone read what it writes.
        mode = staged.stat().st_mode & 0o666
        for path in sorted(staged.rglob("*")):
            if path.is_file():
                path.chmod(mode)
                sync_file(path)
        sync_folder(staged)
        _put_in_place(staged, folder, previous)
        sync_folder(folder.parent)
    except OSError as error:
        if previous.exists() and not folder.exists():
            previous.rename(folder)
        raise StorageError(
            f"{folder}: cannot be written ({error.strerror or error}); free some space or set its permissions"
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _put_in_place(staged: Path, folder: Path, previous: Path) -> None:
    """Rename ``staged`` to ``folder``; another process may do the same with its own at any moment.

    Raises:
        OSError: The disk refuses, or others were quicker every time.
    """
    for attempt in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            folder.rename(previous)
        try:
            staged.rename(folder)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST} or attempt == _ATTEMPTS - 1:
                raise
            shutil.rmtree(previous, ignore_errors=True)
        else:
            shutil.rmtree(previous, ignore_errors=True)
            return


def fingerprint_base(model: ModelConfig) -> str:
    """Give a fingerprint of the weights that a run begins with: of other weights it is another.

    Of each file its name, its size and some stretches spread over it: training changes all of them, and a
    large model is not read twice for it. A model of the hub is looked at in the hub's cache; one that is not
    there as safetensors gives its name.

    Raises:
        ModelError: The folder is missing or cannot be read.
    """
    name = find_model_folder(model)
    files = _find_base_files(name)
    if not files:
        return name
    digest = xxhash.xxh3_128()
    try:
        for path in files:
            size = path.stat().st_size
            digest.update(f"{path.name} {size} ".encode())
            with path.open("rb") as stream:
                for number in range(_STRETCHES):
                    stream.seek(size * number // _STRETCHES)
                    digest.update(stream.read(_STRETCH_BYTES))
    except OSError as error:
        raise ModelError(f"{name} cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def _find_base_files(name: str) -> list[Path]:
    folder = Path(name)
    if folder.is_dir():
        return find_weight_files(folder) or sorted(folder.glob("*.bin"))
    weights = find_weights(name)
    return sorted({stored.file for stored in weights.tensors.values()}) if weights else []


def find_weight_files(folder: Path) -> list[Path]:
    """List a folder's safetensors files in sorted order."""
    return sorted(folder.glob("*.safetensors"))


def read_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Name every tensor in ``files`` with its shape; no tensor is read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
                shapes[name] = tuple(stream.get_slice(name).get_shape())
    return shapes


def check_tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read every tensor of a folder once and give the shapes.

    Raises:
        ModelError: There is none, or one is empty or holds a number that is not finite.
    """
    files = find_weight_files(folder)
    if not files:
        raise ModelError(f"{folder} holds no *.safetensors file; write it again")
    for path in files:
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
                _check_tensor(path, name, stream.get_tensor(name))
    return read_shapes(files)


def _check_tensor(path: Path, name: str, tensor: torch.Tensor) -> None:
    if math.prod(tensor.shape) == 0:
        raise ModelError(f"{path}: tensor {name} is empty (shape {list(tensor.shape)}); write it again")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"{path}: tensor {name} holds NaN or infinity; the training diverged before it")


def scrub_config(folder: Path) -> None:
    """Take out of config.json what names this machine or a form the weights no longer have.

    ``_model_name_or_path`` is where upstream loaded from; ``quantization_config`` would make transformers
    look for packed blocks in plain bf16 tensors.
    """
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("_model_name_or_path", "_name_or_path", "quantization_config"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
