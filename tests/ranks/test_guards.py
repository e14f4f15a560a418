"""A step that is refused leaves no trace, on any stage: the run goes on as if it had never been."""

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.checkpoint_case import at, open_store
from tests.ranks.census import count_new_bytes, find_storages
from tests.ranks.spawn import on_ranks
from tests.ranks.test_engine import open_engine, open_place
from tests.ranks.training_case import (
    SAMPLES_PER_STEP,
    make_batch,
    make_config,
    make_model,
    make_samples,
    rate_at,
    source_of,
)
from training.engine.step import StepResult
from training.rules.strategies import effective_stage

CUTS = [
    ("fp32", 0, "none"),
    ("fp32", 1, "none"),
    ("fp32", 2, "none"),
    ("fp32", 3, "none"),
    ("fp32", 2, "cpu"),
    ("fp32", 3, "cpu"),
    ("bf16", 0, "none"),
    ("bf16", 1, "none"),
    ("bf16", 2, "cpu"),
    ("bf16", 3, "none"),
]
CELLS: list[dict[str, Any]] = [
    {"precision": precision, "strategy.zero_stage": stage, "strategy.offload_optimizer": offload}
    for precision, stage, offload in CUTS
]
CENSUS_BYTES = 32 << 10
POISONS = ("refused", "loss", "gradient")


@contextmanager
def poisoned(engine: Any, kind: str) -> Iterator[None]:
    """Make the loss, or only the gradient, of this process's next passes no number."""

    def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        if kind == "refused":
            return None
        if kind == "loss":
            return output * math.nan
        output.register_hook(lambda gradient: gradient * math.inf)
        return None

    handle = engine.model.get_input_embeddings().register_forward_hook(hook)
    yield
    handle.remove()


def run_step(
    engine: Any, config: Any, place: Any, step: int, accept: Callable[[StepResult], bool]
) -> StepResult:
    samples, plan, first = make_samples(), place.plan, step * SAMPLES_PER_STEP
    passes = []
    for micro in range(plan.gradient_accumulation_steps):
        begin = first + plan.first_sample(place.ranks.rank, micro)
        mine = range(begin, begin + plan.micro_batch_size)
        passes.append(make_batch([samples[n] for n in mine], [source_of(n) for n in mine]))
    return engine.train_step(passes, learning_rate=rate_at(config)(step), samples_seen=first, accept=accept)


