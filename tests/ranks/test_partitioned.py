"""Under ZeRO-3 a rank builds its share of the model alone: the same weights, the same steps, less memory."""

import functools
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from tests.model_folders import compare_models, write_llama
from tests.ranks.spawn import on_ranks
from tests.ranks.test_engine import open_place
from tests.ranks.training_case import LENGTH, make_batch, make_samples, rate_at
from training.config.schema import RunConfig

MIB = 1 << 20
SAMPLES = 4

METHODS: dict[str, tuple[str, ...]] = {
    "full": ("adapter=none",),
    "frozen": ("adapter=none", "adapter.frozen=[*.layers.0.mlp.*]"),
    "lora": ("adapter=lora", "adapter.trained_modules=[embed_tokens]"),
    "dora": ("adapter=dora",),
    "qlora": ("adapter=qlora",),
}
# (method, folder, precision, tokens that the model did not have)
CELLS = [
    ("full", "tied", "bf16", ()),
    ("full", "untied", "fp32", ("lisinopril",)),
    ("frozen", "tied", "fp32", ()),
    ("lora", "tied", "bf16", ("lisinopril", "metoprolol")),
    ("dora", "untied", "bf16", ()),
    ("qlora", "tied", "bf16", ()),
    ("qlora", "untied", "fp32", ()),
]


@functools.cache
def compose(method: str, ranks: int) -> RunConfig:
    settings = {
        "model.source": "huggingface",
        "model.path": "elsewhere",
        "model.tokenizer": "null",
        "strategy.zero_stage": 3,
        # The tiny model's matrices would stay whole under the threshold of real ones.
        "strategy.parameter_persistence_threshold": 65,
        "cluster.processes_per_node": ranks,
        "batch.sequence_length": LENGTH,
        "batch.global_batch_size": SAMPLES,
        "batch.micro_batch_size": SAMPLES // ranks,
    }
    values = [*METHODS[method], *(f"{key}={value}" for key, value in settings.items())]
    return compose_run(["experiment=tiny_smoke", *values], ConfigTree.open(None)).config


def configure(method: str, folder: Path, precision: str, tokens: Sequence[str], ranks: int) -> RunConfig:
    config = compose(method, ranks)
    model = config.model.model_copy(update={"path": str(folder), "extra_tokens": list(tokens)})
    # One of the two folders is read through the node's cache, which the ranks fill in a race.
    near = str(folder.parent / "node") if folder.name == "untied" else None
    loader = config.loader.model_copy(update={"model_cache_path": near})
    return config.model_copy(update={"model": model, "precision": precision, "loader": loader})


def build_whole(config: RunConfig) -> Any:
    from training.model.load import build_model

    return build_model(
        config.model,
        config.adapter,
        precision=config.precision,
        device=torch.device("cpu"),
        seed=config.seed,
        activation_checkpointing=config.strategy.activation_checkpointing,
    )


def gather(parameter: Any) -> torch.Tensor:
    """Give a parameter's whole tensor, also where it is cut."""
    import deepspeed

    if not hasattr(parameter, "ds_id"):
        return parameter.detach().clone()
    assert parameter.numel() == 0, "it is there whole"
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=None):
        return parameter.detach().clone()


def train(config: RunConfig, place: Any, model: Any) -> list[Any]:
    """Do two steps of an engine on ``model``; give what they reported."""
    from training.engine.deepspeed_engine import DeepSpeedEngine

    engine = DeepSpeedEngine(model, config, place)
    samples, plan, reported = make_samples(2), place.plan, []
    for step in range(2):
        first = step * SAMPLES + plan.first_sample(place.ranks.rank, 0)
        rows = samples[first : first + plan.micro_batch_size]
        reported.append(
            engine.train_step(
                [make_batch(rows, [0] * len(rows))],
                learning_rate=rate_at(config)(step + 2),
                samples_seen=step * SAMPLES,
                accept=lambda _: True,
            )
        )
    engine.close()
    return reported


