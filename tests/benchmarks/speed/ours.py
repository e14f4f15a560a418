"""How Métier trains them: through its loop and engine, and two ways that leave some of that out.

    python -m tests.benchmarks.speed.ours CASE

The parent starts it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from tests.benchmarks.speed.case import SHAPES, Case, draw_lengths
from tests.benchmarks.speed.rounds import Rounds
from tests.benchmarks.speed.side import Variants, train_until_told
from tests.synthetic_corpus import write_corpus
from training.batch import plan_batch
from training.collectives import join
from training.config.schema import RunConfig
from training.data.order.plan import open_plan
from training.data.reading.loader import BatchStream, build_stream
from training.data.reading.reader import open_corpus
from training.early_stop import HeldOutLoss
from training.layout import RunLayout
from training.loop import train
from training.metrics.record import StepRecord
from training.metrics.sink import open_metrics
from training.model.activations import checkpoint_activations
from training.model.attention import DOCUMENTS, register_attention
from training.model.inputs import Batch, find_targets
from training.model.loss import linear_cross_entropy
from training.model.packed import PackedLanguageModel
from training.model.products import widen_products
from training.optimizers.build import build_optimizer
from training.parts import Parts
from training.progress import Progress
from training.ranks import Ranks
from training.rules.check import check_rules

STEPS = 1_000_000
CPU = torch.device("cpu")


def write_documents(case: Case) -> None:
    """Write the corpus that ``draw_lengths`` describes, every token a target; and its packing plan."""
    root = corpus_root(case)
    if root.exists():
        return
    lengths = draw_lengths(case.corpus, case.sequence_length)
    vocabulary = SHAPES[case.shape]["vocab_size"]
    write_corpus(
        root,
        {"notes": lengths},
        tokens_per_shard=1 << 22,
        token_bytes=4,
        vocabulary=vocabulary,
        prompts=False,
    )
    open_plan(open_corpus(root, "train"), case.sequence_length, "refuse")


def corpus_root(case: Case) -> Path:
    """Say where a case's corpus lies."""
    return Path(case.folder) / f"{case.corpus}_{case.shape}_{case.sequence_length}"


def compose(case: Case) -> RunConfig:
    """Compose the case's run from the smallest experiment."""
    overrides = [
        "experiment=tiny_smoke",
        "schedule=constant",
        "schedule.warmup_steps=0",
        "optimizer.learning_rate=1e-4",
        f"precision={case.precision}",
        f"strategy.zero_stage={case.zero_stage}",
        f"cluster.processes_per_node={case.world_size}",
        f"batch.sequence_length={case.sequence_length}",
        f"batch.micro_batch_size={case.micro_batch_size}",
        f"batch.global_batch_size={case.micro_batch_size * case.world_size}",
        f"data.path={corpus_root(case)}",
        f"loop.max_steps={STEPS}",
        f"loop.log_every_steps={STEPS}",
        f"loop.checkpoint_every_steps={STEPS}",
        *case.overrides,
    ]
    config = compose_run(overrides, ConfigTree.open(None)).config
    check_rules(config)
    return config


def build(case: Case, config: RunConfig) -> LlamaForCausalLM:
    """Build the model from random weights."""
    register_attention()
    torch.manual_seed(1)
    settings = LlamaConfig(
        **SHAPES[case.shape], tie_word_embeddings=False, use_cache=False, attn_implementation=DOCUMENTS
    )
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    model = LlamaForCausalLM(settings).to(dtype)
    checkpoint_activations(model, config.strategy.activation_checkpointing)
    widen_products(model)
    return model


def open_stream(config: RunConfig, ranks: Ranks) -> BatchStream:
    """Open this rank's stream of packed batches."""
    plan = plan_batch(config.batch, ranks.world_size)
    corpus = open_corpus(config.data.path, "train", config.loader)
    return build_stream(corpus, plan, config, rank=ranks.rank, samples_seen=0)


def open_place(config: RunConfig, ranks: Ranks) -> Any:
    """Meet the other ranks."""
    from training.engine.deepspeed_engine import Place

    join(ranks, device=CPU, timeout_seconds=600)
    return Place(ranks=ranks, device=CPU, plan=plan_batch(config.batch, ranks.world_size))


