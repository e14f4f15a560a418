"""The model as a checkpoint left it, or as it was before: what evaluation asks and export writes."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from training.config.schema import RunConfig
from training.errors import CheckpointError
from training.fragments.fragment import DTYPES, read_into
from training.fragments.index import WEIGHT, Parameter
from training.fragments.reader import FragmentReader
from training.fragments.runs import Stretch
from training.model.kind import AnyModel
from training.model.load import build_model


def load_trained_model(config: RunConfig, checkpoint_folder: Path | None, device: torch.device) -> AnyModel:
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


@torch.no_grad()
def load_weights(model: AnyModel, checkpoint_folder: Path) -> None:
    """Put every trained tensor of a checkpoint into ``model``; none may be missing or left over.

    The files are mapped, and read a parameter at a time.

    Raises:
        CheckpointError: The weights are missing, or belong to another model.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with FragmentReader(checkpoint_folder) as reader:
        saved = {name: entry for name, entry in reader.index.parameters.items() if WEIGHT in entry.keys}
        _check_names(checkpoint_folder, trained, saved)
        for name, parameter in trained.items():
            dtype = DTYPES[saved[name].keys[WEIGHT]]
            flat = torch.empty(parameter.numel(), dtype=dtype)
            read_into(flat, reader, name, WEIGHT, Stretch(0, parameter.numel()))
            parameter.copy_(flat.view(parameter.shape))


def _check_names(folder: Path, trained: Mapping[str, Tensor], saved: Mapping[str, Parameter]) -> None:
    unknown = sorted(set(saved) - set(trained))
    if unknown:
        raise CheckpointError(
            f"{folder} holds {unknown[0]}, which this run does not train; it is of another model or adapter"
        )
    missing = sorted(set(trained) - set(saved))
    if missing:
        raise CheckpointError(
            f"{folder} lacks {missing[0]} ({len(missing)} of {len(trained)}); it is of another model or "
            "adapter"
        )
    for name, entry in saved.items():
        if entry.shape != tuple(trained[name].shape):
            raise CheckpointError(
                f"{folder}: {name} has shape {list(entry.shape)}, the model wants "
                f"{list(trained[name].shape)}; it is of another model or adapter.rank"
            )
