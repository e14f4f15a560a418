"""Build the model of a run: the base in 16 or 4 bits, the adapter on it, and what of it is trained."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from training.config.schema import AdapterConfig, ModelConfig
from training.errors import ModelError
from training.model.attention import choose_attention, register_attention
from training.model.folder import find_model_folder
from training.model.quiet import quiet_upstream

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_FOUR = 4


def build_model(
    model: ModelConfig,
    adapter: AdapterConfig,
    *,
    precision: str,
    device: torch.device,
    seed: int,
    activation_checkpointing: str,
) -> PreTrainedModel | PeftModel:
    """Load the base, attach the adapter, choose the attention. The same call gives the same on every rank.

    Args:
        model: Where the weights are, and the attention kernel.
        adapter: What is trained: with ``lora`` only the adapter requires a gradient.
        precision: ``bf16`` or ``fp32``: dtype of all weights that are not 4-bit, and of 4-bit arithmetic.
        device: Where the model lies when this returns.
        seed: Of the adapter's first values (its A matrices; B begins at 0).
        activation_checkpointing: ``none``, or ``full``: each layer is computed again in backward.

    Raises:
        ModelError: The folder is missing, the architecture is unknown or cannot be packed, or an adapter's
            target names no module.
    """
    register_attention()
    base = _load_base(model, adapter.base_bits, DTYPES[precision], device)
    base.config.use_cache = False
    if activation_checkpointing == "full":
        enable_activation_checkpointing(base)
    if adapter.kind == "none":
        return base
    return attach_adapter(base, adapter, dtype=DTYPES[precision], seed=seed)


def _load_base(
    model: ModelConfig, base_bits: int, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    folder = find_model_folder(model)
    options: dict[str, Any] = {}
    if base_bits == _FOUR:
        options["quantization_config"] = four_bit_config(dtype)
        if device.type == "cuda":
            # Quantised as it is read: the 16-bit model never has to fit on the device.
            options["device_map"] = {"": device}
    config = _read_config(folder)
    attention = choose_attention(model.attention, device, dtype)
    try:
        with quiet_upstream():
            base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=dtype, attn_implementation=attention, **options
            )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{folder}: the model cannot be loaded ({_first_line(error)})") from error
    check_architecture(base)
    return base if options.get("device_map") else base.to(device)


def _read_config(folder: str) -> Any:
    try:
        with quiet_upstream():
            return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        where = "is no model folder" if Path(folder).is_dir() else "is neither a folder nor found on the hub"
        if isinstance(error, ValueError | KeyError):
            where = "has an architecture that this transformers does not know"
        raise ModelError(f"{folder} {where} ({_first_line(error)}); check model.path") from error


def enable_activation_checkpointing(base: PreTrainedModel) -> None:
    """Compute each layer again in backward, keeping its input only; without re-entering autograd."""
    options = {"use_reentrant": False}
    # transformers renamed it; the older name warns since.
    if hasattr(base, "activation_checkpointing_enable"):
        base.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def four_bit_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation (arXiv:2305.14314, section 3), computing in ``dtype``.

    The packed blocks are stored in tensors that call themselves ``dtype``: the bits are the same, and ZeRO-3
    can share them out among the ranks as it does all others (bitsandbytes docs, "fsdp_qlora").
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )


def check_architecture(base: PreTrainedModel) -> None:
    """Refuse models in which packed documents would see each other, or whose logits are not linear.

    Raises:
        ModelError: One line that names what is not supported.
    """
    config, name = base.config, type(base).__name__
    if not getattr(base, "_supports_attention_backend", False):
        raise ModelError(f"{name} takes no attention function; its documents cannot be kept apart in a row")
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds:
        raise ModelError(
            f"{name} has layers of kind {', '.join(sorted(kinds))}, which carry state from one document of a "
            "row to the next; use a model of attention layers alone"
        )
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        if getattr(config, key, None) is not None:
            raise ModelError(f"{name} has {key}, which the fused loss does not compute; use another model")


def attach_adapter(
    base: PreTrainedModel, adapter: AdapterConfig, *, dtype: torch.dtype, seed: int
) -> PeftModel:
    """Put a LoRA adapter on ``base``; nothing else requires a gradient afterwards.

    Raises:
        ModelError: One of ``adapter.targets`` names no module.
    """
    _check_targets(base, adapter.targets)
    settings = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets,
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=_cuda_of(base)), quiet_upstream():
            torch.manual_seed(seed)
            model: PeftModel = get_peft_model(base, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ModelError(f"adapter.targets={adapter.targets}: {_first_line(error)}") from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return model


def _cuda_of(base: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in base.parameters() if p.device.type == "cuda"})


def _check_targets(base: PreTrainedModel, targets: str | list[str]) -> None:
    if isinstance(targets, str):
        return
    head = base.get_output_embeddings()
    names = [name for name, module in base.named_modules() if _is_linear(module) and module is not head]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = sorted({name.rsplit(".", 1)[-1] for name in names})
            raise ModelError(
                f"adapter.targets names {target}, which is no linear layer of the model's body; "
                f"it has {', '.join(known)}; or use all-linear"
            )


def _is_linear(module: nn.Module) -> bool:
    # bitsandbytes' Linear4bit is one as well; transformers' Conv1D (GPT-2) is what peft adapts too.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