def compare_cells(root: Path, ranks: int) -> list[list[str]]:
    """Build every cell's model in shares and whole; list what differs, in the models and in their steps."""
    from training.engine.partition import build_share

    differences = []
    for method, folder, precision, tokens in CELLS:
        config = configure(method, root / folder, precision, tokens, ranks)
        place = open_place(config)
        shared, why_whole = build_share(config, place)
        odd = [] if why_whole is None else [why_whole]
        odd += compare_models(shared, build_whole(config), gather)
        reported, expected = (train(config, place, model) for model in (shared, build_whole(config)))
        if reported != expected:
            odd.append(f"steps: {reported} and not {expected}")
        differences.append(odd)
    return differences


@pytest.mark.parametrize("ranks", [1, 2])
def test_shares_are_bit_by_bit_those_of_the_whole_model_and_so_are_the_steps(
    ranks: int, tmp_path: Path
) -> None:
    write_llama(tmp_path / "tied")
    write_llama(tmp_path / "untied", tie_word_embeddings=False, shard_bytes=60_000)

    for differences in on_ranks(ranks, compare_cells, tmp_path, ranks, timeout_seconds=600):
        assert dict(zip(CELLS, differences, strict=True)) == {cell: [] for cell in CELLS}
    assert len(list((tmp_path / "node").glob("*/model.safetensors.index.json"))) == 1


LAYER = {"hidden_size": 512, "intermediate_size": 2048}
LAYERS = 12
PRECISIONS = {"full": "fp32", "qlora": "bf16"}
"""The files have bf16: what a rank reads of them for fp32 becomes its own."""

PARAMETERS_PER_LAYER = 3 * 512 * 2048 + 3 * 512 * 512
"""Gated MLP and attention; with as many key and value heads as half the query heads."""


@contextmanager
def watching_anonymous_memory() -> Iterator[Callable[[], int]]:
    """Watch the bytes that this process alone has: pages of mapped files are the page cache's."""
    gc.collect()
    start, peak, ended = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.0005):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: max(peak, anonymous_bytes()) - start
    finally:
        ended.set()
        watcher.join()


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure_builds(root: Path) -> dict[str, dict[str, int]]:
    """Give the most memory that building takes in shares and whole, and what a rank's share itself takes."""
    import training.model.four_bit
    from training.engine.partition import build_share

    # Less than these tensors have: its cost is constant, and small beside real models alone.
    training.model.four_bit.AT_ONCE = 1 << 16
    measured = {}
    for method, precision in PRECISIONS.items():
        config = configure(method, root / "large", precision, (), 2)
        place = open_place(config)
        # What is imported and compiled at first is no part of the model.
        build_share(configure(method, root / "tiny", precision, (), 2), place)
        with watching_anonymous_memory() as peak_of_share:
            shared, why_whole = build_share(config, place)
            taken = peak_of_share()
        assert why_whole is None
        share = sum(bytes_of_share(parameter) for parameter in shared.parameters())
        del shared
        with watching_anonymous_memory() as peak_of_whole:
            whole = build_whole(config)
            measured[method] = {"shared": taken, "share": share, "whole": peak_of_whole()}
        del whole
    return measured


def bytes_of_share(parameter: Any) -> int:
    held = getattr(parameter, "ds_tensor", parameter)
    return int(held.numel() * held.element_size())


def test_building_takes_a_rank_no_more_memory_than_its_share_and_a_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is let go of goes back to the system at once: no build hides in the memory of an earlier one.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    write_llama(tmp_path / "tiny")
    write_llama(tmp_path / "large", num_hidden_layers=LAYERS, **LAYER, shard_bytes=40 * MIB)

    for measured in on_ranks(2, measure_builds, tmp_path, fresh=True):
        for method, bytes_of in measured.items():
            layer = PARAMETERS_PER_LAYER * (4 if PRECISIONS[method] == "fp32" else 2)
            assert bytes_of["shared"] <= bytes_of["share"] + layer, (method, bytes_of)
            assert bytes_of["whole"] > bytes_of["share"] + layer, (method, bytes_of)
