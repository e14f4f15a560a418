"""A checkpoint fits any number of ranks, any ZeRO stage and any offload: no element of it changes."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint_case import (
    SAMPLES_PER_STEP,
    Events,
    LateBuffer,
    at,
    full_state,
    link_states,
    open_store,
    same_state,
    steps_of,
)
from tests.ranks.spawn import on_ranks
from tests.ranks.test_engine import open_engine, open_place
from tests.ranks.training_case import make_batch, make_config, make_samples, rate_at, source_of
from training.fragments.fragment import read_into
from training.fragments.reader import FragmentReader

STEPS_PER_WORLD = 2
# Imported once, by the process that the ranks of all worlds are forked from.
# (ZeRO stage, optimizer offload): every world takes the checkpoint up in each, and trains on in the first.
CELLS = {
    1: [(0, "none")],
    2: [(1, "none"), (2, "none"), (3, "none"), (2, "cpu"), (3, "cpu")],
    4: [(2, "cpu"), (3, "none")],
    3: [(3, "none"), (0, "none")],
}


@dataclass(frozen=True, slots=True)
class Line:
    """One run that goes from world to world."""

    worlds: list[int]
    precision: str = "fp32"
    adapter: bool = False
    optimizer: str = "adamw"


LINES = {
    "full fp32": Line([1, 2, 4, 3]),
    "full bf16": Line([1, 2], precision="bf16"),
    "lora fp32": Line([1, 2], adapter=True),
    "full fp32 by Muon": Line([1, 2, 4], optimizer="muon"),
}
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}


def configure(world_size: int, cell: tuple[int, str], line: Line) -> Any:
    stage, offload = cell
    return make_config(
        **{
            "precision": line.precision,
            "optimizer": line.optimizer,
            "strategy.zero_stage": stage,
            "strategy.offload_optimizer": offload,
            "strategy.offload_parameters": "cpu" if (stage, offload) == (3, "cpu") else "none",
            "cluster.processes_per_node": world_size,
            "batch.global_batch_size": SAMPLES_PER_STEP,
            "loop.max_steps": 20,
        }
    )


def train(
    engine: Any, config: Any, place: Any, steps: range, before_update: Callable[[], None] = lambda: None
) -> list[float]:
    """Train this rank's share of some steps; give the losses."""

    def accept(_: object) -> bool:
        before_update()
        return True

    samples, rate, plan = make_samples(3 * 10), rate_at(config), place.plan
    losses = []
    for step in steps:
        first = step * SAMPLES_PER_STEP
        passes = []
        for micro in range(plan.gradient_accumulation_steps):
            begin = first + plan.first_sample(place.ranks.rank, micro)
            mine = range(begin, begin + plan.micro_batch_size)
            passes.append(make_batch([samples[n] for n in mine], [source_of(n) for n in mine]))
        result = engine.train_step(passes, learning_rate=rate(step), samples_seen=first, accept=accept)
        losses.append(result.loss)
    return losses


def walk(root: Path, line: Line, world_size: int, first: int) -> dict[str, Any]:
    """Take the run in ``root`` up in every cell of this world; train on and save in the first one."""
    differences, losses, notes = [], [], []
    checked = torch.load(root / "state.pt") if first else None
    for cell in [*CELLS[world_size][1:], CELLS[world_size][0]]:
        config = configure(world_size, cell, line)
        place = open_place(config)
        engine = open_engine(config, place, adapter=line.adapter)
        events = Events()
        store = open_store(root, engine, config, place, events)
        assert store.resume() == at(first)
        notes += events.notes
        if checked is not None:
            link_states(engine)
            differences += [f"{cell}: {each}" for each in same_state(checked["state"], full_state(engine))]
            differences += [] if steps_of(engine) == checked["steps"] else [f"{cell}: {steps_of(engine)}"]
        if cell != CELLS[world_size][0]:
            differences += [f"{cell}: {each}" for each in copy_late(store, engine, config, place)]
        else:
            steps = range(first, first + STEPS_PER_WORLD)
            losses = train(engine, config, place, steps)
            state, count = full_state(engine), steps_of(engine)
            store.save(at(steps.stop))
            # The training goes on while it is written: what is saved must be the state of that moment.
            losses += train(engine, config, place, range(steps.stop, steps.stop + 1), store.wait_until_copied)
            store.save(at(steps.stop + 1), final=True)
            torch.distributed.barrier()
            if place.ranks.is_lead:
                torch.save({"state": state, "steps": count}, root / "state.pt")
                # The next world goes on from the one that was written behind the training's back.
                shutil.rmtree(root / "checkpoints" / f"step_{steps.stop + 1:08d}")
        engine.close()
    return {"differences": differences, "losses": losses, "notes": notes}


