"""Optimizer and parameters on the node's disk: every law holds as it does in memory."""

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint_case import Events, at, full_state, link_states, open_store, same_state, steps_of
from tests.ranks.disk_case import on_disk, swap_small_tensors
from tests.ranks.spawn import on_ranks
from tests.ranks.test_engine import open_engine, open_place, run_steps
from tests.ranks.test_guards import POISONS, is_number, poisoned, run_step, same, state_of
from tests.ranks.training_case import make_batch, make_config, make_samples
from training.errors import StorageError

Cut = tuple[str, str]
"""Where the optimizer is and where the parameters are, at ZeRO stage 3."""

DISK: list[Cut] = [("nvme", "nvme"), ("nvme", "cpu"), ("nvme", "none")]
BY_PRECISION = {"bf16": DISK[0], "fp32": DISK[2]}
"""Of a model that was built whole, as here, DeepSpeed 0.19.8 swaps parameters on a CPU in bf16 alone.

``tests/ranks/test_matrix.py`` has both precisions, of models of which each rank builds its share.
"""

MEMORY: list[Cut] = [("none", "none"), ("cpu", "cpu")]


def configure(root: Path, cut: Cut, world_size: int, precision: str, stage: int = 3) -> Any:
    config = make_config(
        **{
            "precision": precision,
            "strategy.zero_stage": stage,
            "cluster.processes_per_node": world_size,
            "batch.micro_batch_size": 1,
        }
    )
    settings = on_disk({"offload_optimizer": cut[0], "offload_parameters": cut[1]}, root)
    # The tiny model's matrices would stay whole under the threshold of real ones.
    settings = settings | {"parameter_persistence_threshold": 65}
    return config.model_copy(update={"strategy": config.strategy.model_copy(update=settings)})


def start(root: Path, cut: Cut, world_size: int, precision: str, stage: int = 3) -> tuple[Any, Any, Any]:
    swap_small_tensors()
    config = configure(root, cut, world_size, precision, stage)
    place = open_place(config)
    return open_engine(config, place, adapter=False), config, place


def files_of(engine: Any) -> list[Path]:
    """List what this rank has on the disk of optimizer state."""
    swapper = engine._engine.optimizer.optimizer_swapper
    return [
        Path(each.swap_path)
        for info in swapper.swap_params_info.values()
        for each in info.tensors
        if Path(each.swap_path).exists()
    ]


def go_on(root: Path, world_size: int) -> dict[str, Any]:
    """Interrupt, go back, refuse steps, measure: on each of the disk's cuts and in memory."""
    told: dict[str, Any] = {}
    for precision, on_the_disk in BY_PRECISION.items():
        for cut in (MEMORY[1], on_the_disk):
            name = f"{precision} {cut}"
            folder = root / name.replace(" ", "_")
            folder.mkdir(exist_ok=True)
            engine, config, place = start(root, cut, world_size, precision)
            uninterrupted = run_steps(engine, config, place, range(6))
            wanted = state_of(engine)
            nats = engine.measure_nats(make_batch(make_samples()[:2], [0, 2]))
            after_measuring = run_steps(engine, config, place, range(6, 8))
            engine.close()

            engine, config, place = start(root, cut, world_size, precision)
            before = run_steps(engine, config, place, range(3))
            events = Events()
            store = open_store(folder, engine, config, place, events)
            store.save(at(3))

            def wait_and_accept(_: Any, store: Any = store) -> bool:
                store.wait_until_copied()
                return True

            # Steps go on while the checkpoint is written; it must not follow them.
            for step in (3, 4):
                run_step(engine, config, place, step, wait_and_accept)
            refused = refuse(engine, config, place)
            assert store.resume() == at(3)
            rolled_back = run_steps(engine, config, place, range(3, 6))
            files = len(files_of(engine)) if cut[0] == "nvme" else 0
            spilled = store._buffer._bytes.numel()
            engine.close()

            engine, config, place = start(root, cut, world_size, precision)
            assert open_store(folder, engine, config, place).resume() == at(3)
            resumed = run_steps(engine, config, place, range(3, 6))
            told[name] = {
                "uninterrupted": uninterrupted,
                "resumed": before + resumed,
                "rolled back": before + rolled_back,
                "state": same(state_of(engine), wanted),
                "refused": refused,
                "nats": nats,
                "after measuring": after_measuring,
                "files": files,
                "memory": engine.memory,
                "copied": spilled,
            }
            engine.close()
    return told


def refuse(engine: Any, config: Any, place: Any) -> list[bool]:
    """Refuse steps, for every reason; say of each whether it left the state as it was."""
    untouched = []
    for kind in POISONS:
        before = state_of(engine)
        with poisoned(engine, kind if place.ranks.rank == 0 else "refused"):
            accept = is_number if kind != "refused" else lambda _: False
            run_step(engine, config, place, 9, accept)
        untouched.append(same(before, state_of(engine)))
    return untouched


