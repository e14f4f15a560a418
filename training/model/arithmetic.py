"""What a model costs, from its config.json alone: parameters and arithmetic. Pure numbers, no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.errors import ModelError

_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3", "ministral"})
"""Decoders of RMSNorm, rotary attention and a gated MLP, whose parameters are counted alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """Parameters of a decoder, by where they are."""

    embedding: int
    layers: int
    final_norm: int
    output_layer: int
    """0 where it is tied to the embedding."""

    @property
    def total(self) -> int:
        """All of them, tied ones once."""
        return self.embedding + self.layers + self.final_norm + self.output_layer


def count_parameters(architecture: Mapping[str, Any]) -> ParameterCount | None:
    """Count the parameters that a config.json describes; None for a family that is not known here.

    Args:
        architecture: The mapping of config.json: ``model_type``, ``hidden_size`` and so on. Keys that are
            missing have the meaning that transformers gives them.
    """
    family = architecture.get("model_type")
    if family not in _FAMILIES:
        return None
    hidden, vocabulary = int(architecture["hidden_size"]), int(architecture["vocab_size"])
    heads, kv_heads, head_size = _heads(architecture)
    bias = bool(architecture.get("attention_bias", False))
    query, key = heads * head_size, kv_heads * head_size
    attention = hidden * (query + 2 * key) + query * hidden
    if family == "qwen2":
        attention += query + 2 * key
    elif bias:
        attention += query + 2 * key + hidden
    if family == "qwen3":
        attention += 2 * head_size
    inner = int(architecture["intermediate_size"])
    mlp = 3 * hidden * inner + ((2 * inner + hidden) if architecture.get("mlp_bias", False) else 0)
    tied = bool(architecture.get("tie_word_embeddings", family == "smollm3"))
    return ParameterCount(
        embedding=vocabulary * hidden,
        layers=int(architecture["num_hidden_layers"]) * (attention + mlp + 2 * hidden),
        final_norm=hidden,
        output_layer=0 if tied else vocabulary * hidden,
    )


def flops_per_token(
    architecture: Mapping[str, Any], attended_tokens: float, *, frozen_base: bool
) -> float | None:
    """Give the floating-point operations of forward and backward for one token; None for unknown families.

    PaLM's count (arXiv:2204.02311, appendix B): 6 N + 12 L H Q T, N the parameters in matrix products
    (the embedding's look-up is none, the output layer is one, tied or not), L layers, H heads of size Q,
    T the tokens that a token attends to. A frozen base needs no gradient of its weights: 4 N, while
    attention stays. Recomputed activations do not count: they are a cost and no use.

    Args:
        architecture: The mapping of config.json.
        attended_tokens: T: how many tokens a document's token looks back on, on the average, as PaLM counts
            it: the document's whole length, causal or not.
        frozen_base: Adapter training; the adapter's own share (a few percent at most) is left out.
    """
    count = count_parameters(architecture)
    if count is None:
        return None
    multiplied = count.layers + int(architecture["vocab_size"]) * int(architecture["hidden_size"])
    heads, _, head_size = _heads(architecture)
    attention = 12 * int(architecture["num_hidden_layers"]) * heads * head_size * attended_tokens
    return (4 if frozen_base else 6) * multiplied + attention


