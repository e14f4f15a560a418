"""A rank that hangs is named, with the stacks of all, and the run is ended: real processes, real faults."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ranks.pulse_case import FAULT_STEP, Fault, new_run, run_ranks
from tests.ranks.spawn import on_ranks
from training.fence import claim_incarnation
from training.metrics.lines import read_lines
from training.outcome import read_outcome

KILLED = -signal.SIGKILL


@pytest.mark.parametrize(
    ("fault", "victim", "why", "stack"),
    [
        ("stopped", 1, "its process is stopped by a signal", "State:\tT"),
        ("stopped", 0, "its process is stopped by a signal", "State:\tT"),
        ("endless loop", 1, "at step 8 for", "in loop_for_ever"),
        ("holds Python", 1, "Python is held by a call", "in _meet"),
        ("never enters", 1, "at step 8 for", "in _meet"),
    ],
)
def test_a_rank_that_hangs_is_named_with_its_stack_and_the_run_is_ended(
    fault: Fault, victim: int, why: str, stack: str, tmp_path: Path
) -> None:
    layout = new_run(tmp_path)

    codes = run_ranks(layout, fault, victim=victim)

    assert codes == [KILLED, KILLED], layout.rank_log(0).read_text()
    outcome = read_outcome(layout.outcome)
    assert outcome is not None
    assert (outcome.state, outcome.cause, outcome.error_class) == ("FAILED", "hang", "HangError")
    assert (outcome.rank, outcome.node, outcome.incarnation) == (victim, os.uname().nodename, 1)
    message = outcome.message or ""
    assert message.startswith(f"rank {victim} on {os.uname().nodename} has been at step {FAULT_STEP} for ")
    assert why in message
    assert stack in layout.rank_log(victim).read_text()
    other = layout.rank_log(1 - victim).read_text()
    assert "in all_reduce" in other, "who waits is shown waiting"
    flight = json.loads((layout.logs / f"flight_rank_{1 - victim}.json").read_text())
    assert len(flight["entries"]) == FAULT_STEP
    (event,) = [line for line in read_lines(layout.events) if line["event"] == "hang"]
    assert (event["ranks"], event["step"]) == ([victim], FAULT_STEP)


def test_ranks_that_all_wait_for_each_other_are_named_together(tmp_path: Path) -> None:
    layout = new_run(tmp_path)
    assert run_ranks(layout, "all wait") == [KILLED, KILLED]
    outcome = read_outcome(layout.outcome)
    assert outcome is not None
    assert (outcome.message or "").startswith(
        f"all 2 ranks have been in a collective of step {FAULT_STEP} for"
    )


def test_a_start_that_was_overtaken_is_ended_without_a_word(tmp_path: Path) -> None:
    layout = new_run(tmp_path)
    claim_incarnation(layout.incarnations)
    claim_incarnation(layout.incarnations)  # the ranks call themselves the first
    assert run_ranks(layout, "never enters") == [KILLED, KILLED]
    assert not layout.outcome.exists()
    assert not layout.events.exists()


def test_a_run_that_does_not_hang_ends_by_itself_and_leaves_no_watcher(tmp_path: Path) -> None:
    layout = new_run(tmp_path)
    assert run_ranks(layout, "none") == [0, 0]
    assert not layout.outcome.exists()
    found = subprocess.run(["/bin/ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(layout.root) not in found


PAUSER = """
import os, signal, sys, time
pid = int(sys.argv[1])
while True:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.06)
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.02)
"""


def measure_pace(root: Path) -> list[tuple[int, str, bool]]:
    """Take two windows of steps; rank 1 is paused three quarters of the time in the second."""
    import torch

    from training.collectives import any_rank, from_lead, join
    from training.pulse.limits import Watching
    from training.pulse.pace import WindowPace
    from training.ranks import Ranks

    ranks, device = Ranks.from_environ(os.environ), torch.device("cpu")
    join(ranks, device=device, timeout_seconds=60)
    watching = Watching.read(root / "run.json")
    assert watching is not None
    told: list[float] = []
    pace = WindowPace(watching, ranks, ["node1", "node2"], device, told.append)
    pauser, named = None, []
    for step in range(1, 21):
        if step == 11 and ranks.rank == 1:
            pauser = subprocess.Popen([sys.executable, "-c", PAUSER, str(os.getpid())])
        from_lead(None)
        started = time.perf_counter()
        pace.begin_step()
        sum(range(1_000_000))
        any_rank(False, device)
        named += [
            (each.rank, each.node, each.is_slow)
            for each in pace.end_step(step, time.perf_counter() - started, None)
        ]
    if pauser is not None:
        pauser.kill()
        pauser.wait()
    assert len(told) == 2
    return named


def test_a_rank_that_is_paused_again_and_again_is_named_by_all(tmp_path: Path) -> None:
    layout = new_run(tmp_path)
    first, second = on_ranks(2, measure_pace, layout.root)
    assert first == second
    assert (1, "node2", True) in first[1:]
