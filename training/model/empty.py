"""A model's modules without values: parameters have a shape and a dtype, and take no memory."""

import copy
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, PreTrainedModel

from training.errors import ModelError, first_line
from training.model.load import check_architecture
from training.model.quiet import quiet_upstream


def build_empty(config: Any, folder: str, dtype: torch.dtype) -> PreTrainedModel:
    """Make the modules of a config.json; buffers are real, since they are computed and not loaded.

    Raises:
        ModelError: As ``build_model``, where it concerns the architecture.
    """
    try:
        with quiet_upstream(), init_empty_weights(include_buffers=False):
            base: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    except (ValueError, ImportError) as error:
        raise ModelError(f"{folder}: the model cannot be loaded ({first_line(error)})") from error
    base.tie_weights()  # within that context each name gets a parameter of its own
    check_architecture(base)
    return base.eval()


def names_by_parameter(base: PreTrainedModel) -> dict[int, list[str]]:
    """List all names of each parameter, by its ``id``; tied ones have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names