_PEAK_TERAFLOPS: tuple[tuple[str, float], ...] = (
    # Dense bf16 tensor-core rates of NVIDIA's data sheets, without sparsity; the first name found in the
    # device's name counts, so that the longer ones come first.
    ("GB200", 2500.0),
    ("B300", 2250.0),
    ("B200", 2250.0),
    ("GH200", 989.4),
    ("H200 NVL", 835.5),
    ("H200", 989.4),
    ("H100 NVL", 835.5),
    ("H100 PCIE", 756.0),
    ("H100", 989.4),
    ("H800", 989.4),
    ("H20", 148.0),
    ("A100", 311.9),
    ("A800", 311.9),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("A6000", 154.8),
    ("A40", 149.7),
    ("A30", 165.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("V100", 125.0),
)
"""V100 has no bf16; its rate is fp16's. RTX A6000 and A40 accumulate in fp32."""


def peak_flops(device_name: str) -> float | None:
    """Give a device's dense bf16 peak in operations per second, by its name; None where it is not known.

    Nothing is guessed: mfu is absent for a device that is not listed, as for every CPU.

    Args:
        device_name: As ``torch.cuda.get_device_name`` says, for instance ``NVIDIA H100 80GB HBM3``.
    """
    words = device_name.upper().replace("-", " ")
    if "RTX" in words and "A6000" not in words:
        return None
    padded = f" {words} "
    for name, teraflops in _PEAK_TERAFLOPS:
        if f" {name} " in padded:
            return teraflops * 1e12
    return None


def check_heads(architecture: Mapping[str, Any], sequence_parallel_size: int) -> None:
    """Refuse a model whose heads cannot be shared out evenly.

    Args:
        architecture: The mapping of config.json.
        sequence_parallel_size: Ranks that share them; fewer key-value heads than ranks are copied.

    Raises:
        ModelError: One line that names sizes that go.
    """
    size = sequence_parallel_size
    if size == 1:
        return
    heads, key_heads = _count_heads(architecture)
    if _divides(heads, key_heads, size):
        return
    choices = [str(each) for each in range(1, heads + 1) if _divides(heads, key_heads, each)]
    raise ModelError(
        f"strategy.sequence_parallel_size={size} cannot share out the model's {heads} attention heads with "
        f"{key_heads} key-value heads; use {' or '.join([', '.join(choices[:-1]), choices[-1]])}"
    )


def check_tensor_cut(architecture: Mapping[str, Any], tensor_parallel_size: int) -> None:
    """Refuse a model whose heads and inner features cannot be shared out evenly.

    Args:
        architecture: The mapping of config.json.
        tensor_parallel_size: Ranks that share each layer's matrices.

    Raises:
        ModelError: One line that names sizes that go.
    """
    heads, key_heads = _count_heads(architecture)
    inner = int(architecture.get("intermediate_size") or heads)
    most = math.gcd(heads, key_heads, inner)
    if most % tensor_parallel_size:
        choices = [str(size) for size in range(1, most + 1) if most % size == 0]
        raise ModelError(
            f"strategy.tensor_parallel_size={tensor_parallel_size} cannot share out the model's {heads} "
            f"attention heads with {key_heads} key-value heads and {inner} inner features; use "
            f"{' or '.join(filter(None, [', '.join(choices[:-1]), choices[-1]]))}"
        )


_HEAD_NAMES = ("num_attention_heads", "n_head", "n_heads", "num_heads")


def _count_heads(architecture: Mapping[str, Any]) -> tuple[int, int]:
    """Give the query heads and the key-value heads that a config.json describes.

    Raises:
        ModelError: It does not say how many there are, under any name that is known here.
    """
    found = [int(architecture[name]) for name in _HEAD_NAMES if architecture.get(name)]
    if not found:
        raise ModelError(
            f"config.json of this model ({architecture.get('model_type')}) does not say how many attention "
            f"heads it has, by the names {', '.join(_HEAD_NAMES)}; its ranks cannot share out its heads"
        )
    return found[0], int(architecture.get("num_key_value_heads") or found[0])


def _heads(architecture: Mapping[str, Any]) -> tuple[int, int, int]:
    """Give query heads, key-value heads, and the size of one."""
    heads, kv_heads = _count_heads(architecture)
    head_size = int(architecture.get("head_dim") or int(architecture["hidden_size"]) // heads)
    return heads, kv_heads, head_size


def _divides(heads: int, key_heads: int, size: int) -> bool:
    return heads % size == 0 and (key_heads % size == 0 or size % key_heads == 0)
