"""Settings that are right alone and wrong together are refused, with what to use instead."""

import functools
from typing import Any

import pytest

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from training.config.freeze import check_config
from training.config.schema import RunConfig
from training.errors import ConfigError
from training.rules.check import check_rules


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
            {"model.attention": "varlen"},
            "model.attention=varlen needs a GPU; use model.attention=documents or auto",
        ),
        (
            {"model.attention": "varlen", "cluster.gpus_per_node": 1},
            "model.attention=varlen takes 16-bit numbers alone; use precision=bf16, or "
            "model.attention=flex or auto",
        ),
        (
            {"adapter.base_bits": 4},
            "adapter.base_bits=4 needs adapter.kind=lora: 4-bit weights cannot be trained; use adapter=qlora",
        ),
        (
            {"strategy.compile": "layers", "adapter.kind": "lora", "adapter.base_bits": 4},
            "strategy.compile=layers does not see through adapter.base_bits=4, whose weights are unpacked in "
            "every product; use strategy.compile=none",
        ),
        (
            {"strategy.compile": "layers", "strategy.activation_checkpointing": 2},
            "strategy.compile=layers cannot cut around the attention of a layer that is computed again "
            "(strategy.activation_checkpointing=2); set one of the two to none",
        ),
        (
            {
                "strategy.compile": "layers",
                "strategy.tensor_parallel_size": 2,
                "cluster.processes_per_node": 2,
            },
            "strategy.compile=layers does not see through strategy.tensor_parallel_size=2, whose ranks talk "
            "inside of each layer; use strategy.compile=none",
        ),
        (
            {"strategy.tensor_parallel_size": 2, "strategy.sequence_parallel_size": 2},
            "strategy.tensor_parallel_size=2 and strategy.sequence_parallel_size=2 share a pass in two ways; "
            "use sequence_parallel_size for long rows, tensor_parallel_size for large layers",
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
            {"strategy.zero_stage": 3, "strategy.offload_optimizer": "nvme"},
            "strategy.nvme_path is missing; name a folder on the node's own fast disk",
        ),
        (
            {"strategy.zero_stage": 3, "strategy.offload_optimizer": "nvme", "strategy.nvme_path": ""},
            "strategy.nvme_path is missing; name a folder on the node's own fast disk",
        ),
        (
            {"strategy.zero_stage": 3, "strategy.secondary_ranks": 2},
            "strategy.secondary_ranks=2 does not divide the 1 ranks; use the number of GPUs of a node, or 1",
        ),
        (
            {"strategy.zero_stage": 3, "strategy.quantized_weights": True},
            "strategy.quantized_weights and quantized_gradients need a GPU (DeepSpeed's kernels for them); "
            "set both to false on CPUs",
        ),
        (
            {"optimizer.kind": "adamw_8bit"},
            "optimizer.kind=adamw_8bit needs a GPU; use optimizer=adamw on CPUs",
        ),
        (
            {"adapter.kind": "lora", "adapter.frozen": ["*"]},
            "adapter.frozen goes with adapter.kind=none; adapter.kind=lora trains the adapter and "
            "adapter.trained_modules alone",
        ),
        (
            {"adapter.trained_modules": ["lm_head"]},
            "adapter.trained_modules goes with an adapter; adapter.kind=none trains all modules but those of "
            "adapter.frozen",
        ),
        (
            {"adapter.kind": "dora", "model.extra_tokens": ["word"]},
            "model.extra_tokens adds rows to the embeddings, which an adapter leaves as they are; set "
            "adapter.trained_modules=[embed_tokens,lm_head] (in the model's own words)",
        ),
        (
            {"loop.max_steps": 8, "schedule.first_step": 4, "schedule.total_steps": 10},
            "schedule.total_steps=10 ends before schedule.first_step + loop.max_steps = 12; use that or "
            "more, or null",
        ),
        (
            {"loop.max_steps": 3, "schedule.kind": "wsd"},
            "schedule.warmup_steps + schedule.decay_steps = 4 is more than loop.max_steps=3; shorten them",
        ),
        (
            {"loop.sample_documents": 3},
            "loop.sample_documents=3 are answered at each measurement of the held-out loss, and there are "
            "none; set loop.evaluate_every_steps",
        ),
        (
            {"loop.sample_documents": 5, "loop.held_out_documents": 4, "loop.evaluate_every_steps": 2},
            "loop.sample_documents=5 are taken from loop.held_out_documents=4; ask for so many at most, or "
            "raise that",
        ),
        (
            {"loop.sample_top_p": 0.9},
            "loop.sample_top_p=0.9 chooses what tokens are drawn from, and none are; set "
            "loop.sample_temperature, or sample_top_p=1",
        ),
        (
            {"loop.keep_every_steps": 7, "loop.checkpoint_every_steps": 3},
            "loop.keep_every_steps=7 is no multiple of loop.checkpoint_every_steps=3: there is no checkpoint "
            "of step 7 to keep; use 9",
        ),
        (
            {"loop.patience": 3},
            "loop.patience=3 counts measurements of the held-out loss, and there are none; set "
            "loop.evaluate_every_steps",
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


TWO_SOURCES = {"topics": {"kind": "python_topics", "max_documents": None}}
TWO_SOURCES["general"] = TWO_SOURCES["topics"]


def mix(by: str, shares: dict[str, float], *phases: tuple[int, float], replayed: str = "general") -> Any:
    replay = {"source": replayed, "phases": [{"from_step": step, "ratio": ratio} for step, ratio in phases]}
    return {"by": by, "shares": shares, "replay": replay if phases else None}


@pytest.mark.parametrize(
    ("mixture", "words"),
    [
        (
            mix("weights", {"topics": 1, "genral": 1}),
            "data.mixture.shares.genral names no source; data.sources has topics, general",
        ),
        (
            mix("epochs", {"topics": 1}),
            "data.mixture.shares.general is missing; data.mixture.by=epochs needs a share for every source",
        ),
        (
            mix("documents", {"topics": 1}),
            "data.mixture.shares is not used with data.mixture.by=documents; use by=weights, epochs or "
            "tokens",
        ),
        (
            mix("weights", {"topics": 1, "general": 1}, (0, 0.1)),
            "data.mixture.shares.general: the replay source is read by data.mixture.replay.phases; take its "
            "share out",
        ),
        (
            mix("documents", {}, (0, 0.1), replayed="absent"),
            "data.mixture.replay.source=absent names no source; data.sources has topics, general",
        ),
        (
            mix("documents", {}, (5, 0.1)),
            "data.mixture.replay.phases.0.from_step=5; the first phase begins at step 0 (its ratio may be 0)",
        ),
        (
            mix("documents", {}, (0, 0.1), (9, 0.2), (9, 0.3)),
            "data.mixture.replay.phases.2.from_step=9 does not come after 9; put the phases in the order of "
            "their steps",
        ),
    ],
)
def test_a_mixture_that_says_two_things_is_refused(mixture: dict[str, Any], words: str) -> None:
    values = tiny_smoke().model_dump()
    values["data"] |= {"sources": TWO_SOURCES, "mixture": mixture}

    with pytest.raises(ConfigError) as raised:
        check_rules(check_config(values))
    assert str(raised.value) == words


@pytest.mark.parametrize(
    "mixture",
    [
        mix("documents", {}),
        mix("documents", {}, (0, 0.0), (10, 0.5), (11, 0.1)),
        mix("weights", {"topics": 3, "general": 1}),
        mix("tokens", {"topics": 1e9}, (0, 0.1)),
    ],
)
def test_a_mixture_that_makes_sense_passes(mixture: dict[str, Any]) -> None:
    values = tiny_smoke().model_dump()
    values["data"] |= {"sources": TWO_SOURCES, "mixture": mixture}

    check_rules(check_config(values))


def test_replay_alone_is_no_mixture() -> None:
    values = tiny_smoke().model_dump()
    values["data"] |= {
        "sources": {"general": TWO_SOURCES["topics"]},
        "mixture": mix("documents", {}, (0, 0.1)),
    }

    with pytest.raises(ConfigError) as raised:
        check_rules(check_config(values))
    assert str(raised.value) == (
        "data.mixture.replay.source=general is the only source; add what it is mixed with to data.sources"
    )


def test_a_task_of_an_array_is_one_of_its_tasks() -> None:
    values = tiny_smoke().model_dump()
    values["prepare"] |= {"tasks": 4, "task": 4}

    with pytest.raises(ConfigError) as raised:
        check_rules(check_config(values))
    assert str(raised.value) == "prepare.task=4 is not one of prepare.tasks=4; count from 0 to 3"
