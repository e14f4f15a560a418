"""What the nodes read and write is looked for on the login node."""

import json
import re
from pathlib import Path

import pytest

from launcher.slurm.paths import check_paths, check_space, estimate_checkpoint, find_filesystem
from tests.cluster_case import slurm_run
from training.config.schema import RunConfig
from training.errors import ClusterError, StorageError

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "vocab_size": 1000,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
}
PARAMETERS = 2 * 1000 * 64 + 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64)


def with_model(folder: Path, layers: int = 2, **changes: object) -> RunConfig:
    (folder / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": layers}))
    return slurm_run(
        run_root=str(folder / "runs"), model__source="huggingface", model__path=str(folder), **changes
    )


def test_a_checkpoint_has_fourteen_bytes_for_every_parameter_that_is_trained(tmp_path: Path) -> None:
    assert estimate_checkpoint(with_model(tmp_path)) == PARAMETERS * 14
    adapter = estimate_checkpoint(with_model(tmp_path, adapter__kind="lora"))
    assert adapter is not None
    assert adapter < PARAMETERS * 2


def test_a_run_whose_checkpoints_do_not_fit_is_refused(tmp_path: Path) -> None:
    check_space(with_model(tmp_path))
    with pytest.raises(
        StorageError, match=r"has [\d.]+ GB free, and the run's checkpoints need about"
    ) as raised:
        check_space(with_model(tmp_path, layers=10**9))
    assert "loop.keep_checkpoints" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_checkpoints_that_are_there_already_need_no_more_room(tmp_path: Path) -> None:
    config = with_model(tmp_path, layers=10**9, loop__keep_checkpoints=3)
    for step in range(3):
        (tmp_path / "runs" / config.name / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"\(1 x "):
        check_space(config)


def test_a_python_or_an_image_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=re.escape("environment.python=/nix/python is no program here")):
        check_paths(slurm_run(cluster__environment__python="/nix/python"))
    with pytest.raises(ClusterError, match=re.escape("image=/nix.sif is missing here")):
        check_paths(slurm_run(cluster__container__kind="apptainer", cluster__container__image="/nix.sif"))
    image = tmp_path / "a.sif"
    image.write_text("")
    check_paths(slurm_run(cluster__container__kind="apptainer", cluster__container__image=str(image)))


def test_an_address_of_an_image_is_told_as_not_looked_at() -> None:
    notes = check_paths(slurm_run(cluster__container__kind="pyxis", cluster__container__image="reg#a/b:1"))
    assert any("image=reg#a/b:1 is fetched on the nodes" in note for note in notes)


def test_folders_that_each_machine_has_for_itself_are_told() -> None:
    own = {"run_root": "/tmp/runs", "data__path": "/dev/shm/corpus"}  # noqa: S108 - nothing is written
    notes = check_paths(slurm_run(**own))
    # This copy of the project, and so the model's folder, may lie below /tmp as well.
    told = [note for note in notes if "below /tmp, most often each machine's own" in note]
    assert [note.startswith("run_root=/tmp/runs") for note in told] == [True]
    assert any(note.startswith("data.path=/dev/shm/corpus lies below /dev/shm") for note in notes)


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "30 22 0:30 / /shared\\040disk rw - nfs4 server:/x rw\n"
        "31 30 0:31 / /shared\\040disk/quick rw - tmpfs none rw\n"
    )
    assert find_filesystem(Path("/home/x"), mounts) == "ext4"
    assert find_filesystem(Path("/shared disk/y"), mounts) == "nfs4"
    assert find_filesystem(Path("/shared disk/quick/y"), mounts) == "tmpfs"
    assert find_filesystem(Path("/x"), tmp_path / "nothing") is None
