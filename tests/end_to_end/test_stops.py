"""Whatever asks a run to stop, it stops in order: saved, told by whom, and the next start goes on."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.compose import compose_run
from launcher.run_directory import freeze_run
from launcher.tree import ConfigTree
from tests.end_to_end.runs import environment, journal, kinds, link_prepared, read_lines
from tests.end_to_end.zygote import Start, run_starts
from tests.ranks.spawn import free_port
from training.layout import RunLayout
from training.outcome import Outcome, read_outcome

SETTINGS = ["experiment=tiny_smoke", "loop.max_steps=6", "loop.checkpoint_every_steps=100"]


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    linked = link_prepared(prepared, tmp_path / "work")
    monkeypatch.chdir(linked)
    return linked


def new_run(*settings: str) -> RunLayout:
    return freeze_run(compose_run([*SETTINGS, *settings], ConfigTree.open(None)).config)


def outcome_of(layout: RunLayout) -> Outcome:
    found = read_outcome(layout.outcome)
    assert found is not None
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_during_the_imports_stops_before_the_first_step(
    number: signal.Signals, folder: Path
) -> None:
    layout = new_run()
    worker = subprocess.Popen(
        [sys.executable, "-m", "training.worker", str(layout.root)],
        env=environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
    )
    heart, deadline = layout.heart(0), time.monotonic() + 60
    while not heart.exists():
        assert time.monotonic() < deadline
        assert worker.poll() is None
        time.sleep(0.01)
    phase = json.loads(heart.read_text())["phase"]
    worker.send_signal(number)

    assert worker.wait(timeout=120) == 0, layout.rank_log(0).read_text()
    assert phase == "imports"
    outcome = outcome_of(layout)
    assert (outcome.state, outcome.step, outcome.notice) == ("STOPPED", 0, number.name)
    assert kinds(layout.root) == ["stopped"]
    assert not layout.metrics.exists()


def test_a_file_stops_a_run_and_the_jobs_end_the_next_start_and_the_third_goes_on(folder: Path) -> None:
    layout = new_run("cluster.processes_per_node=2")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        told = pool.apply(run_three_starts, (folder, layout.root.relative_to(folder)))

    first, second, third = (Outcome.model_validate_json(text) for text in told)
    assert (first.state, first.step, first.notice) == ("STOPPED", 3, "stop.request: ann on login1")
    assert (second.state, second.step, second.notice) == ("STOPPED", 3, "time")
    assert (third.state, third.step, third.notice) == ("COMPLETED", 6, None)
    assert [each.incarnation for each in (first, second, third)] == [1, 2, 3]
    assert sorted(journal(layout.root)) == [1, 2, 3, 4, 5, 6]
    stops = [event for event in read_lines(layout.events) if event["event"] == "stopped"]
    assert [event["notice"] for event in stops] == [first.notice, "time"]
    assert not layout.stop_request.exists(), "it was meant for the start that heard it"
    hearts = [json.loads(layout.heart(rank).read_text()) for rank in (0, 1)]
    assert [(heart["phase"], heart["step"]) for heart in hearts] == [("finish", 6)] * 2


def run_three_starts(folder: Path, root: Path) -> list[str]:
    """Make the starts; give the outcome that each has left."""
    os.chdir(folder)
    told = []
    for death in ("stop file", "time is over", "none"):
        codes = run_starts([Start(root, 2, free_port(), death, 3)])  # type: ignore[arg-type]
        logs = "\n".join(path.read_text()[-3000:] for path in (root / "logs").glob("*.log"))
        assert codes == [[0, 0]], f"{codes}\n{logs}"
        told.append((root / "outcome.json").read_text())
    return told
