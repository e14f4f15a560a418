"""One small training problem, for the engine on any number of ranks and for the plain loop alike."""

import random
from functools import partial
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from tests.reference_loop import Document
from training.config.schema import RunConfig
from training.model.attention import DOCUMENTS, register_attention
from training.model.inputs import IGNORE_INDEX, Batch
from training.schedule import learning_rate_at

LENGTH = 96
SAMPLES_PER_STEP = 4
STEPS = 20
VOCABULARY = 256
SOURCES = 3


def source_of(sample: int) -> int:
    """Give the source number of a sample; source 1 has none."""
    return 2 if sample % SAMPLES_PER_STEP == 1 else 0


def make_config(**overrides: object) -> RunConfig:
    """Compose the smallest experiment, cut for this case."""
    settings = {
        "batch.sequence_length": LENGTH,
        "batch.global_batch_size": SAMPLES_PER_STEP,
        "loop.max_steps": STEPS,
        "schedule.warmup_steps": 2,
        "optimizer.learning_rate": 3e-3,
        "optimizer.weight_decay": 0.1,
        **overrides,
    }
    # A group's choice would overwrite single settings that come before it.
    keys = sorted(settings, key=lambda key: "." in key)
    overrides = ["experiment=tiny_smoke", *(f"{key}={settings[key]}" for key in keys)]
    return compose_run(overrides, ConfigTree.open(None)).config


def make_samples(steps: int = STEPS) -> list[list[Document]]:
    """Make rows of documents of different lengths, some of them full of targets and some with few."""
    dice = random.Random(5)
    samples = []
    for _ in range(steps * SAMPLES_PER_STEP):
        row, room = [], LENGTH - dice.randrange(0, 12)
        while room >= 8:
            length = min(room, dice.randrange(8, 48))
            ids = [dice.randrange(VOCABULARY) if k % 3 else 7 for k in range(length)]
            first = dice.randrange(1, length)
            row.append(Document(ids=ids, is_target=[k >= first for k in range(length)]))
            room -= length
        samples.append(row)
    return samples


def make_model(*, adapter: bool, dtype: torch.dtype = torch.float32) -> Any:
    """Build the same tiny model wherever it is called."""
    register_attention()
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            tie_word_embeddings=True,
            attn_implementation=DOCUMENTS,
        )
    ).to(dtype)
    if adapter:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    return model


def make_batch(rows: list[list[Document]], numbers: list[int]) -> Batch:
    """Lay rows end to end, padded to LENGTH each; ``numbers`` are the rows' sources."""
    ids: list[int] = []
    sources: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    bounds = [0]
    tokens = 0
    for row, number in zip(rows, numbers, strict=True):
        pieces = [*row]
        sources += [number] * len(row)
        rest = LENGTH - sum(len(document.ids) for document in row)
        tokens += LENGTH - rest
        if rest:
            pieces.append(Document(ids=[0] * rest, is_target=[False] * rest))
            sources.append(0)
        for piece in pieces:
            ids += piece.ids
            nexts = zip(piece.ids[1:], piece.is_target[1:], strict=True)
            labels += [token if wanted else IGNORE_INDEX for token, wanted in nexts] + [IGNORE_INDEX]
            positions += range(len(piece.ids))
            bounds.append(len(ids))
    return Batch(
        input_ids=torch.tensor([ids]),
        labels=torch.tensor([labels]),
        position_ids=torch.tensor([positions]),
        document_bounds=tuple(bounds),
        source_ids=tuple(sources),
        tokens=tokens,
        targets=sum(label != IGNORE_INDEX for label in labels),
    )


def rate_at(config: RunConfig) -> Any:
    """Give the run's learning rate as a function of the step."""
    return partial(
        learning_rate_at,
        optimizer=config.optimizer,
        schedule=config.schedule,
        max_steps=config.loop.max_steps,
    )
