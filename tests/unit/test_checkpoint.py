"""Checkpoints: complete or absent, verified when read, fenced against an older start."""

import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint_case import Events, at
from tests.fake_run import FakeEngine, open_fake_store
from training.checkpoint.load import find_checkpoint
from training.checkpoint.manifest import list_checkpoints
from training.errors import CheckpointError, StorageError
from training.fence import FencedError, claim_incarnation
from training.layout import ASKED, RunLayout
from training.metrics.goodput import read_first_start
from training.progress import Memory, Progress


def save_steps(root: Path, *steps: int) -> None:
    engine = FakeEngine()
    store = open_fake_store(root, engine)
    for step in steps:
        engine.value = torch.full((50_000,), float(step))
        store.save(at(step), final=True)


def names(root: Path) -> list[str]:
    return [path.name for path in list_checkpoints(RunLayout(root).checkpoints)]


def test_a_run_without_checkpoints_begins_at_the_beginning(tmp_path: Path) -> None:
    assert open_fake_store(tmp_path, FakeEngine()).resume() == at(0)


def test_a_resumed_run_has_the_state_and_the_position_of_the_newest_checkpoint(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3)
    engine = FakeEngine()

    assert open_fake_store(tmp_path, engine).resume() == at(3)
    assert torch.equal(engine.value, torch.full((50_000,), 3.0))


def test_what_the_loop_remembers_travels_with_the_checkpoint_to_the_last_bit(tmp_path: Path) -> None:
    memory = Memory(recent=(0.1, 1 / 3), skipped_steps=2, furthest_step=9, best_held_out_loss=2 / 3)
    saved = Progress(step=7, samples_seen=72, memory=memory)
    open_fake_store(tmp_path, FakeEngine()).save(saved, final=True)

    assert open_fake_store(tmp_path, FakeEngine()).resume() == saved


