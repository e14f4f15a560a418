"""The cells of the matrix test: what each trains, how it is cut, and the plain loop it is compared with."""

import functools
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from launcher.compose import compose_run
from launcher.strategies import AUTOTP, FURTHER, MATRIX, STRATEGIES
from launcher.tree import ConfigTree
from tests.ranks.disk_case import on_disk
from tests.ranks.training_case import LENGTH, VOCABULARY, rate_at
from tests.reference_loop import Document, PlainStep, walk_plainly
from training.config.freeze import check_config
from training.config.schema import RunConfig
from training.model.load import build_model
from training.rules.check import check_rules

FP32 = 1e-5
"""Relative; sums in another order are off by about 1e-7 here."""

BF16_LOSS = 1e-3
BF16_GRAD_NORM = 0.03
"""Relative to the plain loop in fp32, from the same bf16 weights.

A bf16 number is off by up to 2^-9 = 0.2 %. A gradient has gone through some 30 roundings in this model; of
independent sign they add up to 0.2 % x sqrt(30) = 1.1 %, and over five steps the weights go apart by as much
again: 3 % in all. The loss is a mean over some 300 targets, whose errors are of independent sign too: 1.1 %
of a logit's size (0.2 nats, where the loss is 5) over sqrt(300), and ten times that for the weights: 0.1 %.
"""

CPU = torch.device("cpu")
STEPS = 5
HIDDEN = 64
DOCUMENTS_PER_STEP = 24
DOCUMENTS_PER_ROW = 3

Settings = tuple[tuple[str, object], ...]
METHODS: dict[str, Settings] = {
    "none": (("adapter", "none"),),
    "lora": (("adapter", "lora"),),
    "qlora": (("adapter", "qlora"),),
    "dora": (("adapter", "dora"),),
    "qdora": (("adapter", "dora"), ("adapter.base_bits", 4)),
}
PARTS: tuple[Settings, ...] = (
    (*METHODS["none"], ("adapter.frozen", "[*.layers.0.mlp.*]")),
    (*METHODS["none"], ("+optimizer.rate_factors", "{*embed*: 0.1, *mlp*: 2}")),
    (*METHODS["lora"], ("+optimizer.rate_factors", "{*lora_B*: 4}")),
    (*METHODS["lora"], ("adapter.trained_modules", "[embed_tokens]")),
    (*METHODS["qlora"], ("adapter.trained_modules", "[embed_tokens]")),
)
"""What else may be trained or left, and how fast."""

RATES = {"adamw": 3e-3, "lion": 3e-4, "muon": 3e-3, "adafactor": 3e-3}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One way to train the same documents."""

    learnt: Settings
    """Method and optimizer: what the plain loop does as well."""

    strategy: str
    precision: str
    ranks: int
    passes: int
    packed: bool
    on_gpu: bool = False

    @property
    def rows_per_step(self) -> int:
        """Samples per step: packed, three documents share one."""
        return DOCUMENTS_PER_STEP // (DOCUMENTS_PER_ROW if self.packed else 1)

    def config(self, folder: Path) -> RunConfig:
        """Cut this cell's run, and ask the rules about it."""
        return cut(
            compose(folder, self.learnt),
            {
                "precision": self.precision,
                # The tiny model's matrices would stay whole at stage 3 under the threshold of real ones.
                "strategy": {
                    **on_disk(STRATEGIES[self.strategy], folder),
                    "parameter_persistence_threshold": HIDDEN + 1,
                },
                "cluster": {"processes_per_node": self.ranks, "gpus_per_node": self.ranks * self.on_gpu},
                "batch": {
                    "global_batch_size": self.rows_per_step,
                    "micro_batch_size": self.rows_per_step // (self.ranks * self.passes),
                },
            },
        )


@functools.cache
def compose(folder: Path, learnt: Settings) -> RunConfig:
    """Compose a run on the tiny model in ``folder``; takes longer than to train some cells."""
    values = {
        "model.source": "huggingface",
        "model.path": folder,
        "model.tokenizer": "null",
        "strategy": "zero0",
        "batch.sequence_length": LENGTH,
        "loop.max_steps": STEPS,
        "schedule.warmup_steps": 2,
        "adapter.targets": "[q_proj,v_proj,down_proj]",
        "adapter.rank": 4,
        "adapter.alpha": 8,
        **dict(learnt),
    }
    # A group's choice would overwrite single settings that come before it.
    keys = sorted(values, key=lambda key: "." in key)
    overrides = [f"{key}={values[key]}" for key in keys]
    return compose_run(["experiment=tiny_smoke", *overrides], ConfigTree.open(None)).config


