"""Activation checkpointing: which layers keep their input alone and are computed again in backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from training.errors import ModelError


def checkpoint_activations(base: PreTrainedModel, choice: str | int) -> None:
    """Let layers be computed again in backward, without re-entering autograd.

    Args:
        base: The transformers model.
        choice: As ``strategy.activation_checkpointing``: ``none``; ``full``: every layer; a number n: every
            n-th of them, the first included; ``offload``: every layer, its input waiting on the host.

    Raises:
        ModelError: The architecture has no layers that transformers can compute again.
    """
    if choice == "none":
        return
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{type(base).__name__} has no layers that can be computed again; use "
            "strategy.activation_checkpointing=none"
        )
    options = {"use_reentrant": False}
    # transformers renamed it; the older name warns since.
    if hasattr(base, "activation_checkpointing_enable"):
        base.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = isinstance(choice, str) or number % choice == 0
        if choice == "offload":
            layer._gradient_checkpointing_func = _checkpoint_on_host


def _checkpoint_on_host(layer: Callable[..., Any], *inputs: Any) -> Any:
    """Compute a layer whose input is copied to the host, page-locked where there is a GPU."""
    with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
        return checkpoint(layer, *inputs, use_reentrant=False)
