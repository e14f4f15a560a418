"""AdamW over the trainable parameters, without decay on norms and biases."""

import torch
from torch import nn

from training.config.schema import OptimizerConfig
from training.errors import ConfigError


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Group the trainable parameters of ``model``: matrices decay, vectors (norms, biases) do not.

    Raises:
        ConfigError: Nothing is trainable.
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else spared).append(parameter)
    if not decayed and not spared:
        raise ConfigError("the model has no trainable parameter; check adapter.targets")
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