def copy_late(store: Any, engine: Any, config: Any, place: Any) -> list[str]:
    """Copy what is saved as late as can be: behind a step's forward and backward. Name what has changed."""
    from training.collectives import gather_over_ranks

    wanted = {
        (each.name, each.stretch, key): tensor.detach().cpu().clone()
        for each in engine.fragments()
        for key, tensor in each.tensors.items()
    }
    store._buffer = LateBuffer()
    store.save(at(99))

    def let_copy() -> None:
        store._buffer.gate.set()
        store.wait_until_copied()

    train(engine, config, place, range(1), let_copy)
    store._flight.landed.wait(60)
    store.settle()
    folder = store._lineage.layout.checkpoint(99)
    with FragmentReader(folder) as reader:
        changed = []
        for (name, stretch, key), data in wanted.items():
            found = torch.empty_like(data)
            read_into(found, reader, name, key, stretch)
            if not torch.equal(found, data):
                changed.append(f"{name}.{key}")
    gather_over_ranks(None)
    if place.ranks.is_lead:
        shutil.rmtree(folder)
    gather_over_ranks(None)
    return changed


def uninterrupted(line: Line) -> list[float]:
    """Train on one rank from the first step to the last."""
    config = configure(1, (0, "none"), line)
    place = open_place(config)
    engine = open_engine(config, place, adapter=line.adapter)
    losses = train(engine, config, place, range(STEPS_PER_WORLD * len(line.worlds) + 1))
    engine.close()
    return losses


def walk_lines(root: Path, world_size: int) -> dict[str, Any]:
    """Walk every line that comes through this world; before the first world, also without interruption."""
    told = {}
    for name, line in LINES.items():
        if world_size in line.worlds:
            folder = root / name.replace(" ", "_")
            told[name] = walk(folder, line, world_size, STEPS_PER_WORLD * line.worlds.index(world_size))
            if world_size == 1:
                told[name]["uninterrupted"] = uninterrupted(line)
    return told


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Walk 1 -> 2 -> 4 -> 3 ranks, a process start each; give by world what each rank told."""
    root = tmp_path_factory.mktemp("recut")
    worlds = LINES["full fp32"].worlds
    for name in LINES:
        (root / name.replace(" ", "_")).mkdir()
    told = {}
    for world_size in worlds:
        told[world_size] = on_ranks(world_size, walk_lines, root, world_size)
    return told


@pytest.mark.parametrize("name", LINES)
def test_every_element_of_the_optimizer_state_is_the_same_in_every_other_cut(
    name: str, walked: dict[int, list[dict[str, Any]]]
) -> None:
    for world_size in LINES[name].worlds:
        for rank, told in enumerate(walked[world_size]):
            assert told[name]["differences"] == [], (world_size, rank)


@pytest.mark.parametrize("name", LINES)
def test_the_losses_are_those_of_the_run_that_was_never_cut_anew(
    name: str, walked: dict[int, list[dict[str, Any]]]
) -> None:
    line = LINES[name]
    expected = walked[1][0][name]["uninterrupted"]
    for number, world_size in enumerate(line.worlds):
        first = number * STEPS_PER_WORLD
        found = walked[world_size][0][name]["losses"]
        wanted = expected[first : first + len(found)]
        assert found == pytest.approx(wanted, rel=TOLERANCE[line.precision]), world_size
    assert expected[-1] < expected[0], "the case must learn, or equal losses say little"


def test_the_new_cut_is_said(walked: dict[int, list[dict[str, Any]]]) -> None:
    notes = walked[2][0]["full fp32"]["notes"]
    assert len(notes) == len(CELLS[2])
    assert "saved by 1 processes at ZeRO stage 0 and is taken up by 2 at stage 2: same samples" in notes[0]
