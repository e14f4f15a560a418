"""A model folder's safetensors, looked at before anything is built and then read where they lie."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from training.errors import ModelError, first_line
from training.model.quiet import quiet_upstream

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one tensor lies."""

    file: Path
    shape: tuple[int, ...]


class WeightFiles:
    """The tensors of one or more safetensors files, mapped and never copied.

    One file is open at a time: what was read of the others is no longer mapped, so that the process does not
    grow by the whole model. Reading in the files' own order opens each once.
    """

    def __init__(self, tensors: Mapping[str, Stored]) -> None:
        """Open nothing yet."""
        self.tensors = tensors
        self._open: tuple[Path, Any] | None = None

    def read(self, name: str) -> Tensor:
        """Give a tensor as the file has it. Its bytes are fetched from the disk where they are looked at.

        Raises:
            ModelError: The file cannot be read.
        """
        file = self.tensors[name].file
        if self._open is None or self._open[0] != file:
            self.close()
            self._open = (file, _open(file))
        tensor: Tensor = self._open[1].get_tensor(name)
        return tensor

    def close(self) -> None:
        """Let go of the file; tensors that were read stay."""
        self._open = None


def find_weights(name: str) -> WeightFiles | None:
    """Look at the headers of a model's safetensors; None where it has none that transformers would load.

    Args:
        name: A folder; or a name on the hub, whose files are fetched into the hub's cache where need be.

    Raises:
        ModelError: A file is missing, is cut short, or lacks a tensor that the index promises.
    """
    folder = Path(name)
    if not folder.is_dir():
        found = _fetch(name)
        if found is None:
            return None
        folder = found
    if (folder / SINGLE).is_file():
        return WeightFiles(_list_tensors(folder / SINGLE))
    if not (folder / INDEX).is_file():
        return None
    promised = _read_index(folder / INDEX)
    tensors: dict[str, Stored] = {}
    for file in sorted(set(promised.values())):
        tensors |= _list_tensors(folder / file)
    for tensor, file in promised.items():
        if tensor not in tensors or tensors[tensor].file.name != file:
            raise ModelError(
                f"{folder / file}: the tensor {tensor} is missing, which {INDEX} promises; copy the model "
                "there again"
            )
    return WeightFiles({tensor: tensors[tensor] for tensor in promised})


def _fetch(name: str) -> Path | None:
    """Bring a model of the hub into its cache; None where the hub does not give it in this form."""
    try:
        with quiet_upstream():
            folder = Path(snapshot_download(name, allow_patterns=[SINGLE, INDEX]))
            if not (folder / SINGLE).is_file() and (folder / INDEX).is_file():
                files = sorted(set(_read_index(folder / INDEX).values()))
                folder = Path(snapshot_download(name, allow_patterns=[INDEX, *files]))
    except (OSError, ValueError):
        return None
    return folder


def _read_index(path: Path) -> dict[str, str]:
    try:
        promised: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: is no index ({first_line(error)}); copy the model there again") from error
    return promised


def _list_tensors(file: Path) -> dict[str, Stored]:
    opened = _open(file)
    names: list[str] = opened.keys()
    return {name: Stored(file, tuple(opened.get_slice(name).get_shape())) for name in names}


def _open(file: Path) -> Any:
    """Open a file; safetensors compares what its header promises with the bytes that there are."""
    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError:
        raise ModelError(f"{file}: is missing; copy the model there again") from None
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{file}: is cut short or no safetensors file ({first_line(error)}); copy the model there again"
        ) from error
