"""outcome.json: the first cause is the one that counts."""

import json
import threading
from pathlib import Path

import pytest
import torch

from training import outcome
from training.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DataError,
    ModelError,
    NumericError,
    StorageError,
)
from training.fence import FencedError
from training.layout import RunLayout
from training.outcome import Cause, Outcome, find_cause, read_outcome, write_outcome
from training.ranks import Ranks
from training.worker.tell import PeerLostError, clear_outcome, name_lost_peer, tell_end, tell_failure


def failed(rank: int) -> Outcome:
    return Outcome(state="FAILED", step=None, error_class="DataError", message=f"of {rank}", rank=rank)


def test_the_first_rank_to_tell_is_heard_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"

    told = [write_outcome(path, failed(rank)) for rank in (1, 0, 2)]

    assert told == [True, False, False]
    assert json.loads(path.read_text())["message"] == "of 1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["outcome.json"]


def test_a_folder_that_is_gone_is_no_second_failure(tmp_path: Path) -> None:
    assert not write_outcome(tmp_path / "gone" / "outcome.json", failed(0))


RANKS = Ranks(rank=1, local_rank=1, world_size=2)
LOST = RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConfigError("a"), "settings"),
        (ModelError("a"), "settings"),
        (ClusterError("a"), "settings"),
        (DataError("a"), "data"),
        (CheckpointError("a"), "checkpoint"),
        (FencedError("a"), "checkpoint"),
        (StorageError("a"), "storage"),
        (NumericError("a"), "numeric"),
        (torch.OutOfMemoryError("a"), "memory"),
        (MemoryError(), "memory"),
        (PeerLostError("a"), "peer"),
        (ValueError("a"), "unknown"),
    ],
)
def test_each_error_has_its_cause(error: Exception, cause: Cause) -> None:
    assert find_cause(error) == cause


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (LOST, True),
        (RuntimeError("Timed out waiting 60000ms for recv operation to complete"), True),
        (torch.distributed.DistStoreError("wait timeout after 1800000ms, keys: /default_pg/0"), True),
        (
            torch.distributed.DistNetworkError("failed to recv, got 0 bytes. Connection was likely closed"),
            True,
        ),
        (RuntimeError("shape mismatch"), False),
        (StorageError("the disk said: Broken pipe"), False),
        (ValueError("timed out"), False),
    ],
)
def test_a_peer_is_lost_where_a_collective_says_so_and_nowhere_else(error: Exception, lost: bool) -> None:
    named = name_lost_peer(error)
    assert isinstance(named, PeerLostError) == lost
    assert lost or named is error


def test_a_failure_tells_who_where_which_start_and_why(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    tell_failure(layout, RANKS, DataError("a.jsonl:3: broken\nmore"), 4)
    told = read_outcome(layout.outcome)
    assert told is not None
    assert (told.state, told.error_class, told.message) == ("FAILED", "DataError", "a.jsonl:3: broken")
    assert (told.rank, told.incarnation, told.cause) == (1, 4, "data")
    assert told.node


def test_a_cause_replaces_the_mere_loss_of_a_peer_and_never_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome, "PEER_WAIT_SECONDS", 0.0)
    layout = RunLayout(tmp_path)
    for error, told in (
        (LOST, "PeerLostError"),
        (LOST, "PeerLostError"),
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError"),
        (LOST, "OutOfMemoryError"),
        (DataError("later"), "OutOfMemoryError"),
    ):
        tell_failure(layout, RANKS, error, 1)
        found = read_outcome(layout.outcome)
        assert found is not None
        assert found.error_class == told
    assert [entry.name for entry in tmp_path.iterdir()] == ["outcome.json"]


def test_who_lost_a_peer_waits_for_that_ones_own_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome, "PEER_WAIT_SECONDS", 60.0)
    layout = RunLayout(tmp_path)
    waiting = threading.Thread(target=tell_failure, args=(layout, RANKS, LOST, 1))
    waiting.start()
    tell_failure(layout, RANKS, DataError("the cause"), 1)
    waiting.join(timeout=30)
    assert not waiting.is_alive()
    told = read_outcome(layout.outcome)
    assert told is not None
    assert told.message == "the cause"


def test_a_stop_tells_what_asked_for_it_and_the_next_start_forgets_it(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    tell_end(layout, "STOPPED", 7, 2, "stop.request: ann")
    told = read_outcome(layout.outcome)
    assert told is not None
    assert (told.state, told.step, told.notice, told.incarnation) == ("STOPPED", 7, "stop.request: ann", 2)
    clear_outcome(layout, 2)
    assert layout.outcome.exists()
    clear_outcome(layout, 3)
    assert not layout.outcome.exists()
