"""Writes the two forms of an export into a staged folder, and reads them back as a user would."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from training.config.schema import RunConfig
from training.errors import ModelError
from training.export.merge import merged_tensors
from training.export.verify import check_shapes
from training.model.adapter import forbid_repacking
from training.model.folder import check_tensors, read_shapes, scrub_config
from training.model.kind import AnyModel, base_of
from training.model.load import DTYPES, four_bit_config, grow_embeddings
from training.model.place import find_model_folder
from training.model.quiet import quiet_upstream


def write_merged(staged: Path, config: RunConfig, model: AnyModel) -> int:
    """Write the whole model in bf16; give the number of tensors.

    Raises:
        ModelError: A tensor is missing, empty, not finite, or of another shape than the base's.
    """
    whole = _load_original(config)
    _fill(whole, merged_tensors(model))
    wanted = _distinct_shapes(whole)
    with quiet_upstream():
        whole.save_pretrained(staged)
    scrub_config(staged)
    found = check_tensors(staged)
    check_shapes(staged, found, wanted)
    return len(found)


def merge_into_original(config: RunConfig, model: PeftModel) -> PreTrainedModel:
    """Merge an adapter of a 4-bit base into the weights that were rounded to 4 bits; in evaluation mode.

    Nothing is written: other tools merge so, and the report says how far that is from what was trained.
    """
    whole = _load_original(config)
    _fill(whole, merged_tensors(model, dict(whole.named_parameters())))
    return whole.to(device=next(model.parameters()).device, dtype=DTYPES[config.precision]).eval()


def _load_original(config: RunConfig) -> PreTrainedModel:
    """Load the base in bf16 as it came, with rows for all of the run's tokens."""
    with quiet_upstream():
        whole: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            find_model_folder(config.model), dtype=torch.bfloat16
        )
    grow_embeddings(whole, config.model)
    return whole


@torch.no_grad()
def _fill(whole: PreTrainedModel, tensors: Iterable[tuple[str, Tensor]]) -> None:
    places = dict(whole.named_parameters(remove_duplicate=False))
    filled = set()
    for name, tensor in tensors:
        if name not in places:
            raise ModelError(f"tensor {name} of the trained model is not in its base; please report this")
        places[name].copy_(tensor)
        filled.add(places[name].data_ptr())
    left = [name for name, parameter in places.items() if parameter.data_ptr() not in filled]
    if left:
        raise ModelError(f"tensor {left[0]} of the base is not in the trained model; please report this")


def _distinct_shapes(whole: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Name what a folder of this model holds: a tied tensor once, as in the base's own folder."""
    # named_parameters gives a shared tensor under its first name, which is the one saved.
    return {name: tuple(parameter.shape) for name, parameter in whole.named_parameters()} | {
        name: tuple(tensor.shape)
        for name, tensor in whole.state_dict().items()
        if name not in dict(whole.named_parameters(remove_duplicate=False))
    }


def write_adapter(staged: Path, config: RunConfig, model: PeftModel) -> int:
    """Write peft's folder; give the number of tensors.

    Raises:
        ModelError: A tensor is empty or not finite.
    """
    with quiet_upstream():
        # The embeddings are the base's: looking for changed ones would ask the hub.
        model.save_pretrained(staged, save_embedding_layers=False)
    path = staged / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = name_base(config)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    check_tensors(staged)
    return len(read_shapes(staged.glob("adapter_model*.safetensors")))


def name_base(config: RunConfig) -> str:
    """Name the base model without a path of this machine: the hub's name, else the folder's own."""
    folder = find_model_folder(config.model)
    return Path(folder).name if Path(folder).is_dir() else folder


def reload(staged: Path, config: RunConfig, device: torch.device) -> AnyModel:
    """Read the staged folder with plain transformers and peft, and compute in the run's precision.

    Raises:
        ModelError: It cannot be read, or tied weights came back untied.
    """
    dtype = DTYPES[config.precision]
    options = {}
    source = str(staged)
    if config.export.form == "adapter":
        source = find_model_folder(config.model)
        if config.adapter.base_bits == 4:  # noqa: PLR2004
            options["quantization_config"] = four_bit_config(dtype)
    try:
        with quiet_upstream():
            model: AnyModel = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, attn_implementation="sdpa", **options
            )
            if config.export.form == "adapter":
                grow_embeddings(model, config.model)
                model = PeftModel.from_pretrained(model, staged, autocast_adapter_dtype=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{staged}: the exported model cannot be read again ({error})") from error
    _check_tied(staged, model)
    forbid_repacking(model)
    return model.to(device).eval()


def _check_tied(staged: Path, model: AnyModel) -> None:
    base = base_of(model)
    if getattr(base.config, "tie_word_embeddings", False):
        one, other = base.get_input_embeddings().weight, base.get_output_embeddings().weight
        if one.data_ptr() != other.data_ptr():
            raise ModelError(f"{staged}: the output layer is no longer tied to the embedding")
