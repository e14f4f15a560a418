"""Law 1: the loss of every step is that of a plain loop, however the work is cut."""

import os
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.distributed as dist

from tests.checkpoint_case import at, open_store
from tests.ranks.spawn import on_ranks
from tests.ranks.training_case import (
    SAMPLES_PER_STEP,
    SOURCES,
    STEPS,
    make_batch,
    make_config,
    make_model,
    make_samples,
    rate_at,
    source_of,
)
from tests.reference_loop import train_plainly
from training.batch import plan_batch
from training.collectives import join
from training.config.schema import RunConfig
from training.engine.step import StepResult
from training.model.self_test import measure_isolation
from training.ranks import Ranks

# (ZeRO stage, samples per forward pass)
CUTS = [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]


CPU = torch.device("cpu")


def open_place(config: RunConfig, device: torch.device = CPU) -> Any:
    """Meet the other ranks, once per process, and plan this case's batch."""
    from training.engine.deepspeed_engine import Place

    torch.set_num_threads(1)
    ranks = Ranks.from_environ(os.environ)
    if not dist.is_initialized():
        join(ranks, device=device, timeout_seconds=120)
    teams = (config.strategy.sequence_parallel_size, config.strategy.tensor_parallel_size)
    plan = plan_batch(config.batch, ranks.world_size, *teams)
    return Place(ranks=ranks, device=device, plan=plan)


def open_engine(config: RunConfig, place: Any, *, adapter: bool, tested: bool = False) -> Any:
    # DeepSpeed is imported on the ranks alone: it takes seconds, and the tests' own process needs none.
    from training.engine.deepspeed_engine import DeepSpeedEngine

    dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
    model = make_model(adapter=adapter, dtype=dtype).to(place.device)
    engine = DeepSpeedEngine(model, config, place, sources=SOURCES)
    if tested:
        documents = [numpy.array(document.ids) for document in make_samples()[0]]
        assert measure_isolation(engine.model, documents, engine).holds
    return engine


def run_steps(engine: Any, config: RunConfig, place: Any, steps: range) -> list[StepResult]:
    """Train this process's share of some steps; give what each step reported."""
    samples, rate, plan = make_samples(), rate_at(config), place.plan
    reported = []
    for step in steps:
        first = step * SAMPLES_PER_STEP
        passes = []
        for micro in range(plan.gradient_accumulation_steps):
            begin = first + plan.first_sample(place.ranks.rank, micro)
            mine = range(begin, begin + plan.micro_batch_size)
            passes.append(make_batch([samples[n] for n in mine], [source_of(n) for n in mine]))
        reported.append(
            engine.train_step(passes, learning_rate=rate(step), samples_seen=first, accept=lambda _: True)
        )
    return reported


def train_cuts(cuts: list[dict[str, Any]], adapter: bool) -> list[list[StepResult]]:
    """Train the whole case once per cut."""
    reported = []
    for cut in cuts:
        config = make_config(**cut)
        place = open_place(config)
        engine = open_engine(config, place, adapter=adapter)
        reported.append(run_steps(engine, config, place, range(STEPS)))
        engine.close()
    return reported


def weights_of(engine: Any) -> dict[tuple[str, int], Any]:
    """Copy the trained weights that this rank answers for."""
    return {(part.name, part.start): part.tensors["weight"].clone() for part in engine.fragments()}


def interrupt_cuts(cuts: list[dict[str, Any]], folder: Path) -> list[tuple[Any, Any]]:
    """Train six steps, and again with a save after three, a new engine and a load; give both."""
    reported = []
    for number, cut in enumerate(cuts):
        config = make_config(**cut)
        place = open_place(config)
        whole = open_engine(config, place, adapter=False)
        uninterrupted = run_steps(whole, config, place, range(6))
        expected = weights_of(whole)
        whole.close()
        first = open_engine(config, place, adapter=False)
        before = run_steps(first, config, place, range(3))
        store = open_store(folder / str(number), first, config, place)
        store.save(at(3))
        # Steps go on while the checkpoint is written; the copy must not follow them.
        run_steps(first, config, place, range(3, 5))
        # An engine in the middle of its training can go back as well as a new one can go on.
        assert store.resume() == at(3)
        rolled_back = run_steps(first, config, place, range(3, 6))
        first.close()
        second = open_engine(config, place, adapter=False)
        assert open_store(folder / str(number), second, config, place).resume() == at(3)
        after = run_steps(second, config, place, range(3, 6))
        found = weights_of(second)
        same = expected.keys() == found.keys() and all(
            torch.equal(expected[key], found[key]) for key in expected
        )
        second.close()
        assert rolled_back == after, cut
        reported.append((uninterrupted, (before + after, same)))
    return reported


