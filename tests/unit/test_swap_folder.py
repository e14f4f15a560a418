"""Folders for what is swapped out: each process its own, and none is left by the dead."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks.training_case import make_config
from training.deepspeed_sizes import ModelShape
from training.engine import needs, swap_folder
from training.engine.swap_folder import found_folder, own_swap_folder
from training.errors import ClusterError, StorageError

HOLD = """
import sys, time
from pathlib import Path
from training.engine.swap_folder import found_folder
with found_folder(Path(sys.argv[1]), "held") as folder:
    (folder / "weights.swp").write_bytes(bytes(4096))
    print(folder, flush=True)
    time.sleep(60)
"""


def hold(root: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that holds a folder of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], cwd=Path.cwd(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_is_of_one_process_and_goes_with_it(tmp_path: Path) -> None:
    with found_folder(tmp_path, "run") as one, found_folder(tmp_path, "run") as other:
        assert one != other
        assert sorted(tmp_path.iterdir()) == sorted([one, other])
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_leaves_is_removed_by_the_next_and_what_a_living_one_has_is_not(
    tmp_path: Path,
) -> None:
    killed, left = hold(tmp_path)
    living, kept = hold(tmp_path)
    try:
        killed.kill()
        killed.communicate()
        assert (left / "weights.swp").exists()
        with found_folder(tmp_path, "next") as mine:
            assert set(tmp_path.iterdir()) == {kept, mine}
            assert (kept / "weights.swp").exists()
    finally:
        living.kill()
        living.communicate()


def test_a_folder_that_something_else_keeps_locked_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap_folder, "_PATIENCE_SECONDS", 0.2)
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with (
        pytest.raises(ClusterError, match="has been locked by another program"),
        found_folder(tmp_path, "run"),
    ):
        pass
    os.close(lock)


def test_a_folder_of_the_users_is_left_alone_whatever_it_is_called(tmp_path: Path) -> None:
    theirs = tmp_path / "metier_swap_mydata"
    theirs.mkdir()
    (theirs / "precious").write_text("keep me")
    with found_folder(tmp_path, "run"):
        pass
    assert (theirs / "precious").read_text() == "keep me"


def test_the_folder_takes_the_place_of_the_path_only_where_something_is_swapped(tmp_path: Path) -> None:
    config = make_config(**{"strategy.nvme_path": tmp_path})
    with own_swap_folder(config) as same:
        assert same is config
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_no_folder_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(ClusterError) as caught, found_folder(wrong, "run"):
            pass
        assert f"strategy.nvme_path={wrong} is no folder on " in str(caught.value)
        assert "make it on every node, or name another" in str(caught.value)


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="there is no /sys, in which nobody may write")
def test_a_path_that_cannot_be_written_is_one_line_that_says_why() -> None:
    with pytest.raises(ClusterError) as caught, found_folder(Path("/sys/kernel"), "run"):
        pass
    assert "strategy.nvme_path=/sys/kernel cannot be used on" in str(caught.value)
    assert "name a folder on a local disk that you may write to" in str(caught.value)


def test_a_disk_without_the_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    config = make_config(
        **{
            "strategy": "zero3_nvme",
            "strategy.nvme_path": tmp_path,
            "precision": "bf16",
            "cluster.processes_per_node": 2,
        }
    )
    shape = ModelShape(parameters=free // 10, trained=1, layer=1, hidden=1, adapter=0, tensor=1, tensors=1)
    # Fourteen bytes a parameter: of two nodes each has seven tenths of what is free to hold.
    needs.check_room(config, shape, world_size=4)
    with pytest.raises(StorageError, match=r"GB free and the 2 processes of this node want .* name another"):
        needs.check_room(config, shape, world_size=2)
