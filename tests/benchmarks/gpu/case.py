"""What is measured on a GPU: shapes of real models with random weights, and ways to train them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

_LLAMA = {"num_key_value_heads": 8, "vocab_size": 128_256}
SHAPES: dict[str, dict[str, Any]] = {
    # Of Llama 3.2 1B and 3B, and of Llama 3.1 8B: their config.json.
    "1B": _LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "3B": _LLAMA
    | {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "tie_word_embeddings": True,
    },
    "8B": _LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    # For trying this benchmark itself, where there is no GPU.
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one process trains, and how."""

    table: str
    name: str
    trainer: str = "ours"
    """A function of ``child``."""

    shape: str = "1B"
    lengths: str = "blocks"
    """blocks: each row is one document; sft: log-normal documents of mean 600 tokens, packed or padded."""

    sequence_length: int = 4096
    micro_batch_size: int = 2
    overrides: tuple[str, ...] = ()
    """Settings of ours."""

    warm_steps: int = 3
    steps: int = 6


def list_cases() -> list[Case]:
    """List all cases, the first of each table being what the others are compared with."""
    full = ("strategy=zero2",)
    qlora = ("adapter=qlora", "strategy=zero0", "strategy.activation_checkpointing=full")
    lora = ("adapter=lora", "strategy=zero0", "strategy.activation_checkpointing=full")
    one = Case(table="1B, all weights", name="ZeRO 2, varlen attention", overrides=full)

    def variant(name: str, *overrides: str) -> Case:
        return Case(table=one.table, name=name, overrides=(*full, *overrides))

    padded = {"lengths": "sft", "micro_batch_size": 4, "overrides": full}
    return [
        one,
        variant("attention by document, sdpa", "model.attention=documents"),
        variant("flex attention", "model.attention=flex"),
        variant("compiled layers", "strategy.compile=layers"),
        variant("activation checkpointing", "strategy.activation_checkpointing=full"),
        variant("of every 2nd layer", "strategy.activation_checkpointing=2"),
        variant("inputs on the host", "strategy.activation_checkpointing=offload"),
        variant("8-bit AdamW", "optimizer=adamw_8bit"),
        variant("deterministic", "deterministic=true"),
        variant("ZeRO 0", "strategy=zero0"),
        variant("ZeRO 1", "strategy=zero1"),
        variant("ZeRO 3", "strategy=zero3"),
        Case(table="1B, all weights", name="HF Trainer", trainer="hf_trainer"),
        Case(table="1B, documents of mean 600", name="ours, packed", **padded),
        Case(table="1B, documents of mean 600", name="HF Trainer, padded", trainer="hf_trainer", **padded),
        Case(table="1B, documents of mean 600", name="TRL, packed", trainer="trl", **padded),
        Case(table="larger", name="3B, all weights", shape="3B", micro_batch_size=1, overrides=full),
        Case(table="larger", name="8B, LoRA", shape="8B", overrides=lora),
        Case(table="larger", name="8B, QLoRA", shape="8B", overrides=qlora),
        Case(table="larger", name="3B, QLoRA", shape="3B", overrides=qlora),
    ]


def draw_lengths(case: Case, tokens: int) -> list[int]:
    """Draw documents until they have at least so many tokens; the same for everybody."""
    if case.lengths == "blocks":
        return [case.sequence_length] * -(-tokens // case.sequence_length)
    dice, drawn = np.random.default_rng(0), []
    while sum(drawn) < tokens:
        drawn.append(int(np.clip(dice.lognormal(np.log(600) - 0.32, 0.8), 16, case.sequence_length)))
    return drawn
