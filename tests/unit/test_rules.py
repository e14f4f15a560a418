"""Settings that are right alone and wrong together are refused, with what to use instead."""

import functools
from typing import Any

import pytest

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from training.config.freeze import check_config
from training.config.schema import RunConfig
from training.errors import ConfigError
from training.rules import check_rules


@functools.cache
def tiny_smoke() -> RunConfig:
    return compose_run(["experiment=tiny_smoke"], ConfigTree(None)).config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"batch.global_batch_size": 3, "cluster.processes_per_node": 2},
            "batch.global_batch_size=3 is not a multiple of batch.micro_batch_size x world_size = 1 x 2 = 2; "
            "use 2 or 4",
        ),
        (
            {"adapter.base_bits": 4},
            "adapter.base_bits=4 needs adapter.kind=lora: 4-bit weights cannot be trained; use adapter=qlora",
        ),
        ({"export.form": "adapter"}, "export.form=adapter needs an adapter; use export.form=merged"),
        (
            {"strategy.offload_parameters": "cpu"},
            "strategy.offload_parameters=cpu needs strategy.zero_stage=3, found 2",
        ),
        (
            {"strategy.zero_stage": 0, "strategy.offload_optimizer": "cpu"},
            "strategy.offload_optimizer=cpu needs strategy.zero_stage=1, 2 or 3",
        ),
        (
            {"loop.max_steps": 3, "schedule.kind": "wsd"},
            "schedule.warmup_steps + schedule.decay_steps = 4 is more than loop.max_steps=3; shorten them",
        ),
        (
            {"model.source": "gguf"},
            "model.path is missing; model.source=gguf needs a file, folder or name",
        ),
        (
            {"model.folder": None},
            "model.folder is missing; model.source=scratch is written there as a Hugging Face folder",
        ),
        (
            {"model.architecture": None},
            "model.architecture needs a model_type, for instance model.architecture.model_type=llama, "
            "because model.source=scratch",
        ),
        (
            {"model.tokenizer": None},
            "model.tokenizer is missing; a model from scratch has none: use bytes or a folder",
        ),
    ],
)
def test_a_combination_that_cannot_work_is_refused(changes: dict[str, Any], words: str) -> None:
    values = tiny_smoke().model_dump()
    for path, value in changes.items():
        section, _, key = path.partition(".")
        values[section][key] = value
    with pytest.raises(ConfigError) as raised:
        check_rules(check_config(values))
    assert str(raised.value) == words
