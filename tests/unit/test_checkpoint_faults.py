"""Whatever the disk does during a save, the last complete checkpoint loads and nothing is lost unsaid."""

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.checkpoint_case import Events, LateBuffer, at
from tests.fake_run import FakeEngine, open_fake_store
from tests.faults import disk_events
from training.errors import StorageError
from training.fence import FencedError, claim_incarnation, within_fence
from training.layout import RunLayout


@pytest.fixture(autouse=True)
def _without_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of saves need no power-cut safety; the syncs stay events that can fail."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


def save(root: Path, step: int, events: Events | None = None) -> None:
    open_fake_store(root, FakeEngine(float(step)), events=events).save(at(step), final=True)


def load(root: Path) -> tuple[int, float]:
    engine = FakeEngine()
    progress = open_fake_store(root, engine).resume()
    assert len(set(engine.value.tolist())) == 1, "half of one state and half of another"
    assert torch.equal(engine.moment, -engine.value)
    return progress.step, float(engine.value[0])


def names(root: Path) -> list[str]:
    return sorted(path.name for path in RunLayout(root).checkpoints.iterdir())


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free=300_000))
    with pytest.raises(StorageError, match=r"step 2 .*it needs 17\.2 MB, the disk has 0\.3 MB free"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["step_00000001"]


class SlowDisk:
    """Holds a save's writes back until it is opened; lets each fail if wanted."""

    def __init__(self, code: int | None = None) -> None:
        self.opened = threading.Event()
        self._code = code

    def __call__(self, _moment: int) -> None:
        assert self.opened.wait(30)
        if self._code is not None:
            raise OSError(self._code, os.strerror(self._code))


def test_the_training_goes_on_while_a_checkpoint_is_written_and_its_state_is_that_of_the_save(
    tmp_path: Path,
) -> None:
    engine, events, disk = FakeEngine(1.0), Events(), SlowDisk()
    store = open_fake_store(tmp_path, engine, events=events)
    with disk_events(RunLayout(tmp_path).checkpoints, disk):
        store.save(at(1))
        store.wait_until_copied()
        engine.value += 1  # the next step
        engine.moment -= 1
        store.settle()
        assert events.kinds == []
        disk.opened.set()
        store.save(at(2), final=True)
    assert [(kind, facts["step"]) for kind, facts in events.told] == [("saved", 1), ("saved", 2)]
    shutil.rmtree(RunLayout(tmp_path).checkpoint(2))
    assert load(tmp_path) == (1, 1.0)


def test_the_state_may_change_once_it_is_copied_and_the_wait_for_it_is_told(tmp_path: Path) -> None:
    engine, events, buffer = FakeEngine(1.0), Events(), LateBuffer()
    store = open_fake_store(tmp_path, engine, events=events)
    store._buffer = buffer
    store.save(at(1))
    threading.Timer(0.1, buffer.gate.set).start()
    store.wait_until_copied()
    engine.value += 1  # the next update
    engine.moment -= 1
    store.wait_until_copied()
    store.save(at(2), final=True)
    waited, final = (facts["stall_seconds"] for _, facts in events.told)
    assert isinstance(waited, float)
    assert isinstance(final, float)
    assert waited >= 0.09
    assert final > 0, "a final save stalls for as long as it takes"
    shutil.rmtree(RunLayout(tmp_path).checkpoint(2))
    assert load(tmp_path) == (1, 1.0)


def test_a_copy_that_fails_is_told_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no memory left")

    events = Events()
    store = open_fake_store(tmp_path, FakeEngine(1.0), events=events)
    monkeypatch.setattr("training.checkpoint.share.HostBuffer.copy", fail)
    store.save(at(1))
    store.wait_until_copied()
    wait_until_told(store, events)
    assert events.kinds == ["save_failed", "note"]
    assert "rank 0 cannot copy its state: no memory left" in events.notes[0]


def test_a_failure_in_the_background_is_told_at_the_next_step_and_training_goes_on(
    tmp_path: Path,
) -> None:
    engine, events, disk = FakeEngine(1.0), Events(), SlowDisk(errno.ENOSPC)
    store = open_fake_store(tmp_path, engine, events=events)
    with disk_events(RunLayout(tmp_path).checkpoints, disk):
        store.save(at(1))
        disk.opened.set()
        wait_until_told(store, events)
    assert events.kinds == ["save_failed", "note"]
    assert "No space left on device" in events.notes[0]
    assert "training goes on" in events.notes[0]
    store.save(at(2), final=True)
    assert load(tmp_path) == (2, 1.0)


def test_an_error_of_the_training_does_not_lose_the_save_on_its_way(tmp_path: Path) -> None:
    events, disk = Events(), SlowDisk()
    store = open_fake_store(tmp_path, FakeEngine(1.0), events=events)
    with disk_events(RunLayout(tmp_path).checkpoints, disk):
        store.save(at(1))
        threading.Timer(0.1, disk.opened.set).start()
        store.close()
    assert events.kinds == ["saved"]
    assert load(tmp_path) == (1, 1.0)


def wait_until_told(store: Any, events: Events) -> None:
    for _ in range(3000):
        store.settle()
        if events.told:
            return
        threading.Event().wait(0.01)
    raise AssertionError("nothing was told in 30 s")


def test_a_defect_in_the_background_is_not_lost_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("training.checkpoint.store.write_checkpoint", fail)
    store = open_fake_store(tmp_path, FakeEngine())
    with pytest.raises(StorageError, match="step 1: ZeroDivisionError: a defect"):
        store.save(at(1), final=True)


def test_a_newer_start_ends_the_older_one_at_its_next_step(tmp_path: Path) -> None:
    events = Events()
    older = open_fake_store(tmp_path, FakeEngine(1.0), events=events)
    open_fake_store(tmp_path, FakeEngine(2.0)).save(at(1), final=True)
    written = RunLayout(tmp_path).checkpoints / ".staging_00000003_2"
    written.mkdir()
    older.save(at(2))
    with pytest.raises(FencedError, match="start 2 of this run has taken over"):
        wait_until_told(older, Events())
    assert load(tmp_path) == (1, 2.0)
    assert events.kinds == [], "the run has not failed"
    assert written.is_dir(), "what the newer start is writing is not swept away"


def test_a_run_that_was_removed_while_it_trained_is_not_said_to_be_taken_over(tmp_path: Path) -> None:
    store = open_fake_store(tmp_path, FakeEngine(1.0))
    shutil.rmtree(RunLayout(tmp_path).incarnations)
    store.save(at(2))
    with pytest.raises(FencedError, match=r"somebody has removed .*incarnations"):
        wait_until_told(store, Events())


def test_a_start_that_was_overtaken_sets_no_checkpoint_aside(tmp_path: Path) -> None:
    open_fake_store(tmp_path, FakeEngine(1.0)).save(at(1), final=True)
    older = open_fake_store(tmp_path, FakeEngine())
    open_fake_store(tmp_path, FakeEngine())
    (RunLayout(tmp_path).checkpoint(1) / "rank_00000.bin").write_bytes(b"short")
    with pytest.raises(FencedError):
        older.resume()
    assert RunLayout(tmp_path).checkpoint(1).is_dir()


def test_whatever_goes_wrong_in_a_start_that_was_overtaken_is_just_that(tmp_path: Path) -> None:
    claim_incarnation(tmp_path)
    with pytest.raises(ZeroDivisionError), within_fence(tmp_path, 1):
        raise ZeroDivisionError
    claim_incarnation(tmp_path)
    with pytest.raises(FencedError, match="start 2 of this run has taken over"), within_fence(tmp_path, 1):
        raise ZeroDivisionError
