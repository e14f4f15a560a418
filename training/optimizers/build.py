"""The optimizer over the trained parameters: which of them decay, and at which rate each learns."""

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from training.config.learning import OptimizerConfig
from training.errors import ConfigError
from training.optimizers.lion import Lion
from training.optimizers.muon import MATRICES, Muon
from training.rules.names import check_rate_factors

RATE_FACTOR = "rate_factor"
"""Key of a parameter group: what the schedule's rate is multiplied with for it."""


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer over the trainable parameters of ``model``.

    Raises:
        ConfigError: Nothing is trainable, a pattern of ``rate_factors`` matches nothing, or this machine
            lacks what the optimizer needs.
    """
    groups = group_parameters(model, config)
    betas, rate, epsilon = (config.beta1, config.beta2), config.learning_rate, config.epsilon
    match config.kind:
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=True)
        case "adamw_cpu":
            return _build_deepspeed_adam(groups, lr=rate, betas=betas, eps=epsilon)
        case "adamw_8bit" | "adamw_paged":
            # Loads the library for the GPU at hand; not every process that builds an optimizer has one.
            import bitsandbytes  # noqa: PLC0415

            kind = {"adamw_8bit": "AdamW8bit", "adamw_paged": "PagedAdamW32bit"}[config.kind]
            built: torch.optim.Optimizer = getattr(bitsandbytes.optim, kind)(
                groups, lr=rate, betas=betas, eps=epsilon
            )
            return built
        case "lion":
            return Lion(groups, lr=rate, betas=betas)
        case "muon":
            return Muon(groups, lr=rate, momentum=config.momentum, betas=betas, eps=epsilon)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=rate, eps=(None, epsilon))


def group_parameters(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Group the trainable parameters: matrices decay, vectors (norms, biases, lengths) do not.

    For Muon the matrices of the layers are groups of their own, apart from embeddings and the output layer.

    Raises:
        ConfigError: Nothing is trainable, or a pattern of ``rate_factors`` matches nothing.
    """
    factors = config.rate_factors
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    outer = _find_embeddings(model)
    names = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        names.append(name)
        pattern = next((each for each in factors if fnmatchcase(name, each)), None)
        # A parameter that ZeRO-3 cut when it was made is flat; it knows the shape that it had.
        is_matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
        decay = config.weight_decay if is_matrix else 0.0
        factor = factors[pattern] if pattern else 1.0
        is_stepped_whole = config.kind == "muon" and is_matrix and id(parameter) not in outer
        groups.setdefault((decay, factor, is_stepped_whole), []).append(parameter)
    if not groups:
        raise ConfigError("the model has no trainable parameter; check adapter.targets")
    check_rate_factors(factors, names)
    return [
        {"params": parameters, "weight_decay": decay, RATE_FACTOR: factor, MATRICES: is_stepped_whole}
        for (decay, factor, is_stepped_whole), parameters in groups.items()
    ]


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Give every group of ``optimizer``, or of DeepSpeed's around it, its share of the schedule's rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[RATE_FACTOR]


def _find_embeddings(model: nn.Module) -> set[int]:
    """Name by ``id`` the parameters whose rows are tokens: each is a vector of its own, not one matrix.

    An adapter of an embedding counts as its embedding does.
    """
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    find_head = getattr(model, "get_output_embeddings", None)
    if find_head is not None:
        modules.append(find_head())
    found = {id(parameter) for module in modules for parameter in module.parameters()}
    return found | {id(p) for name, p in model.named_parameters() if "lora_embedding_" in name}


def _build_deepspeed_adam(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    # Imported where it is wanted: the import looks for compilers, the first use compiles for a minute or two.
    from deepspeed.ops.adam import DeepSpeedCPUAdam  # noqa: PLC0415

    try:
        built: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    except Exception as error:
        # Whatever the compiler says, it is long, and goes to the log as the cause.
        raise ConfigError(
            "optimizer.kind=adamw_cpu: DeepSpeed's CPU Adam cannot be compiled here (it needs a C++ compiler "
            f"and ninja: {type(error).__name__}); use optimizer=adamw, which runs on the CPU as well"
        ) from error
    return built
