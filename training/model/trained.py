"""The model as a checkpoint left it, or as it was before: what evaluation asks and export writes."""

import json
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from training.config.schema import RunConfig
from training.errors import CheckpointError
from training.model.load import build_model

WEIGHTS = "weights"
INDEX = "weights.json"


def load_trained_model(
    config: RunConfig, checkpoint_folder: Path | None, device: torch.device
) -> PreTrainedModel | PeftModel:
    """Build the run's model and put a checkpoint's weights into it, in evaluation mode.

    Args:
        config: The frozen configuration: model, adapter, precision and seed decide.
        checkpoint_folder: A complete checkpoint; None gives the model before training.
        device: Where it lies.

    Raises:
        ModelError: The base cannot be loaded.
        CheckpointError: The weights are missing or belong to another model.
    """
    model = build_model(
        config.model,
        config.adapter,
        precision=config.precision,
        device=device,
        seed=config.seed,
        activation_checkpointing="none",
    )
    if checkpoint_folder is not None:
        load_weights(model, checkpoint_folder)
    return model.eval()


def load_weights(model: PreTrainedModel | PeftModel, checkpoint_folder: Path) -> None:
    """Put every trained tensor of a checkpoint into ``model``; none may be missing or left over.

    Raises:
        CheckpointError: The weights are missing, or belong to another model.
    """
    folder = checkpoint_folder / WEIGHTS
    kind, tensors = read_weights(folder)
    wanted_kind = "adapter" if isinstance(model, PeftModel) else "full"
    if kind != wanted_kind:
        raise CheckpointError(f"{folder} holds {kind} weights, wanted {wanted_kind}: another adapter.kind")
    expected = _trained_tensors(model)
    _check_names(folder, expected, tensors)
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, tensors)
    else:
        model.load_state_dict(tensors, strict=False)


def _trained_tensors(model: PreTrainedModel | PeftModel) -> dict[str, Tensor]:
    """Name what a checkpoint of this model must hold; what is frozen comes from the base."""
    if isinstance(model, PeftModel):
        return get_peft_model_state_dict(model, save_embedding_layers=False)  # type: ignore[no-any-return]
    return {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}


def read_weights(folder: Path) -> tuple[str, dict[str, Tensor]]:
    """Read the ``weights`` folder of a checkpoint.

    Returns:
        ``adapter`` or ``full``, and the tensors by name.

    Raises:
        CheckpointError: The folder is missing or damaged.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        tensors: dict[str, Tensor] = {}
        for name in index["files"]:
            tensors.update(load_file(folder / name))
        return str(index["kind"]), tensors
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename or folder} is missing; name an earlier checkpoint") from None
    except (json.JSONDecodeError, KeyError, OSError, ValueError) as error:
        raise CheckpointError(f"{folder} cannot be read ({error}); name an earlier checkpoint") from error


def _check_names(folder: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise CheckpointError(f"{folder} holds {unknown[0]}, which the model has not; it is of another model")
    # A tied tensor is written once, under either of its names.
    held = {expected[name].data_ptr() for name in found}
    missing = [name for name, tensor in expected.items() if tensor.data_ptr() not in held]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {missing[0]} ({len(missing)} of {len(expected)}); it is incomplete"
        )
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{folder}: {name} has shape {list(tensor.shape)}, the model wants "
                f"{list(expected[name].shape)}; it is of another model or adapter.rank"
            )