def cut(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """Change some settings, by section."""
    values = config.model_dump()
    for section, change in changes.items():
        values[section] = values[section] | change if isinstance(change, dict) else change
    changed = check_config(values)
    check_rules(changed)
    return changed


def list_cells(ranks: int) -> Iterator[Cell]:
    """List every cell that the page of strategies calls tested, for one number of processes."""
    for tested in (MATRIX, *FURTHER):
        for method, optimizer, strategy, precision in itertools.product(
            tested.methods, tested.optimizers, tested.strategies, tested.precisions
        ):
            learnt = (*METHODS[method], *learn_with(optimizer))
            whole = tested is MATRIX and precision == "fp32"
            # A single rank gathers nothing, and computes on what DeepSpeed has read from the disk.
            most = 2 if "both on NVMe" in strategy else ranks
            for passes, packed in list_cuts(most, whole=whole or (tested is AUTOTP and ranks > 1)):
                yield Cell(
                    learnt=learnt,
                    strategy=strategy,
                    precision=precision,
                    ranks=ranks,
                    passes=passes,
                    packed=packed,
                )
    for parts, strategy in itertools.product(PARTS, ("0", "2", "3")):
        if ranks == 2:
            learnt = (*parts, *learn_with("adamw"))
            yield Cell(learnt=learnt, strategy=strategy, precision="fp32", ranks=2, passes=4, packed=True)


def list_cuts(ranks: int, *, whole: bool) -> list[tuple[int, bool]]:
    """List passes per step, and whether rows are packed: all, or the one that cuts most on most ranks."""
    if whole:
        return [(1, True), (4, True), (1, False), (4, False)]
    return [(4, True)] if ranks == 2 else []


def learn_with(optimizer: str) -> Settings:
    """Choose an optimizer, at a rate at which the tiny model learns with it."""
    return (("optimizer", optimizer), ("optimizer.learning_rate", RATES[optimizer]))


def write_tiny_model(folder: Path, *, layers: int = 1) -> None:
    """Write the model that every cell and every plain loop begins with, in bf16."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=HIDDEN,
            intermediate_size=128,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            tie_word_embeddings=True,
        )
    )
    model.to(torch.bfloat16).save_pretrained(folder)


def build(config: RunConfig, device: torch.device = CPU) -> Any:
    """Build the run's model."""
    return build_model(
        config.model,
        config.adapter,
        precision=config.precision,
        device=device,
        seed=config.seed,
        activation_checkpointing="none",
    )


def make_documents() -> list[list[Document]]:
    """Make each step's documents, of different lengths, some full of targets and some with few."""
    dice, steps = random.Random(5), []
    for _ in range(STEPS):
        documents = []
        for _ in range(DOCUMENTS_PER_STEP):
            length = dice.randrange(8, LENGTH // DOCUMENTS_PER_ROW + 1)
            ids = [dice.randrange(VOCABULARY) if k % 3 else 7 for k in range(length)]
            first = dice.randrange(1, length)
            documents.append(Document(ids=ids, is_target=[k >= first for k in range(length)]))
        steps.append(documents)
    return steps


def lay_rows(documents: list[Document], *, packed: bool) -> list[list[Document]]:
    """Lay a step's documents into rows."""
    size = DOCUMENTS_PER_ROW if packed else 1
    return [documents[start : start + size] for start in range(0, len(documents), size)]


def walk_reference(learnt: Settings, folder: Path, device: torch.device = CPU) -> list[PlainStep]:
    """Train the same in the plain loop, in fp32."""
    config = compose(folder, learnt)
    model = build(config, device)
    return walk_plainly(
        model,
        make_documents(),
        plain_optimizer(model, config),
        learning_rate_at=rate_at(config),
        max_grad_norm=config.optimizer.max_grad_norm,
    )


def plain_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """Build the optimizer anew, from torch and from Lion's paper, with nothing of ours."""
    settings = config.optimizer
    groups: list[dict[str, Any]] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            factor = next((f for key, f in settings.rate_factors.items() if key.strip("*") in name), 1.0)
            groups.append({"params": [parameter], "weight_decay": decay, "factor": factor, "name": name})
    match settings.kind:
        case "lion":
            return PaperLion(groups, {"betas": (settings.beta1, settings.beta2)})
        case "muon":
            return PaperMuon(groups, betas=(settings.beta1, settings.beta2), eps=settings.epsilon)
        case "adafactor":
            return torch.optim.Adafactor(groups, eps=(None, settings.epsilon))
    return torch.optim.AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.epsilon)


class PaperMuon(torch.optim.AdamW):
    """Muon as arXiv:2502.16982 writes it, by singular values' own polynomial, and AdamW for the rest."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        matrices = [g for g in self.param_groups if g["params"][0].ndim == 2 and "embed" not in g["name"]]
        for group in matrices:
            [w] = group["params"]
            m = 0.95 * self.state[w].get("m", torch.zeros_like(w)) + 0.05 * w.grad
            self.state[w]["m"] = m
            ahead = 0.95 * m + 0.05 * w.grad
            u, s, v = torch.linalg.svd(ahead.double(), full_matrices=False)
            s /= s.norm().clamp(min=1e-7)
            for _ in range(5):
                s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            step = 0.2 * max(w.shape) ** 0.5 * (u * s) @ v
            w.copy_(w - group["lr"] * (step + group["weight_decay"] * w))
            w.grad = None  # AdamW passes over it
        super().step()


class PaperLion(torch.optim.Optimizer):
    """Lion as its paper's algorithm 2 writes it, line by line."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].get("m", torch.zeros_like(p))
                update = torch.sign(beta1 * m + (1 - beta1) * p.grad)
                self.state[p]["m"] = beta2 * m + (1 - beta2) * p.grad
                p.copy_(p - group["lr"] * (update + group["weight_decay"] * p))