class CountedMetrics:
    """The run's real sink, and the end of each step."""

    def __init__(self, layout: RunLayout, config: RunConfig, ranks: Ranks, rounds: Rounds) -> None:
        self._sink = open_metrics(layout, config, ranks, incarnation=0, flops_per_token=None, peak_flops=None)
        self._rounds = rounds
        self._ranks = ranks.world_size

    def log(self, record: StepRecord) -> None:
        self._sink.log(record)
        # Each process tells its own part; with equal rows all have the same.
        self._rounds.after_step(record.tokens // self._ranks)

    def rewind(self, progress: Progress) -> None:
        self._sink.rewind(progress)

    def event(self, kind: str, **facts: object) -> None:
        self._sink.event(kind, **facts)


class NoCheckpoints:
    """Keeps nothing."""

    def save(self, progress: Progress, *, final: bool, score: float | None) -> None:
        pass

    def wait_until_copied(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def resume(self, *, every: int = 1) -> Progress:
        return Progress(step=0, samples_seen=0)


class NeverStop:
    """Nobody wishes that we end."""

    def is_set(self) -> bool:
        return False


def loop(case: Case, rounds: Rounds) -> None:
    """Train through the product's loop, engine and stream, its journal written."""
    from training.engine.deepspeed_engine import DeepSpeedEngine
    from training.worker.run import memory_peak_bytes

    config, ranks = compose(case), Ranks.from_environ(os.environ)
    place = open_place(config, ranks)
    layout = RunLayout(Path(case.folder) / f"run_{os.getpid()}")
    layout.root.mkdir()

    def no_held_out(_: Progress) -> HeldOutLoss:
        raise RuntimeError("nothing is held out here")

    parts: Parts[Batch] = Parts(
        batches=open_stream(config, ranks),
        engine=DeepSpeedEngine(build(case, config), config, place),
        checkpoints=NoCheckpoints(),
        metrics=CountedMetrics(layout, config, ranks, rounds),
        stop=NeverStop(),
        sources=["notes"],
        learning_rate_at=lambda _: config.optimizer.learning_rate,
        memory_peak_bytes=lambda: memory_peak_bytes(CPU),
        blame=lambda *_: [],
        tell_memory=lambda: None,
        measure_held_out=no_held_out,
        take_blocked_seconds=lambda: 0.0,
    )
    train(parts, config.loop, Progress(step=0, samples_seen=0))


def bare(case: Case, rounds: Rounds) -> None:
    """Train our model in a bare torch loop: no engine, no sharding, no guards, no journal."""
    config = compose(case)
    model = build(case, config)
    packed = PackedLanguageModel(model).train()
    train_bare(config, model, lambda batch: packed(batch)[0], rounds)


def bare_dense(case: Case, rounds: Rounds) -> None:
    """Do the same with transformers' own sdpa, which makes a dense mask of positions that restart."""
    config = compose(case)
    model = build(case, config)
    model.set_attn_implementation("sdpa")

    def nats(batch: Batch) -> torch.Tensor:
        hidden = model.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        places = find_targets(batch)
        rows, targets = hidden.last_hidden_state[0][places], batch.labels[0][places]
        return linear_cross_entropy(rows, model.lm_head.weight, None, targets)[0]

    train_bare(config, model, nats, rounds)


def train_bare(
    config: RunConfig, model: LlamaForCausalLM, nats: Callable[[Batch], torch.Tensor], rounds: Rounds
) -> None:
    """Step until the parent has enough."""
    optimizer = build_optimizer(model.train(), config.optimizer)
    for batch in batches(open_stream(config, Ranks(rank=0, local_rank=0, world_size=1))):
        (nats(batch) / batch.targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        rounds.after_step(batch.tokens)


def bare_deepspeed(case: Case, rounds: Rounds) -> None:
    """Train our model in a bare DeepSpeed loop with our settings of it: the same arithmetic, no guards."""
    import deepspeed

    from training.deepspeed_config import build_deepspeed_config
    from training.engine import deepspeed_engine
    from training.model.shape import measure_shape

    config, ranks = compose(case), Ranks.from_environ(os.environ)
    place: deepspeed_engine.Place = open_place(config, ranks)
    model = build(case, config)
    engine, *_ = deepspeed.initialize(
        model=PackedLanguageModel(model).train(),
        optimizer=build_optimizer(model, config.optimizer),
        config=build_deepspeed_config(config, place.plan, measure_shape(model)),
        dist_init_required=False,
    )
    for batch in batches(open_stream(config, ranks)):
        engine.backward(engine(batch)[0] / batch.targets)
        engine.step()
        rounds.after_step(batch.tokens)


def batches(stream: BatchStream) -> Iterator[Batch]:
    """Give the one batch of each step."""
    step: Sequence[Batch]
    for step in stream:
        [batch] = step
        yield batch


VARIANTS: Variants = {
    "loop": loop,
    "bare": bare,
    "bare_dense": bare_dense,
    "bare_deepspeed": bare_deepspeed,
}


if __name__ == "__main__":
    train_until_told(VARIANTS)
