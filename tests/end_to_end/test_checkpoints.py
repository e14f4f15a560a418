"""A run that goes on with another number of processes and another strategy, and `metier checkpoints`."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.end_to_end.runs import (
    environment,
    journal,
    kinds,
    link_prepared,
    metier,
    read_lines,
    start,
    succeed,
)
from tests.end_to_end.test_interrupted import wait_for_step

STEPS = 12
COMMON = (
    "train",
    "experiment=tiny_smoke",
    "adapter=qlora",
    f"loop.max_steps={STEPS}",
    "loop.checkpoint_every_steps=2",
)
RUN = Path("runs") / "tiny_smoke"


def test_a_run_of_one_process_goes_on_with_two_and_other_sharding(prepared: Path, tmp_path: Path) -> None:
    whole = link_prepared(prepared, tmp_path / "whole")
    succeed(whole, *COMMON, "strategy=zero0")
    expected = {step: line["loss"] for step, line in journal(whole / RUN).items()}
    folder = link_prepared(prepared, tmp_path / "recut")
    process = start(folder, *COMMON, "strategy=zero0")
    wait_for_step(folder / RUN, 4, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    process.communicate()
    stopped_at = max(journal(folder / RUN))

    told = succeed(folder, *COMMON, "strategy=zero3", "cluster.processes_per_node=2")

    found = {step: line["loss"] for step, line in journal(folder / RUN).items()}
    assert found == pytest.approx(expected, rel=1e-4)
    assert [found[step] for step in range(1, stopped_at + 1)] == [
        expected[step] for step in range(1, stopped_at + 1)
    ]
    assert "saved by 1 processes at ZeRO stage 0 and is taken up by 2 at stage 3" in told
    samples = [line["samples_seen"] for line in read_lines(folder / RUN / "metrics.jsonl")]
    assert samples == [2 * step for step in range(1, STEPS + 1)], "each sample once, in order"
    check_upkeep(folder)


def check_upkeep(folder: Path) -> None:
    """Look after the checkpoints of a finished run, as a user would."""
    run = folder / RUN
    table = succeed(folder, "checkpoints", "tiny_smoke").splitlines()
    assert table[0].split() == ["step", "samples", "loss", "score", "ranks", "stage", "size", "state"]
    assert [line.split()[0] for line in table[1:]] == ["10", "12"]
    assert table[2].split()[1] == "24"
    assert table[2].split()[4:6] == ["2", "3"]
    assert table[2].endswith("complete")

    assert succeed(folder, "checkpoints", str(RUN), "verify").count("verified") == 2
    older = run / "checkpoints" / "step_00000002"
    shutil.copytree(run / "checkpoints" / "step_00000010", older)
    manifest = json.loads((older / "manifest.json").read_text())
    (older / "manifest.json").write_text(json.dumps({**manifest, "step": 2}))
    assert succeed(folder, "checkpoints", "tiny_smoke", "prune") == "dropped: 2\n"
    assert succeed(folder, "checkpoints", "tiny_smoke", "prune") == "dropped: none\n"
    told = succeed(folder, "checkpoints", "tiny_smoke", "convert", "step=12", "to=state")
    assert told.count("safetensors") == 3
    index = json.loads((run / "checkpoints" / "step_00000012" / "index.json").read_text())["parameters"]
    with safe_open(folder / "state" / "weight.safetensors", "pt") as state:
        assert set(state.keys()) == set(index)
        shapes = {name: list(state.get_slice(name).get_shape()) for name in state.keys()}  # noqa: SIM118
    assert shapes == {name: entry["shape"] for name, entry in index.items()}

    part = run / "checkpoints" / "step_00000012" / "rank_00001.bin"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    verified = metier(folder, "checkpoints", "tiny_smoke", "verify")
    assert verified.returncode == 1
    assert "step_00000012  damaged" in verified.stdout
    assert "rank_00001.bin has changed since it was written" in verified.stdout
    pruned = metier(folder, "checkpoints", "tiny_smoke", "prune")
    assert pruned.returncode == 2
    assert "nothing was dropped" in pruned.stderr


def test_a_run_whose_last_save_fails_does_not_end_as_completed_and_goes_on_later(
    prepared: Path, tmp_path: Path
) -> None:
    folder = link_prepared(prepared, tmp_path / "work")
    words = ["train", "experiment=tiny_smoke", "loop.max_steps=3", "loop.checkpoint_every_steps=1"]
    # No file may grow past 400 KiB, which is less than a checkpoint: a write fails as on a full disk.
    limited = shlex.join([sys.executable, "-m", "launcher", *words])
    ended = subprocess.run(
        ["/bin/bash", "-c", f"ulimit -f 400 && exec {limited}"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "checkpoint of step 1 could not be written (rank 0: File too large)" in ended.stdout
    assert "training goes on" in ended.stdout
    assert ended.stderr.startswith("metier train: checkpoint of step 3 could not be written")
    assert json.loads((folder / RUN / "outcome.json").read_text())["state"] == "FAILED"
    assert list((folder / RUN / "checkpoints").iterdir()) == []
    assert kinds(folder / RUN).count("save_failed") == 3

    assert "finished after step 3" in succeed(folder, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name a run: metier checkpoints RUN"),
        (("nothing",), "nothing is no run, neither nothing/run.json nor runs/nothing/run.json exists"),
    ],
)
def test_a_run_that_is_not_there_is_said_in_one_line(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    ended = metier(tmp_path, "checkpoints", *words)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"metier checkpoints: {message}")
    assert ended.stderr.count("\n") == 1
