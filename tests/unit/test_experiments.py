"""Every experiment is a whole run that passes the checks and cuts its batch."""

import functools

import pytest

from launcher.compose import compose_run
from launcher.dry_run import describe_training
from launcher.tree import ConfigTree
from training.batch import find_world_size, plan_run
from training.config.schema import RunConfig
from training.rules.strategies import effective_stage

TREE = ConfigTree(None)
EXPERIMENTS = TREE.choices("experiment")


@functools.cache
def composed(experiment: str) -> RunConfig:
    return compose_run([f"experiment={experiment}"], TREE).config


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_passes_the_checks_under_its_own_name(experiment: str) -> None:
    config = composed(experiment)
    assert config.name == experiment
    plan = plan_run(config)
    parts = plan.micro_batch_size * plan.gradient_accumulation_steps * plan.teams
    assert parts == config.batch.global_batch_size


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_can_be_described_without_being_run(experiment: str) -> None:
    config = composed(experiment)
    words = describe_training(config, [])
    stage = effective_stage(config.strategy.zero_stage, config.precision)
    assert f'"stage": {stage}' in words
    assert f"--nproc-per-node={find_world_size(config.cluster) // config.cluster.nodes}" in words


def test_corpora_that_share_a_folder_share_tokenizer_and_settings() -> None:
    configs = [composed(name) for name in EXPERIMENTS]
    tokenizers: dict[str, set[str | None]] = {}
    for config in configs:
        family = config.model.path and config.model.path.replace("70B", "8B")
        tokenizers.setdefault(config.data.path, set()).add(family)
        assert [
            each.data for each in configs if each.data.path == config.data.path and each.data != config.data
        ] == []
    assert [path for path, found in tokenizers.items() if len(found) > 1] == []


def test_the_cluster_experiments_have_the_size_that_their_comments_say() -> None:
    sizes = {
        "llama3_8b_full_zero3": (2, 8, 3, "none"),
        "llama3_70b_full_zero3": (8, 8, 3, "none"),
        "llama3_70b_qlora": (1, 8, 2, "lora"),
        "qwen3_8b_lora": (1, 1, 0, "lora"),
    }
    for name, wanted in sizes.items():
        config = composed(name)
        found = (
            config.cluster.nodes,
            config.cluster.gpus_per_node,
            config.strategy.zero_stage,
            config.adapter.kind,
        )
        assert found == wanted
