"""Build the model of a run: the base in 16 or 4 bits, the adapter on it, and what of it is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from training.config.learning import AdapterConfig, ModelConfig
from training.errors import ModelError, first_line
from training.model.activations import checkpoint_activations
from training.model.adapter import attach_adapter, check_new_rows, freeze_parts
from training.model.attention import choose_attention, register_attention
from training.model.kind import AnyModel
from training.model.place import find_model_folder
from training.model.products import widen_products
from training.model.quiet import quiet_upstream
from training.model.tokenizer import load_tokenizer
from training.model.vocabulary import fit_embeddings

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FOUR_BITS = 4


def build_model(
    model: ModelConfig,
    adapter: AdapterConfig,
    *,
    precision: str,
    device: torch.device,
    seed: int,
    activation_checkpointing: str | int,
) -> AnyModel:
    """Load the base, attach the adapter, choose the attention. The same call gives the same on every rank.

    Args:
        model: Where the weights are, further tokens, and the attention kernel.
        adapter: What is trained: all but the frozen parts, or an adapter and modules beside it.
        precision: ``bf16`` or ``fp32``: dtype of all weights that are not 4-bit, and of 4-bit arithmetic.
        device: Where the model lies when this returns.
        seed: Of the adapter's first values (its A matrices; B begins at 0).
        activation_checkpointing: Which layers are computed again in backward, and where their input waits.

    Raises:
        ModelError: The folder is missing, the architecture is unknown or cannot be packed, or a name in
            ``adapter`` is no part of the model.
    """
    register_attention()
    base = _load_base(model, adapter.base_bits, DTYPES[precision], device)
    prepare_forward(base, activation_checkpointing)
    grown = grow_embeddings(base, model)
    return train_parts(base, adapter, dtype=DTYPES[precision], seed=seed, grown=grown)


def prepare_forward(base: PreTrainedModel, activation_checkpointing: str | int) -> None:
    """Set how a forward pass of training goes: no key-value cache, layers computed again where asked."""
    base.config.use_cache = False
    checkpoint_activations(base, activation_checkpointing)


def train_parts(
    base: PreTrainedModel, adapter: AdapterConfig, *, dtype: torch.dtype, seed: int, grown: bool
) -> AnyModel:
    """Choose what is trained of a base with weights: all but frozen parts, or an adapter on it.

    Raises:
        ModelError: A name in ``adapter`` is no part of the model, or new rows would not be trained.
    """
    built: AnyModel = base
    if adapter.kind == "none":
        freeze_parts(base, adapter.frozen)
    else:
        built = attach_adapter(base, adapter, dtype=dtype, seed=seed)
    if grown:
        check_new_rows(built)
    widen_products(built)
    return built


def grow_embeddings(base: PreTrainedModel, model: ModelConfig) -> bool:
    """Give every token of the run's tokenizer a row; say whether there had been too few."""
    return fit_embeddings(base, count_wanted_rows(model))


def count_wanted_rows(model: ModelConfig) -> int:
    """Count the tokens of the run's tokenizer; 0 where it is the model's own, which fits it already."""
    # That one need not be read, which takes long for large ones.
    if not model.extra_tokens and model.tokenizer is None:
        return 0
    return len(load_tokenizer(model))


def _load_base(
    model: ModelConfig, base_bits: int, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    folder = find_model_folder(model)
    options: dict[str, Any] = {}
    if base_bits == FOUR_BITS:
        options["quantization_config"] = four_bit_config(dtype)
        if device.type == "cuda":
            # Quantised as it is read: the 16-bit model never has to fit on the device.
            options["device_map"] = {"": device}
    config = read_config(folder)
    attention = choose_attention(model.attention, device, dtype)
    try:
        with quiet_upstream():
            base: PreTrainedModel
            base, told = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                # Told to us and not on the screen, where the run would go on with random weights.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ModelError(f"{folder}: the model cannot be loaded ({first_line(error)})") from error
    check_architecture(base)
    _check_loaded(folder, told)
    _check_packed(folder, base)
    return base if options.get("device_map") else base.to(device)


def _check_loaded(folder: str, told: Mapping[str, Any]) -> None:
    """Refuse a model of which transformers has drawn some weights, because the files lack them."""
    for name, found, wanted in sorted(told["mismatched_keys"]):
        raise ModelError(
            f"{folder}: tensor {name} has shape {list(found)}, config.json wants {list(wanted)}; use the "
            "config.json that belongs to it"
        )
    for name in sorted(told["missing_keys"]):
        raise ModelError(
            f"{folder}: the tensor {name} is missing ({len(told['missing_keys'])} such); copy the model "
            "there again, or use the config.json that belongs to it"
        )


def _check_packed(folder: str, base: PreTrainedModel) -> None:
    """Refuse 4-bit weights of another shape, of which transformers says nothing."""
    for name, module in base.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and tuple(state.shape) != (module.out_features, module.in_features):
            raise ModelError(
                f"{folder}: tensor {name}.weight has shape {list(state.shape)}, config.json wants "
                f"{[module.out_features, module.in_features]}; use the config.json that belongs to it"
            )


def read_config(folder: str) -> Any:
    """Read a folder's config.json.

    Raises:
        ModelError: There is none, or of an architecture that transformers does not know.
    """
    try:
        with quiet_upstream():
            return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        where = "is no model folder" if Path(folder).is_dir() else "is neither a folder nor found on the hub"
        if isinstance(error, ValueError | KeyError):
            where = "has an architecture that this transformers does not know"
        raise ModelError(f"{folder} {where} ({first_line(error)}); check model.path") from error


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