def same(one: Any, other: Any) -> bool:
    """Compare two states to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (not isinstance(one, (int, float, str)) or one == other)


def state_of(engine: Any) -> list[Any]:
    """Copy what this rank would save: weights, moments, step counts."""
    return [
        (part.name, part.start, {key: values.clone() for key, values in part.tensors.items()}, part.scalars)
        for part in engine.fragments()
    ]


def is_number(result: StepResult) -> bool:
    return math.isfinite(result.loss) and math.isfinite(result.grad_norm)


def refuse_in_cells(cells: list[dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    """Train two good steps; take the engine back to where it was, and train bad ones before the same two."""
    told = []
    for number, cell in enumerate(cells):
        config = make_config(**cell, **{"cluster.processes_per_node": 2})
        place = open_place(config)
        held: list[int] = []
        gc.collect()
        there = find_storages()
        engine = open_engine(config, place, adapter=False)

        def accept_counted(result: StepResult, held: list[int] = held, there: Any = there) -> bool:
            held.append(count_new_bytes(there))
            return is_number(result)

        accepts = (is_number, accept_counted)
        first = [run_step(engine, config, place, step, accept) for step, accept in enumerate(accepts)]
        store = open_store(root / str(number), engine, config, place)
        store.save(at(2), final=True)
        wanted = [run_step(engine, config, place, step, is_number) for step in (5, 6)]
        wanted_state = state_of(engine)

        assert store.resume() == at(2)
        bad, untouched = [], []
        for step, kind in enumerate(POISONS, start=2):
            before = state_of(engine)
            with poisoned(engine, kind if place.ranks.rank == 1 else "refused"):
                accept = is_number if kind != "refused" else lambda _: False
                bad.append(run_step(engine, config, place, step, accept))
            untouched.append(same(before, state_of(engine)))
        found = [run_step(engine, config, place, step, is_number) for step in (5, 6)]
        told.append(
            {
                "steps": found == wanted,
                "state": same(state_of(engine), wanted_state),
                "untouched": untouched,
                "bad": [repr((result.loss, result.grad_norm)) for result in bad],
                "memory": engine.memory,
                "held": held[0],
                "learnt": wanted[-1].loss < first[0].loss,
            }
        )
        engine.close()
    return told


def test_a_refused_step_leaves_no_trace_and_a_living_engine_can_be_taken_back(tmp_path: Path) -> None:
    first, second = on_ranks(2, refuse_in_cells, CELLS, tmp_path, timeout_seconds=600)
    for cell, one, other in zip(CELLS, first, second, strict=True):
        for told in (one, other):
            assert told["untouched"] == [True, True, True], cell
            assert told["steps"], cell
            assert told["state"], cell
            assert told["learnt"], cell
        assert one["bad"] == other["bad"], f"the ranks must see the same: {cell}"
        refused, loss, gradient = one["bad"]
        assert not any(word in refused for word in ("nan", "inf")), cell
        assert loss == "(nan, inf)", cell
        assert gradient.endswith(", inf)"), cell
        assert "nan" not in gradient, cell
    check_memory({str(cell): one["memory"] for cell, one in zip(CELLS, first, strict=True)})
    for cell, told in zip(CELLS, first, strict=True):
        check_census(cell, told["memory"], told["held"])


def check_memory(accounts: dict[str, Any]) -> None:
    """Compare what was measured on one of two ranks with the arithmetic of arXiv:1910.02054, section 3."""
    parameters = list(make_model(adapter=False).parameters())
    sizes = [parameter.numel() for parameter in parameters]
    whole, largest = sum(sizes), max(sizes)
    vectors = sum(parameter.numel() for parameter in parameters if parameter.ndim == 1)
    for cell in CELLS:
        account, stage = accounts[str(cell)], effective_stage(cell["strategy.zero_stage"], cell["precision"])
        width = 4 if cell["precision"] == "fp32" else 2
        # Under ZeRO-3 the norms stay whole on every rank, beside the rank's share.
        weights = width * (whole // 2 + vectors if stage == 3 else whole)
        optimizer = 12 * whole // 2 if stage else (8 if width == 4 else 12) * whole
        gradients = 4 * whole // 2 if stage else width * whole
        copies = gradients if cell["strategy.offload_optimizer"] == "cpu" else 0
        if (stage, width) == (1, 2):
            gradients = (4 + 2) * whole  # this optimizer sums all of them in fp32, beside those of the model
        assert 0 <= account.weights - weights < 1024, (cell, account)
        assert 0 <= account.optimizer - optimizer < 1024, (cell, account)
        # DeepSpeed keeps the parameter that the border between two ranks cuts on both.
        assert 0 <= account.gradients - gradients <= 4 * largest, (cell, account)
        # Under ZeRO 2 there are two buffers beside, each as large as the largest parameter, and one of the
        # weights that go back to the device.
        room = copies + (2 * 4 * largest + width * whole // 2 if copies and stage < 3 else 0)
        assert 0 <= account.transit - copies <= room, (cell, account)
        assert (account.transit > 0) == (copies > 0), (cell, account)
        assert (account.buckets > 0) == (stage in {1, 2, 3} and (stage, width) != (1, 2)), (cell, account)
        assert (account.host, account.disk) == (0, 0), "a CPU's memory is the host's"


def check_census(cell: dict[str, Any], account: Any, held: int) -> None:
    """Compare the account with all tensors there were after a backward, whoever holds them."""
    stage = effective_stage(cell["strategy.zero_stage"], cell["precision"])
    told = account.weights + account.gradients + account.optimizer + account.transit + account.buffers
    told += account.buckets if stage == 3 else 0  # ZeRO 1 and 2 have let them go by then
    # The rows of the step and some scalars are not of the engine.
    assert abs(held - told) <= CENSUS_BYTES, (cell, account, held)