def recut(root: Path, world_size: int, cuts: list[tuple[Cut, int]]) -> list[str]:
    """Take the run in ``root`` up in every cut, train on in the last of them and save; name what differs."""
    precision, differences = "bf16", []
    state = root / "state.pt"
    for cut, stage in cuts:
        engine, config, place = start(root, cut, world_size, precision, stage)
        store = open_store(root, engine, config, place)
        progress = store.resume()
        if state.exists():
            known = torch.load(state)
            link_states(engine)
            differences += [f"{cut}: {each}" for each in same_state(known["state"], full_state(engine))]
            differences += [] if steps_of(engine) == known["steps"] else [f"{cut}: {steps_of(engine)}"]
        if (cut, stage) == cuts[-1]:
            run_steps(engine, config, place, range(progress.step, progress.step + 2))
            store.save(at(progress.step + 2), final=True)
            whole, steps = full_state(engine), steps_of(engine)
            torch.distributed.barrier()
            if place.ranks.is_lead:
                torch.save({"state": whole, "steps": steps}, state)
            torch.distributed.barrier()
        engine.close()
    return differences


def walk(root: Path, world_size: int, cuts: list[tuple[Cut, int]]) -> dict[str, Any]:
    told = {"recut": recut(root, world_size, cuts), "harmed": [], "go on": {}}
    if world_size == 2:
        told["go on"] = go_on(root, world_size)
        told["harmed"] = harm(root)
    return told


def harm(root: Path) -> list[str]:
    """Write more than the disk takes; and lose the end of a file behind the engine's back, and step."""
    from training.engine.disk_io import DiskHandle

    handle, told = DiskHandle(), []
    tensor = handle.new_cpu_locked_tensor(1 << 20, torch.zeros(1)).fill_(1.0)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, former[1]))
    handle.async_pwrite(tensor, str(root / f"too_long_{os.getpid()}"), 0)
    try:
        handle.wait()
    except StorageError as error:
        told.append(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, former)

    engine, config, place = start(root, DISK[0], 2, "bf16")
    run_steps(engine, config, place, range(1))
    os.truncate(files_of(engine)[0], 4096)
    try:
        run_steps(engine, config, place, range(1, 2))
    except StorageError as error:
        told.append(str(error))
    return told


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Walk from one process to two and back: memory -> disk -> memory. DeepSpeed compiles its I/O once."""
    root = tmp_path_factory.mktemp("disk")
    disk, memory = [(cut, 3) for cut in DISK], [(MEMORY[0], 2), (MEMORY[0], 3), (MEMORY[1], 3)]
    return {
        1: on_ranks(1, walk, root, 1, [memory[0], disk[0]], timeout_seconds=600),
        2: on_ranks(2, walk, root, 2, [*memory, *disk], timeout_seconds=600),
        3: on_ranks(1, walk, root, 1, [disk[0], memory[0]]),
    }


def each_cut(walked: dict[int, list[dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for told in walked[2]:
        yield from told["go on"].items()


def test_the_account_of_memory_knows_what_lies_on_the_disk(walked: Any) -> None:
    for name, told in each_cut(walked):
        account = told["memory"]
        # Masters and moments of all that is larger than a page; where they are in memory there is no file.
        if "nvme" in name:
            assert account.disk > account.optimizer, (name, account)
        else:
            assert account.disk == 0, (name, account)
        assert account.transit > 0, (name, account)


def test_a_run_that_is_interrupted_or_rolled_back_goes_on_bit_for_bit(walked: Any) -> None:
    for name, told in each_cut(walked):
        assert told["resumed"] == told["uninterrupted"], name
        assert told["rolled back"] == told["uninterrupted"], name
        assert told["state"], name


def test_it_trains_and_measures_bit_for_bit_as_in_the_hosts_memory(walked: Any) -> None:
    for told in walked[2]:
        for name, found in told["go on"].items():
            wanted = told["go on"][f"{name.split()[0]} {MEMORY[1]}"]
            for key in ("uninterrupted", "nats", "after measuring"):
                assert found[key] == wanted[key], name


def test_a_refused_step_leaves_no_trace(walked: Any) -> None:
    for name, told in each_cut(walked):
        assert told["refused"] == [True, True, True], name


def test_the_state_is_on_the_disk_and_a_save_takes_no_memory_for_it(walked: Any) -> None:
    for name, told in each_cut(walked):
        if "nvme" in name:
            # Two groups of parameters, each with weights and two moments; norms' are small, but not these.
            assert told["files"] >= 3, name
            assert told["copied"] == 0, name
        else:
            assert told["copied"] > 0, name


def test_every_element_is_the_same_in_every_other_cut_to_the_disk_and_from_it(walked: Any) -> None:
    for world, ranks in walked.items():
        for told in ranks:
            assert told["recut"] == [], world


def test_a_disk_that_refuses_is_noticed_and_told_in_one_line(walked: Any) -> None:
    for told in walked[2]:
        reasons = (
            (os.strerror(27), "free some space on that disk, name a folder on another"),
            ("the file is shorter than it was", "something else removes or changes files there"),
        )
        for message, (reason, what) in zip(told["harmed"], reasons, strict=True):
            assert "strategy.nvme_path: " in message
            assert f"cannot be read or written ({reason}); {what}" in message
            assert "\n" not in message
