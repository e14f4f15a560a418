"""Law 3, step by step: dying at each of twelve steps, in each way, changes no number of metrics.jsonl."""

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

from tests.benchmarks.soak import TIMES
from tests.end_to_end.runs import kinds, link_prepared, read_lines, succeed
from tests.end_to_end.zygote import Death, Start, run_starts
from tests.ranks.spawn import free_port

STEPS = 12
COMMAND = (
    "train",
    "experiment=tiny_smoke",
    "adapter=lora",
    "adapter.dropout=0.1",  # so that a wrong random state would show
    "cluster.processes_per_node=2",
    f"loop.max_steps={STEPS}",
    "loop.checkpoint_every_steps=4",
    "loop.evaluate_every_steps=3",
    "loop.held_out_documents=3",
    "loop.sample_documents=1",
    "loop.sample_tokens=4",
    "evaluation.held_out_documents=2",
    "loop.spike=roll_back",
    "loop.spike_measure=grad_norm",
    "loop.spike_window_steps=3",
    "loop.spike_deviations=3",
    "loop.max_skipped_in_a_row=9",
)
DEATHS: tuple[Death, ...] = ("one rank", "all ranks", "evaluation", "stop signal")
REDONE = "metrics.redone.jsonl"


def numbers(path: Path) -> list[dict[str, Any]]:
    """Read every line of a journal without times; none is torn."""
    return [
        {key: value for key, value in line.items() if key not in TIMES and not key.endswith("_seconds")}
        for line in read_lines(path)
    ]


def state_of(run: Path) -> list[dict[str, Any]]:
    """Name the files of the last checkpoint with their checksums; what is in the index is among them."""
    manifest = json.loads((run / "checkpoints" / f"step_{STEPS:08d}" / "manifest.json").read_text())
    return list(manifest["files"])


def test_dying_at_every_step_changes_no_number(prepared: Path, tmp_path: Path) -> None:
    folder = link_prepared(prepared, tmp_path / "work")
    succeed(folder, *COMMAND)
    whole = folder / "runs" / "tiny_smoke"
    run = folder / "runs" / "again"
    run.mkdir()
    shutil.copy(whole / "run.json", run / "run.json")
    starts = [
        Start(run.relative_to(folder), 2, free_port(), DEATHS[step % len(DEATHS)], step)
        for step in range(1, STEPS)
    ]
    starts.append(Start(run.relative_to(folder), 2, free_port(), "none", 0))

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        codes = pool.apply(run_in, (folder, starts))

    told = f"{codes}\n" + "\n".join(path.read_text()[-3000:] for path in run.glob("logs/*.log"))
    assert codes[-1] == [0, 0], told
    for start, (_, second) in zip(starts[:-1], codes[:-1], strict=True):
        assert (second == 0) == (start.death == "stop signal"), f"{start}: {told}"
    assert json.loads((run / "outcome.json").read_text())["state"] == "COMPLETED"
    wanted = numbers(whole / "metrics.jsonl")
    assert [line["step"] for line in wanted] == list(range(1, STEPS + 1))
    assert numbers(run / "metrics.jsonl") == wanted
    assert read_lines(run / "samples.jsonl") == read_lines(whole / "samples.jsonl")
    assert state_of(run) == state_of(whole), "weights and moments, to the last bit"
    # Not only what counts in the end: every line that was ever written, also of steps that were done again.
    redone, rolled_back = numbers(run / REDONE), numbers(whole / REDONE)
    assert {json.dumps(line) for line in redone} <= {json.dumps(line) for line in [*wanted, *rolled_back]}
    assert len(redone) > len(rolled_back) > 0, "the case must do steps again"
    assert any("held_out_loss" in line for line in wanted)
    assert "rolled_back" in kinds(whole), "the case must roll back"


def run_in(folder: Path, starts: list[Start]) -> list[list[int]]:
    """Make the starts in a folder, as a user would who has changed into it."""
    import os

    os.chdir(folder)
    return run_starts(starts)