def test_a_run_that_is_rolled_back_passes_over_the_checkpoint_that_a_stop_left(tmp_path: Path) -> None:
    save_steps(tmp_path, 6, 7)
    engine = FakeEngine()

    assert open_fake_store(tmp_path, engine).resume(every=3).step == 6
    assert torch.equal(engine.value, torch.full((50_000,), 6.0))
    assert open_fake_store(tmp_path, engine).resume(every=4) == at(0)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3, 4)

    assert names(tmp_path) == ["step_00000003", "step_00000004"]


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped bit": lambda folder: flip_a_bit(folder / "rank_00000.bin"),
    "a truncated file": lambda folder: (folder / "rank_00000.bin").write_bytes(b"short"),
    "a missing file": lambda folder: (folder / "rank_00000.bin").unlink(),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "a manifest of another kind": lambda folder: (folder / "manifest.json").write_text("{}"),
    "a damaged index": lambda folder: flip_a_bit(folder / "index.json"),
    "a missing index": lambda folder: (folder / "index.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_read(tmp_path: Path, damage: Any) -> None:
    save_steps(tmp_path, 1, 2)
    damage(RunLayout(tmp_path).checkpoint(2))
    engine, events = FakeEngine(), Events()

    assert open_fake_store(tmp_path, engine, events=events).resume() == at(1)
    assert float(engine.value[0]) == 1.0
    assert events.kinds == ["checkpoint_rejected", "note"]
    assert "step_00000002" in events.notes[0]
    assert "set aside as damaged_step_00000002" in events.notes[0]
    assert names(tmp_path) == ["step_00000001"]
    assert (RunLayout(tmp_path).checkpoints / "damaged_step_00000002").is_dir()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    for step in (1, 2):
        flip_a_bit(RunLayout(tmp_path).checkpoint(step) / "rank_00000.bin")

    # The second time they have been set aside already, and that must not look like a new run.
    for _ in range(2):
        with pytest.raises(CheckpointError, match="2 checkpoints and none can be read"):
            open_fake_store(tmp_path, FakeEngine()).resume()


def test_a_position_in_another_corpus_is_refused_in_words(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)

    with pytest.raises(CheckpointError, match="was trained on another corpus"):
        open_fake_store(tmp_path, FakeEngine(), corpus="decaf").resume()


def test_other_weights_under_an_adapter_are_refused_in_words(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)

    with pytest.raises(CheckpointError, match="was trained from other weights than those that the model's"):
        open_fake_store(tmp_path, FakeEngine(), base="fe11ed").resume()


def test_a_checkpoint_that_was_put_into_another_ones_place_is_set_aside(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    shutil.copytree(RunLayout(tmp_path).checkpoint(2), RunLayout(tmp_path).checkpoint(3))

    events = Events()
    assert open_fake_store(tmp_path, FakeEngine(), events=events).resume().step == 2
    assert "step_00000003 holds step 2: it was put there from elsewhere" in events.notes[0]


def test_a_checkpoint_of_another_run_under_its_own_step_is_set_aside(tmp_path: Path) -> None:
    save_steps(tmp_path / "mine", 1)
    other = open_fake_store(tmp_path / "other", FakeEngine(), run="0fe4", optimizer="muon")
    other.save(at(2), final=True)
    mine = RunLayout(tmp_path / "mine")
    shutil.copytree(RunLayout(tmp_path / "other").checkpoint(2), mine.checkpoint(2))
    mine.config.write_text('{"run_id": "d0d0"}')

    with pytest.raises(CheckpointError, match=r"is of another run, whose run.json has the id 0fe4"):
        find_checkpoint(mine, 2)
    assert find_checkpoint(mine, None) == mine.checkpoint(1)
    events = Events()
    assert open_fake_store(mine.root, FakeEngine(), events=events).resume().step == 1
    assert "is of another run, whose run.json has the id 0fe4 and not d0d0" in events.notes[0]
    assert "set aside as damaged_step_00000002" in events.notes[0]


def test_another_optimizer_than_the_checkpoints_is_refused_in_words(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)

    with pytest.raises(CheckpointError, match=r"trained with optimizer.kind=adamw, and run.json says muon"):
        open_fake_store(tmp_path, FakeEngine(), optimizer="muon").resume()


def test_a_run_whose_checkpoints_were_all_set_aside_names_them(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    layout = RunLayout(tmp_path)
    layout.config.write_text('{"run_id": "d0d0"}')
    layout.checkpoint(1).rename(layout.checkpoints / "damaged_step_00000001")

    for step in (None, 1):
        with pytest.raises(CheckpointError, match="set aside as damaged: damaged_step_00000001"):
            find_checkpoint(layout, step)


def test_what_died_half_written_is_not_a_checkpoint_and_is_swept_by_the_next_save(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    checkpoints = RunLayout(tmp_path).checkpoints
    half = checkpoints / ".staging_00000002_1"
    half.mkdir()
    (half / "rank_00000.bin").write_bytes(b"half")

    store = open_fake_store(tmp_path, FakeEngine())
    assert store.resume() == at(1)
    store.save(at(2), final=True)

    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_00000001", "step_00000002"]


def test_an_older_start_of_the_run_may_not_commit(tmp_path: Path) -> None:
    older = open_fake_store(tmp_path, FakeEngine(1.0))
    newer = open_fake_store(tmp_path, FakeEngine(2.0))

    newer.save(at(1), final=True)
    with pytest.raises(FencedError, match="start 2 of this run has taken over; start 1 ends"):
        older.save(at(2), final=True)

    assert names(tmp_path) == ["step_00000001"]


def test_a_disk_that_refuses_leaves_nothing_behind_and_harms_no_older_checkpoint(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    engine = FakeEngine()
    store = open_fake_store(tmp_path, engine)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # A file of this process may not grow past 16 KiB: write fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"checkpoint of step 2 .*free some space"):
            store.save(at(2), final=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)

    assert [path.name for path in RunLayout(tmp_path).checkpoints.iterdir()] == ["step_00000001"]
    assert open_fake_store(tmp_path, engine).resume() == at(1)
    store = open_fake_store(tmp_path, engine)
    store.save(at(2), final=True)
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


def test_a_checkpoint_asked_for_by_step_must_exist(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    RunLayout(tmp_path).config.write_text('{"run_id": "d0d0"}')

    assert find_checkpoint(RunLayout(tmp_path), 1).name == "step_00000001"
    with pytest.raises(CheckpointError, match="step_00000009 does not exist; checkpoints: 1, 2"):
        find_checkpoint(RunLayout(tmp_path), 9)


def test_starts_are_numbered_one_after_the_other(tmp_path: Path) -> None:
    assert [claim_incarnation(tmp_path) for _ in range(3)] == [1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001.json", "000002.json", "000003.json"]


def test_a_start_counts_from_when_the_launcher_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ASKED, "1000.5")
    claim_incarnation(tmp_path)
    monkeypatch.setenv(ASKED, "2000.5")
    claim_incarnation(tmp_path)
    assert read_first_start(tmp_path) == 1000.5
