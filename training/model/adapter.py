"""What of a model is trained: all of it but the frozen parts, or an adapter and some whole modules."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from training.config.learning import AdapterConfig
from training.errors import ModelError, first_line
from training.model.kind import AnyModel, base_of
from training.model.quiet import quiet_upstream
from training.rules.names import all_frozen, check_targets, check_trained_modules, match_frozen

if TYPE_CHECKING:
    from peft import PeftModel


def freeze_parts(base: PreTrainedModel, patterns: Sequence[str]) -> None:
    """Take the parameters whose names match a pattern out of the training; a tied one under either name.

    Raises:
        ModelError: A pattern matches no parameter, or nothing is left to train.
    """
    named = dict(base.named_parameters(remove_duplicate=False))
    for name in match_frozen(patterns, named):
        named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise all_frozen()  # the rest is tied to what is frozen


def attach_adapter(
    base: PreTrainedModel, adapter: AdapterConfig, *, dtype: torch.dtype, seed: int
) -> "PeftModel":
    """Put an adapter on ``base``; it and ``adapter.trained_modules`` alone require a gradient afterwards.

    A module that is trained whole gets a copy, so that the frozen base stays what it was; an output layer
    that is tied to the embedding stays tied to its copy.

    Raises:
        ModelError: One of ``adapter.targets`` or ``adapter.trained_modules`` names no module.
    """
    # With bitsandbytes, which it imports, a fifth of the time that all imports take.
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415

    forbid_repacking(base)
    check_targets(adapter.targets, _name_linear(base))
    names = [name for name, _ in base.named_parameters(remove_duplicate=False)]
    check_trained_modules(adapter.trained_modules, names, _name_four_bit(base))
    settings = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        use_rslora=adapter.rank_stabilized,
        use_dora=adapter.kind == "dora",
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets,
        modules_to_save=list(adapter.trained_modules) or None,
        ensure_weight_tying=_trains_tied_embedding(base, adapter.trained_modules),
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=_cuda_of(base)), quiet_upstream():
            torch.manual_seed(seed)
            model: PeftModel = get_peft_model(base, settings, autocast_adapter_dtype=False)
    except (ValueError, TypeError) as error:
        raise ModelError(f"adapter.targets={adapter.targets}: {first_line(error)}") from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or ".modules_to_save." in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return model


def forbid_repacking(base: nn.Module) -> None:
    """Let 4-bit layers keep their blocks in the form in which they are trained and saved.

    On a CPU with AVX512-BF16 bitsandbytes 0.50 packs a layer's blocks anew at its first call without a
    gradient, for good and with scales of 8 significant bits, whether or not its rows can be packed so
    (bitsandbytes/nn/modules.py, Linear4bit.forward): a held-out loss would change what is trained.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - torch types attributes narrowly


def check_new_rows(model: AnyModel) -> None:
    """Refuse embeddings that grew for new tokens and are not trained: the new rows would stay guesses.

    Raises:
        ModelError: It names the module that ``adapter.trained_modules`` lacks.
    """
    base = base_of(model)
    for module in (base.get_input_embeddings(), base.get_output_embeddings()):
        if not module.weight.requires_grad:
            name = next(name for name, each in base.named_modules() if each is module).rpartition(".")[2]
            raise ModelError(
                f"{name} had no row for some tokens of the tokenizer (see model.extra_tokens), and it is not "
                f"trained; add {name} to adapter.trained_modules, or take it out of adapter.frozen"
            )


def _trains_tied_embedding(base: PreTrainedModel, trained: Sequence[str]) -> bool:
    """Whether a module of ``trained`` shares its weight with the output layer, which must follow it."""
    one, other = base.get_input_embeddings(), base.get_output_embeddings()
    names = {name.rpartition(".")[2] for name, module in base.named_modules() if module in {one, other}}
    return one.weight is other.weight and not names.isdisjoint(trained)


def _cuda_of(base: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in base.parameters() if p.device.type == "cuda"})


def _name_linear(base: PreTrainedModel) -> list[str]:
    head = base.get_output_embeddings()
    return [name for name, module in base.named_modules() if _is_linear(module) and module is not head]


def _name_four_bit(base: PreTrainedModel) -> set[str]:
    return {name for name, module in base.named_modules() if type(module).__name__ == "Linear4bit"}


def _is_linear(module: nn.Module) -> bool:
    # bitsandbytes' Linear4bit is one as well; transformers' Conv1D (GPT-2) is what peft adapts too.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