def count_targets(step: int) -> list[int]:
    """Count the targets of each source in a step."""
    counts, samples = [0] * SOURCES, make_samples()
    for sample in range(step * SAMPLES_PER_STEP, (step + 1) * SAMPLES_PER_STEP):
        counts[source_of(sample)] += sum(sum(document.is_target[1:]) for document in samples[sample])
    return counts


def first_nats(*, adapter: bool) -> list[float]:
    """Sum the nats of each source in the first step, before anything is learnt, one document at a time."""
    nats, samples, model = [0.0] * SOURCES, make_samples(), make_model(adapter=adapter)
    for sample in range(SAMPLES_PER_STEP):
        for document in samples[sample]:
            ids = torch.tensor([document.ids])
            wanted = torch.tensor(document.is_target)[1:]
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, :-1]
            lost = torch.nn.functional.cross_entropy(logits[wanted], ids[0, 1:][wanted], reduction="sum")
            nats[source_of(sample)] += float(lost)
    return nats


def plain_losses(*, adapter: bool, learning_rate: float) -> list[float]:
    samples = make_samples()
    steps = [
        [
            document
            for row in samples[step * SAMPLES_PER_STEP : (step + 1) * SAMPLES_PER_STEP]
            for document in row
        ]
        for step in range(STEPS)
    ]
    return train_plainly(
        make_model(adapter=adapter),
        steps,
        learning_rate_at=rate_at(make_config(**{"optimizer.learning_rate": learning_rate})),
        weight_decay=0.1,
        max_grad_norm=1.0,
    )


def cuts_for(world_size: int, **settings: Any) -> list[dict[str, Any]]:
    return [
        {
            "strategy.zero_stage": stage,
            "batch.micro_batch_size": micro,
            "cluster.processes_per_node": world_size,
            **settings,
        }
        for stage, micro in CUTS
    ]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_every_stage_and_cut_gives_the_losses_of_the_plain_loop(world_size: int, adapter: bool) -> None:
    rate = 2e-2 if adapter else 3e-3
    cuts = cuts_for(world_size, **{"optimizer.learning_rate": rate})

    expected = plain_losses(adapter=adapter, learning_rate=rate)
    answers = on_ranks(world_size, train_cuts, cuts, adapter)

    assert expected[-1] < 0.95 * expected[0], "the case must learn, or equal losses say little"
    nats = first_nats(adapter=adapter)
    for cut, *per_rank in zip(cuts, *answers, strict=True):
        for reported in per_rank:
            assert [result.loss for result in reported] == pytest.approx(expected, rel=1e-4), cut
            assert reported == per_rank[0], "all ranks must report the same"
        assert all(result.grad_norm > 0 for result in per_rank[0]), cut
        assert [part.nats for part in per_rank[0][0].by_source] == pytest.approx(nats, rel=1e-5), cut
        check_sources(per_rank[0])


def check_sources(reported: list[StepResult]) -> None:
    """The parts of the sources have the right targets and sum up to the step."""
    for step, result in enumerate(reported):
        assert [part.targets for part in result.by_source] == count_targets(step)
        assert sum(part.targets for part in result.by_source) == result.targets
        assert sum(part.nats for part in result.by_source) == pytest.approx(result.loss * result.targets)


def test_in_bf16_with_fp32_master_weights_every_stage_stays_near_the_plain_fp32_loop() -> None:
    # bf16 has 8 bits of mantissa: 2^-8 = 0.4 % per product. Over 20 steps 1 % is what rounding may do.
    cuts = cuts_for(2, precision="bf16")

    expected = plain_losses(adapter=False, learning_rate=3e-3)
    answers = on_ranks(2, train_cuts, cuts, False)

    for cut, reported in zip(cuts, answers[0], strict=True):
        assert [result.loss for result in reported] == pytest.approx(expected, rel=1e-2), cut


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_engine_that_is_saved_and_loaded_goes_on_bit_for_bit(precision: str, tmp_path: Path) -> None:
    cuts = [cut for cut in cuts_for(2, precision=precision) if cut["batch.micro_batch_size"] == 1]

    for per_rank in on_ranks(2, interrupt_cuts, cuts, tmp_path):
        for cut, (uninterrupted, (resumed, same_weights)) in zip(cuts, per_rank, strict=True):
            assert resumed == uninterrupted, cut
            assert same_weights, cut


def train_untested_and_tested(adapter: bool) -> list[list[StepResult]]:
    """Train under ZeRO-3 without and with the self-test before."""
    config = make_config(**{"strategy.zero_stage": 3, "cluster.processes_per_node": 2})
    place = open_place(config)
    reported = []
    for tested in (False, True):
        engine = open_engine(config, place, adapter=adapter, tested=tested)
        reported.append(run_steps(engine, config, place, range(2)))
        engine.close()
    return reported


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_the_self_test_before_zero_3_passes_on_every_rank_and_changes_no_step(adapter: bool) -> None:
    for untested, tested in on_ranks(2, train_untested_and_tested, adapter):
        assert tested == untested
