"""Whatever the disk does during a save, the last complete checkpoint loads and nothing is lost unsaid."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.checkpoint_case import Events, at
from tests.fake_run import FakeEngine, open_fake_store
from tests.faults import ERRORS, count_events, disk_events, fail_at
from training.checkpoint.fence import FencedError
from training.checkpoint.store import CheckpointStore
from training.errors import StorageError
from training.layout import RunLayout

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("code", ERRORS.values(), ids=ERRORS.keys())
def test_an_error_at_any_event_of_a_save_is_told_and_harms_no_older_checkpoint(
    code: int, for_good: bool, tmp_path: Path
) -> None:
    good = tmp_path / "good"
    for step in (1, 2):
        save(good, step)
    shutil.copytree(good, tmp_path / "counted")
    checkpoints = RunLayout(tmp_path / "counted").checkpoints
    moments = count_events(checkpoints, lambda: save(tmp_path / "counted", 3))
    assert moments > 15

    failures = 0
    for moment in range(1, moments + 1):
        run, events = tmp_path / f"run_{moment}", Events()
        shutil.copytree(good, run)
        store = open_fake_store(run, FakeEngine(3.0), events=events)
        with disk_events(RunLayout(run).checkpoints, fail_at(moment, code, for_good=for_good)):
            reason = try_to_save(store)
        if reason is None:
            assert events.kinds == ["saved"]
            assert load(run) == (3, 3.0)
        else:
            failures += 1
            assert os.strerror(code) in reason
            assert "older checkpoints are untouched" in reason
            assert events.kinds == ["save_failed"]
            assert load(run) in {(2, 2.0), (3, 3.0)}
        save(run, 4)
        assert load(run) == (4, 4.0)
        assert all(name.startswith("step_") for name in names(run)), names(run)
        shutil.rmtree(run)
    assert failures > moments // 2


def try_to_save(store: CheckpointStore) -> str | None:
    """Save; give the reason when that fails."""
    try:
        store.save(at(3), final=True)
    except StorageError as error:
        return str(error)
    return None


def test_a_kill_at_any_event_of_a_save_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.killed_save", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert said["events"] > 20
    for moment, told in enumerate(said["told"], start=1):
        assert told["killed"], moment
        assert told["loaded"] in [[2, 2.0], [3, 3.0]], moment
        assert told["then"] == [4, 4.0], moment
        assert told["left"] == [], moment
    assert {told["loaded"][0] for told in said["told"]} == {2, 3}


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free=300_000))
    with pytest.raises(StorageError, match=r"step 2 .*it needs 0\.4 MB, the disk has 0\.3 MB free"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["step_00000001"]


def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with (
        disk_events(RunLayout(tmp_path).checkpoints, fail_at(1, errno.EACCES, for_good=True)),
        pytest.raises(StorageError, match=r"Permission denied.*set its permissions"),
    ):
        save(tmp_path, 2)
    assert load(tmp_path) == (1, 1.0)


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
        engine.value += 1  # the next step
        engine.moment -= 1
        store.settle()
        assert events.kinds == []
        disk.opened.set()
        store.save(at(2), final=True)
    assert [(kind, facts["step"]) for kind, facts in events.told] == [("saved", 1), ("saved", 2)]
    shutil.rmtree(RunLayout(tmp_path).checkpoint(2))
    assert load(tmp_path) == (1, 1.0)


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
    older.save(at(2))
    with pytest.raises(FencedError, match="start 2 of this run has taken over"):
        wait_until_told(older, Events())
    assert load(tmp_path) == (1, 2.0)
