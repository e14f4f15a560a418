"""The trained tensors as safetensors, under the names that transformers and peft know."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from training.files import sync_file, write_json

_BYTES_PER_FILE = 4 << 30


def write_weights(folder: Path, model: torch.nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> list[Path]:
    """Write whole trained tensors into ``folder``, a few GiB at a time; give the files written.

    ``weights.json`` says whether they are an adapter's or a whole model's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_adapter = isinstance(model, PeftModel)
    if is_adapter:
        # An adapter is small; peft gives its tensors the names that it reads again. Embeddings that are
        # trained are among its modules; to look for changed ones peft would ask the hub.
        named: Iterable[tuple[str, Tensor]] = get_peft_model_state_dict(
            model, state_dict=_name_tied(model, tensors), save_embedding_layers=False
        ).items()
    else:
        named = tensors
    files = []
    for index, part in enumerate(_parts(named)):
        path = folder / f"weights_{index:05d}.safetensors"
        save_file(part, path, metadata={"format": "pt"})
        sync_file(path)
        files.append(path)
    summary: dict[str, Any] = {
        "kind": "adapter" if is_adapter else "full",
        "files": [path.name for path in files],
    }
    write_json(folder / "weights.json", summary)
    return [*files, folder / "weights.json"]


def _name_tied(model: PeftModel, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Give a tied tensor, which comes under its first name, under its others as well: peft reads them all."""
    named, first = dict(tensors), dict[int, str]()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name and known in named:
            # safetensors writes no tensor that shares its memory.
            named[name] = named[known].clone()
    return named


def _parts(named: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in named:
        part[name] = tensor.contiguous()
        size += tensor.nbytes
        if size >= _BYTES_PER_FILE:
            yield part
            part, size = {}, 0
    if part:
        yield part
