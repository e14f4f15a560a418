"""The batch arithmetic cuts the global batch exactly, or says what would."""

import itertools
import re

import pytest
import yaml

from launcher.tree import OWN_FOLDER
from training.batch import find_world_size, plan_batch
from training.config.cluster import ClusterConfig
from training.config.schema import BatchConfig
from training.errors import ConfigError


def batch(micro: int, total: int) -> BatchConfig:
    return BatchConfig(sequence_length=8, micro_batch_size=micro, global_batch_size=total)


def cluster(nodes: int, gpus: int, processes: int) -> ClusterConfig:
    ours = yaml.safe_load((OWN_FOLDER / "cluster" / "local.yaml").read_text(encoding="utf-8"))
    return ClusterConfig.model_validate(
        {**ours, "nodes": nodes, "gpus_per_node": gpus, "processes_per_node": processes}
    )


@pytest.mark.parametrize(
    ("micro", "world_size", "steps"), list(itertools.product((1, 2, 3), (1, 2, 5), (1, 4)))
)
def test_the_global_batch_is_the_product_of_its_parts(micro: int, world_size: int, steps: int) -> None:
    plan = plan_batch(batch(micro, micro * world_size * steps), world_size)
    assert plan.gradient_accumulation_steps == steps
    assert plan.tokens_per_step == 8 * micro * world_size * steps


@pytest.mark.parametrize(("micro", "total", "world_size"), [(2, 7, 2), (3, 10, 1), (4, 3, 2), (1, 9, 8)])
def test_a_batch_that_cannot_be_cut_offers_only_ones_that_can(
    micro: int, total: int, world_size: int
) -> None:
    with pytest.raises(ConfigError) as raised:
        plan_batch(batch(micro, total), world_size)
    offered = re.findall(r"\d+", str(raised.value).rpartition("use ")[2])
    assert offered
    for number in offered:
        assert plan_batch(batch(micro, int(number)), world_size).global_batch_size == int(number)


def test_ranks_of_a_team_read_the_same_samples_and_teams_read_all_of_them() -> None:
    plan = plan_batch(batch(3, 24), 6, 3)
    assert (plan.teams, plan.gradient_accumulation_steps) == (2, 4)
    read = [
        [
            plan.first_sample(rank, micro) + place
            for micro in range(plan.gradient_accumulation_steps)
            for place in range(plan.micro_batch_size)
        ]
        for rank in range(plan.world_size)
    ]
    assert read[0] == read[1] == read[2]
    assert read[3] == read[4] == read[5]
    assert sorted(read[0] + read[3]) == list(range(24))


@pytest.mark.parametrize(
    ("world_size", "size", "words"),
    [
        (6, 4, "strategy.sequence_parallel_size=4 does not divide world_size=6"),
        (3, 3, "does not divide batch.micro_batch_size x batch.sequence_length = 8 tokens"),
        (4, 2, "world_size / strategy.sequence_parallel_size of 2 = 1 x 2 = 2; use 2 or 4"),
    ],
)
def test_teams_that_cannot_be_made_are_refused_with_what_can(world_size: int, size: int, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        plan_batch(batch(1, 3), world_size, size)


def test_ranks_that_share_matrices_are_teams_too() -> None:
    plan = plan_batch(batch(1, 6), 6, tensor_parallel_size=3)
    assert (plan.teams, plan.team_size, plan.gradient_accumulation_steps) == (2, 3, 3)
    assert [plan.first_sample(rank, 1) for rank in range(6)] == [1, 1, 1, 4, 4, 4]
    with pytest.raises(ConfigError, match=r"strategy.tensor_parallel_size=4 does not divide world_size=6"):
        plan_batch(batch(1, 6), 6, tensor_parallel_size=4)


def test_gpus_count_as_processes_and_where_there_are_none_the_processes_do() -> None:
    assert find_world_size(cluster(2, 8, 3)) == 16
    assert find_world_size(cluster(2, 0, 3)) == 6
