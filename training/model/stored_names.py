"""A model's parameters by the names in its files' headers, for whoever must not import torch."""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_DENSE = re.compile(
    r"(model\.(embed_tokens|norm)|lm_head"
    r"|model\.layers\.\d+\.(self_attn\.[qkvo]_(proj|norm)|mlp\.(gate|up|down)_proj|\w*layernorm))"
    r"\.(weight|bias)"
)
"""Llama's names, which Mistral, Qwen, Gemma, OLMo and SmolLM share: in them transformers renames nothing."""

_HEAD = "lm_head.weight"
_MOST_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class StoredNames:
    """What is known of a model's parameters before it is built."""

    parameters: frozenset[str]
    linear: frozenset[str]
    """The linear layers of its body, as modules."""


def read_stored_names(folder: Path) -> StoredNames | None:
    """Read them from the safetensors of a model folder; no tensor is read.

    Returns:
        None where the files do not say for sure what the parameters will be called: they are missing, of
        another form, quantised already, or have names that transformers may change while it loads them.
    """
    try:
        shapes = {name: shape for file in _find_files(folder) for name, shape in _read_header(file)}
        tied = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None
    if not shapes or not all(_DENSE.fullmatch(name) for name in shapes):
        return None
    # A head that is tied to the embedding is not stored, and has its name nevertheless.
    head = {_HEAD} if tied is not False else set()
    matrices = {name for name, shape in shapes.items() if len(shape) > 1 and name.startswith("model.layers.")}
    return StoredNames(
        parameters=frozenset(shapes.keys() | head),
        linear=frozenset(name.rpartition(".")[0] for name in matrices),
    )


def _find_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    files: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return [folder / name for name in sorted(set(files.values()))]


def _read_header(file: Path) -> Iterator[tuple[str, list[int]]]:
    """Read a header as https://huggingface.co/docs/safetensors describes it: its length, then JSON."""
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        if size > _MOST_HEADER_BYTES:
            raise ValueError(f"{file}: no safetensors file")
        header = json.loads(stream.read(size))
    for name, tensor in header.items():
        if name != "__metadata__":
            yield name, tensor["shape"]
