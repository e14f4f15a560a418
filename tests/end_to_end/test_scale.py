"""`metier scale` as a user types it: its numbers are those of the runs, computed here once more."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.runs import link_prepared, metier, read_lines

WARMUP, STEPS = 2, 4
COMMAND = (
    "scale",
    "experiment=tiny_smoke",
    "processes=1,2,3",  # three cannot share a batch of four
    "batch.global_batch_size=4",
    f"steps={STEPS}",
    f"warmup={WARMUP}",
)


@pytest.fixture(scope="module")
def scaled(
    prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Train at every size; give the folder of the runs and what was printed."""
    folder = link_prepared(prepared, tmp_path_factory.mktemp("scale") / "work")
    return folder / "runs", metier(folder, *COMMAND)


def measured(run: Path) -> list[dict[str, Any]]:
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, WARMUP + STEPS + 1))
    return lines[WARMUP:]


def test_the_numbers_are_those_of_the_single_runs(
    scaled: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    runs, done = scaled
    told = json.loads((runs / "tiny_smoke.scale/scale.json").read_text())
    one, two, three = told["tables"][0]["rows"]
    rates = []
    for row in (one, two):
        lines = measured(runs / f"tiny_smoke.scale-strong-p{row['size']}-r1")
        rate = sum(line["tokens"] for line in lines) / sum(line["step_seconds"] for line in lines)
        rates.append(rate)
        assert row["tokens_per_second"]["median"] == pytest.approx(rate)
        assert row["tokens_per_second_per_device"] == pytest.approx(rate / row["size"])
        assert row["device_hours_per_billion_tokens"] == pytest.approx(row["size"] / rate * 1e9 / 3600)
        assert row["memory_peak_bytes"] == max(line["memory_peak_bytes"] for line in lines)
        parts = row["parts"]
        assert parts["step_seconds"] == pytest.approx(
            sum(line["step_seconds"] for line in lines) / len(lines)
        )
        shares = ("compute_seconds", "communication_seconds", "data_wait_seconds", "rest_seconds")
        assert sum(parts[share] for share in shares) == pytest.approx(parts["step_seconds"], rel=1e-6)
    assert two["speed_up"] == pytest.approx(rates[1] / rates[0])
    assert two["efficiency"]["median"] == pytest.approx(rates[1] / rates[0] / 2)

    assert done.returncode == 1, done.stderr
    assert three["state"] == "failed"
    assert "processes=3  failed: batch.global_batch_size=4 is not a multiple" in done.stdout
    assert f"{rates[1]:,.0f}" in done.stdout


def test_a_table_a_picture_and_a_page_lie_together_and_no_checkpoint_stays(
    scaled: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    runs, _ = scaled
    folder = runs / "tiny_smoke.scale"
    assert (folder / "scale.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "scale.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page
    assert not list(runs.glob("*/checkpoints"))


def test_the_same_command_again_and_collect_measure_nothing_anew(
    scaled: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    runs, done = scaled
    before = (runs / "tiny_smoke.scale/scale.json").read_text()

    again = metier(runs.parent, *COMMAND)
    collected = metier(runs.parent, "scale", "collect", "tiny_smoke")

    assert again.stdout == collected.stdout
    assert done.stdout.endswith(collected.stdout)
    assert (runs / "tiny_smoke.scale/scale.json").read_text() == before
