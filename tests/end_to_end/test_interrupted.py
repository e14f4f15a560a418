"""Law 3 as a user meets it: kill the training, type the command again, get the same run."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.end_to_end.runs import journal, kinds, link_prepared, metier, read_lines, start, succeed

STEPS = 10
COMMAND = (
    "train",
    "experiment=tiny_smoke",
    "adapter=lora",
    "adapter.dropout=0.1",  # so that a wrong random state would show
    "cluster.processes_per_node=2",
    f"loop.max_steps={STEPS}",
    "loop.checkpoint_every_steps=3",
)
RUN = Path("runs") / "tiny_smoke"


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train without interruption; give the working folder."""
    folder = link_prepared(prepared, tmp_path_factory.mktemp("uninterrupted") / "work")
    succeed(folder, *COMMAND)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(whole: Path) -> dict[int, float]:
    """Each step's loss, of a training that nobody interrupted."""
    return {step: line["loss"] for step, line in journal(whole / RUN).items()}


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a step is in the journal."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and len(read_lines(run / "metrics.jsonl")) >= step:
            return
        assert process.poll() is None, f"ended before step {step}: {process.communicate()}"
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached in 300 s")


def processes_of(run: Path) -> list[int]:
    """Find the processes that have this run's folder in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            folder = (entry / "cwd").resolve()
        except OSError:
            continue
        if str(run) in words or (
            str(run).endswith(str(RUN)) and folder == run.parent.parent and "train" in words
        ):
            found.append(int(entry.name))
    return found


def wait_until_gone(run: Path) -> None:
    """Wait until no process of the run is left."""
    deadline = time.monotonic() + 60
    while left := processes_of(run):
        assert time.monotonic() < deadline, f"processes {left} still live"
        time.sleep(0.1)


@pytest.mark.parametrize("victim", ["launcher", "lead rank", "everything"])
def test_a_killed_training_goes_on_and_ends_with_the_same_losses(
    victim: str, prepared: Path, tmp_path: Path, uninterrupted: dict[int, float]
) -> None:
    folder = link_prepared(prepared, tmp_path / "work")
    run = folder / RUN
    process = start(folder, *COMMAND)
    wait_for_step(run, random.randint(4, 8), process)
    match victim:
        case "launcher":
            os.kill(process.pid, signal.SIGKILL)
        case "lead rank":
            claim = json.loads((run / "incarnations" / "000001.json").read_text())
            os.kill(claim["pid"], signal.SIGKILL)
        case "everything":
            for pid in processes_of(run):
                os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=120)
    wait_until_gone(run)

    told = succeed(folder, *COMMAND)

    losses = {step: line["loss"] for step, line in journal(run).items()}
    assert losses == uninterrupted
    assert kinds(run)[-1] == "finished"
    assert "resumed" in kinds(run) or victim == "launcher"
    assert "finished after step 10" in told


def test_a_polite_stop_saves_at_once_and_the_same_command_goes_on(
    prepared: Path, tmp_path: Path, uninterrupted: dict[int, float]
) -> None:
    folder = link_prepared(prepared, tmp_path / "work")
    run = folder / RUN
    process = start(folder, *COMMAND)
    wait_for_step(run, 4, process)

    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=120)

    stopped_at = max(journal(run))
    assert process.returncode == 0, told
    assert json.loads((run / "outcome.json").read_text())["state"] == "STOPPED"
    assert (run / "checkpoints" / f"step_{stopped_at:08d}").is_dir()
    succeed(folder, *COMMAND)
    assert {step: line["loss"] for step, line in journal(run).items()} == uninterrupted
    # Nothing was computed twice: the stop came at the edge of a step and was saved there.
    assert len(read_lines(run / "metrics.jsonl")) == STEPS


def test_a_run_that_is_finished_says_so_and_trains_no_more(whole: Path) -> None:
    before = read_lines(whole / RUN / "metrics.jsonl")

    again = metier(whole, *COMMAND)

    assert again.returncode == 0
    assert "finished" in again.stdout
    assert read_lines(whole / RUN / "metrics.jsonl") == before


def test_a_damaged_newest_checkpoint_costs_some_steps_and_nothing_else(
    prepared: Path, tmp_path: Path, uninterrupted: dict[int, float]
) -> None:
    folder = link_prepared(prepared, tmp_path / "work")
    run = folder / RUN
    process = start(folder, *COMMAND)
    wait_for_step(run, 7, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    newest = sorted((run / "checkpoints").glob("step_*"))[-1] / "rank_00001.bin"
    data = bytearray(newest.read_bytes())
    data[100] ^= 1
    newest.write_bytes(data)

    told = succeed(folder, *COMMAND)

    assert {step: line["loss"] for step, line in journal(run).items()} == uninterrupted
    assert "checkpoint_rejected" in kinds(run)
    assert "rank_00001.bin has changed since it was written" in told
    assert "set aside as damaged_step_" in told
