"""When one of several ranks cannot write or read, all of them know, and agree on what is loaded."""

import errno
import os
from pathlib import Path
from typing import Any

import torch

from tests.checkpoint_case import Events, at
from tests.fake_run import FakeEngine, open_fake_store
from tests.faults import disk_events, fail_at
from tests.ranks.spawn import on_ranks
from training.errors import StorageError
from training.layout import RunLayout
from training.ranks import Ranks


def wait_until_told(store: Any, events: Events) -> int:
    """Take steps, as the loop does, until the save on its way is told; give their number."""
    told = len(events.told)
    for step in range(100_000):
        store.settle()
        if len(events.told) > told:
            return step
    raise AssertionError("nothing was told")


def go_through(root: Path) -> dict[str, Any]:
    """Save well, save while rank 1 has no space, lose rank 1's file, then load."""
    from training.collectives import gather_over_ranks, join

    ranks = Ranks.from_environ(os.environ)
    join(ranks, device=torch.device("cpu"), timeout_seconds=60)
    told: dict[str, Any] = {}
    engine, events = FakeEngine(1.0, ranks), Events()
    store = open_fake_store(root, engine, events=events, ranks=ranks)
    store.save(at(1), final=True)
    act = fail_at(1, errno.ENOSPC, for_good=True) if ranks.rank == 1 else lambda _: None
    with disk_events(RunLayout(root).checkpoints, act):
        store.save(at(2))
        told["steps"] = wait_until_told(store, events)
        gather_over_ranks(None)
        try:
            store.save(at(3), final=True)
        except StorageError as error:
            told["final"] = str(error)
    told["events"] = events.kinds
    engine.value += 1
    engine.moment -= 1
    store.save(at(4))
    store.save(at(5), final=True)
    if ranks.is_lead:
        (RunLayout(root).checkpoint(5) / "rank_00001.bin").unlink()
    gather_over_ranks(None)
    engine, events = FakeEngine(0.0, ranks), Events()
    told["loaded"] = open_fake_store(root, engine, events=events, ranks=ranks).resume().step
    told["values"] = (set(engine.value.tolist()), set(engine.moment.tolist()))
    told["rejected"] = events.kinds
    return told


def test_the_fault_of_one_rank_is_told_on_all_and_the_last_complete_checkpoint_is_loaded_by_all(
    tmp_path: Path,
) -> None:
    lead, other = on_ranks(2, go_through, tmp_path)

    for told in (lead, other):
        assert "rank 1: No space left on device" in told["final"]
        assert told["events"] == ["saved", "save_failed", "note", "save_failed"]
        assert told["loaded"] == 4
        assert told["values"] == ({2.0}, {-2.0})
    assert lead["steps"] == other["steps"], "all tell of it at the same step"
    assert lead["rejected"] == ["checkpoint_rejected", "note"]
