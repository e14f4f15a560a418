"""A rank that hangs is named, with the stacks of all, and the run is ended: real processes, real faults."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ranks.pulse_case import FAULT_STEP, Fault, Start, new_run
from tests.ranks.spawn import on_ranks
from training.layout import RunLayout
from training.metrics.lines import read_lines
from training.outcome import read_outcome

KILLED = -signal.SIGKILL
HOST = os.uname().nodename
STARTS: dict[str, tuple[Fault, int]] = {
    "stopped": ("stopped", 1),
    "stopped lead": ("stopped", 0),
    "endless loop": ("endless loop", 1),
    "holds Python": ("holds Python", 1),
    "never enters": ("never enters", 1),
    "all wait": ("all wait", 0),
    "overtaken": ("overtaken", 1),
    "none": ("none", 1),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[RunLayout, list[int | None]]]:
    """Give run and exit codes of a start with each fault; most of their time is waiting, so side by side."""
    starts = {
        name: Start(new_run(tmp_path_factory.mktemp("pulse")), fault, victim)
        for name, (fault, victim) in STARTS.items()
    }
    deadline = time.monotonic() + 90
    return {name: (start.layout, start.end(deadline)) for name, start in starts.items()}


Ends = dict[str, tuple[RunLayout, list[int | None]]]


@pytest.mark.parametrize(
    ("name", "what", "stack"),
    [
        ("stopped", r".* step 8.* \(its process is stopped by a signal\)", "State:\tT"),
        ("stopped lead", r".* step 8.* \(its process is stopped by a signal\)", "State:\tT"),
        ("endless loop", "been at step 8 for", "in loop_for_ever"),
        ("holds Python", r".* step 8.* \(Python is held by a call that does not return\)", "in _meet"),
        ("never enters", "been at step 8 for", "in _meet"),
    ],
)
def test_a_rank_that_hangs_is_named_with_its_stack_and_the_run_is_ended(
    name: str, what: str, stack: str, ends: Ends
) -> None:
    layout, codes = ends[name]
    victim = STARTS[name][1]
    assert codes == [KILLED, KILLED], layout.rank_log(0).read_text()
    outcome = read_outcome(layout.outcome)
    assert outcome is not None
    assert (outcome.state, outcome.cause, outcome.error_class) == ("FAILED", "hang", "HangError")
    assert (outcome.rank, outcome.node, outcome.incarnation) == (victim, HOST, 1)
    message = outcome.message or ""
    assert re.match(f"rank {victim} on {HOST} has {what}", message), message
    assert stack in layout.rank_log(victim).read_text()
    other = layout.rank_log(1 - victim).read_text()
    assert "in all_reduce" in other, "who waits is shown waiting"
    flight = json.loads((layout.logs / f"flight_rank_{1 - victim}.json").read_text())
    assert len(flight["entries"]) == FAULT_STEP
    (event,) = [line for line in read_lines(layout.events) if line["event"] == "hang"]
    assert (event["ranks"], event["step"]) == ([victim], FAULT_STEP)


def test_ranks_that_all_wait_for_each_other_are_named_together(ends: Ends) -> None:
    layout, codes = ends["all wait"]
    assert codes == [KILLED, KILLED]
    outcome = read_outcome(layout.outcome)
    assert outcome is not None
    words = f"all 2 ranks have been in a collective of step {FAULT_STEP} for"
    assert (outcome.message or "").startswith(words)


def test_a_start_that_was_overtaken_is_ended_without_a_word(ends: Ends) -> None:
    layout, codes = ends["overtaken"]
    assert codes == [KILLED, KILLED]
    assert not layout.outcome.exists()
    assert not layout.events.exists()


def test_a_run_that_does_not_hang_ends_by_itself_and_is_told_nothing(ends: Ends) -> None:
    layout, codes = ends["none"]
    assert codes == [0, 0]
    assert not layout.outcome.exists()
    assert "stacks" not in layout.rank_log(0).read_text()


def test_no_watcher_outlives_its_start(ends: Ends) -> None:
    found = subprocess.run(["/bin/ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [layout.root for layout, _ in ends.values() if str(layout.root) in found]


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


def find_timeouts() -> list[float]:
    """Give the timeouts of the groups that DeepSpeed, torch and we found, in seconds."""
    import deepspeed
    import torch
    import torch.distributed as dist
    from deepspeed.utils import groups

    from training.collectives import Council, join
    from training.ranks import Ranks

    device = torch.device("cpu")
    join(Ranks.from_environ(os.environ), device=device, timeout_seconds=77)
    deepspeed.init_distributed(dist_init_required=False)
    found = [dist.group.WORLD, groups._clone_world_group(), dist.new_group(), Council.open()._group]
    assert len({id(group) for group in found}) == 4
    return [group._get_backend(device).options._timeout.total_seconds() for group in found if group]


def test_every_group_has_the_runs_timeout_and_a_saves_council_has_its_day() -> None:
    assert on_ranks(1, find_timeouts) == [[77.0, 77.0, 77.0, 86400.0]]
