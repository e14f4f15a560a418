"""Ranks that share the tokens of every pass do the steps of a plain loop, and measure as one rank does."""

from typing import Any

import pytest
import torch

from tests.ranks.spawn import on_ranks
from tests.ranks.test_engine import (
    check_sources,
    first_nats,
    open_engine,
    open_place,
    plain_losses,
    run_steps,
    train_cuts,
)
from tests.ranks.training_case import (
    LENGTH,
    SAMPLES_PER_STEP,
    STEPS,
    make_batch,
    make_config,
    make_samples,
    source_of,
)

RATE = 3e-3
# (ranks of a team, ZeRO stage, samples per pass). The model has 4 heads and 2 key-value heads.
TEAMS = [(1, 2, 1), (2, 0, 2), (2, 2, 1), (2, 3, 2), (4, 0, 1), (4, 1, 2), (4, 3, 1)]


def cut_for(size: int, stage: int, micro: int, **settings: Any) -> dict[str, Any]:
    return {
        "strategy.sequence_parallel_size": size,
        "strategy.zero_stage": stage,
        "batch.micro_batch_size": micro,
        "cluster.processes_per_node": 4,
        "optimizer.learning_rate": RATE,
        **settings,
    }


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_teams_of_any_size_do_the_steps_of_the_plain_loop(adapter: bool) -> None:
    cuts = [cut_for(*team) for team in TEAMS]

    answers = on_ranks(4, train_cuts, cuts, adapter, timeout_seconds=600)

    expected, nats = plain_losses(adapter=adapter, learning_rate=RATE), first_nats(adapter=adapter)
    alone = answers[0][0]
    for cut, *per_rank in zip(cuts, *answers, strict=True):
        assert all(reported == per_rank[0] for reported in per_rank), cut
        reported = per_rank[0]
        assert [step.loss for step in reported] == pytest.approx(expected, rel=1e-5), cut
        assert [step.grad_norm for step in reported] == pytest.approx(
            [step.grad_norm for step in alone], rel=1e-4
        ), cut
        assert [step.tokens for step in reported] == [step.tokens for step in alone], "counted once a team"
        assert [part.nats for part in reported[0].by_source] == pytest.approx(nats, rel=1e-5), cut
        check_sources(reported)


def measure_in_teams(stage: int) -> list[Any]:
    """Measure a batch by source and by document in the middle of training; then train on, and draw noise."""
    from training.engine.seeds import seed_pass

    told = []
    for size in (1, 4):
        config = make_config(**cut_for(size, stage, 1))
        place = open_place(config)
        engine = open_engine(config, place, adapter=False)
        run_steps(engine, config, place, range(2))
        row = make_samples()[place.ranks.rank]
        batch = make_batch([row], [source_of(place.ranks.rank)])
        told.append((engine.measure_nats(batch), engine.measure_nats(batch, by_document=True)))
        after = run_steps(engine, config, place, range(2, STEPS // 2))
        told[-1] += ([step.loss for step in after],)
        engine.close()
    noises = []
    for stretch in (0, place.ranks.rank):
        seed_pass(7, 12, stretch)
        noises.append(torch.rand(4).tolist())
    return [told, noises]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_team_measures_each_ranks_own_documents_and_draws_noise_of_its_own_for_each_stretch(
    stage: int,
) -> None:
    answers = on_ranks(4, measure_in_teams, stage, timeout_seconds=300)

    for (alone, together), _ in answers:
        for one, other in zip(alone, together, strict=True):
            assert other == pytest.approx(one, rel=1e-5)
    assert len({str(told[0][0]) for told, _ in answers}) == len(answers), "each rank measured its own row"
    plain = answers[0][1][0]
    assert all(noises[0] == plain for _, noises in answers)
    assert len({str(noises[1]) for _, noises in answers}) == len(answers)


def watch_attention(size: int) -> tuple[set[int], int]:
    """Train a step; give what attention was handed (heads, most tokens of a call), and the batch's tokens."""
    from torch.nn import functional

    seen: set[tuple[int, int]] = set()
    attend = functional.scaled_dot_product_attention

    def watch(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.add((query.shape[1], query.shape[0] * query.shape[2]))
        return attend(query, *args, **kwargs)

    config = make_config(**cut_for(size, 2, SAMPLES_PER_STEP))
    place = open_place(config)
    engine = open_engine(config, place, adapter=False)
    functional.scaled_dot_product_attention = watch
    try:
        run_steps(engine, config, place, range(1))
    finally:
        functional.scaled_dot_product_attention = attend
        engine.close()
    return {heads for heads, _ in seen}, max(tokens for _, tokens in seen)


def test_attention_of_a_team_works_on_its_share_of_the_heads_and_on_documents_of_all_stretches() -> None:
    for heads, tokens in on_ranks(4, watch_attention, 4, timeout_seconds=300):
        assert heads == {1}, "four heads over four ranks"
        assert tokens > LENGTH, "a stretch has as many; documents of others are here as well"
