"""Disks that are full or lie, and memory that is used up."""

import json
from pathlib import Path

from tests.slurm.conftest import Order
from tests.slurm.jobs import drained_nodes, strays, wait_until_ended
from tests.slurm.linux import wait_for
from tests.slurm.runs import SAVED_EVERY, STEPS, Training


def fill(training: Training) -> None:
    """Leave no byte on the disk of the run directories."""
    place = f"{training.cluster.root}/shared/filler"
    training.cluster.run("dd", "if=/dev/zero", f"of={place}", "bs=64k", check=False)


def log_of(training: Training, job: int) -> str:
    return (training.run / f"logs/job_{job}.log").read_text()


def on_small_disk(order: Order, work: Path) -> Training:
    cluster = order(nodes=2, shared_disk="64M")
    return Training(cluster, work, seen=cluster.shared / "runs")


def test_a_shared_disk_that_is_full_for_a_while_costs_saves_and_no_step(
    order: Order, work: Path, whole: Path
) -> None:
    training = on_small_disk(order, work)
    job = training.submit(f"run_root={training.cluster.root}/shared/runs")
    training.wait_for_step()
    fill(training)
    training.assert_inside()
    wait_for(lambda: "could not be written" in log_of(training, job), 60, "a failed save", pause=0.05)
    training.cluster.run("rm", f"{training.cluster.root}/shared/filler")
    assert training.finish().restarts == 0
    assert len(training.journal("started")) == 1
    training.assert_same_as(whole, lost=0, gaps=True)


def test_when_the_last_save_fails_for_want_of_space_the_run_is_not_called_finished(
    order: Order, work: Path, whole: Path
) -> None:
    training = on_small_disk(order, work)
    job = training.submit(f"run_root={training.cluster.root}/shared/runs")
    training.wait_for_step()
    fill(training)
    training.assert_inside()
    ended = wait_until_ended(training.cluster, job)
    assert ended.state == "FAILED"
    assert not [line for line in training.journal("decided") if line["step"] == "finished"]
    training.cluster.run("rm", f"{training.cluster.root}/shared/filler")
    training.submit(f"run_root={training.cluster.root}/shared/runs")
    training.finish()
    training.assert_same_as(whole, lost=STEPS, gaps=True)


def test_a_damaged_newest_checkpoint_is_put_aside_and_an_older_one_used(
    training: Training, whole: Path
) -> None:
    job = training.submit()
    training.wait_for_step(2 * SAVED_EVERY + 2)
    training.cluster.run("scancel", str(job))
    wait_until_ended(training.cluster, job)
    newest = sorted((training.run / "checkpoints").glob("step_*"))[-1]
    file = newest / max(json.loads((newest / "manifest.json").read_text())["files"], key=size_of)["path"]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    training.submit()
    training.finish()
    assert training.events("checkpoint_rejected")
    training.assert_same_as(whole, lost=SAVED_EVERY + 2)


def size_of(file: dict[str, object]) -> int:
    return int(str(file["size"]))


def test_a_rank_that_uses_up_the_memory_ends_the_run_with_its_cause_and_no_endless_tries(
    order: Order, work: Path
) -> None:
    training = Training(order(nodes=2, enforces_memory=True), work)
    job = training.submit("cluster.slurm.memory=300M")
    ended = wait_until_ended(training.cluster, job)
    assert ended.state in {"FAILED", "OUT_OF_MEMORY"}
    assert "memory" in training.ends()[-1]["reason"]
    assert len(training.journal("started")) <= 1
    assert strays(training.cluster) == []
    assert drained_nodes(training.cluster) == []
