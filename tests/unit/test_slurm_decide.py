"""What comes after a start that ended, and how many that come to nothing are borne."""

from dataclasses import replace
from typing import Any

import pytest

from launcher.slurm.decide import FINAL_CAUSES, TOLD_FACTOR, Ended, decide
from launcher.slurm.journal import count_idle_starts

QUIET = Ended(
    code=1,
    outcome=None,
    notice="",
    stopped_by_user=False,
    overtaken=False,
    out_of_memory=False,
    away=False,
    idle_failed=1,
    idle_told=1,
)
STOPPED = {"state": "STOPPED", "step": 7, "notice": "SIGTERM"}


def failed(cause: str) -> dict[str, Any]:
    return {"state": "FAILED", "cause": cause, "rank": 1, "node": "n2", "error_class": "E", "message": "m"}


def step_of(ended: Ended, limit: int = 3) -> str:
    return decide(ended, starts_without_progress=limit).step


@pytest.mark.parametrize(
    ("ended", "step"),
    [
        (replace(QUIET, code=0, outcome={"state": "COMPLETED", "step": 9}), "finished"),
        # A notice that came after the last step changes nothing.
        (replace(QUIET, code=0, outcome={"state": "COMPLETED", "step": 9}, notice="USR1"), "finished"),
        (replace(QUIET, code=0, outcome=STOPPED), "return"),
        (replace(QUIET, code=0, outcome=STOPPED, notice="USR1"), "return"),
        (replace(QUIET, code=0, outcome=STOPPED, stopped_by_user=True), "stopped"),
        (replace(QUIET, notice="TERM", stopped_by_user=True), "stopped"),
        # Killed before the save was done: the next start goes on from the last checkpoint.
        (replace(QUIET, code=143, notice="TERM"), "return"),
        (replace(QUIET, code=137), "again"),
        (replace(QUIET, outcome=failed("peer")), "again"),
        (replace(QUIET, outcome=failed("hang")), "again"),
        (replace(QUIET, outcome=failed("unknown")), "again"),
        (replace(QUIET, outcome=failed("peer"), notice="TERM"), "return"),
        (replace(QUIET, code=137, out_of_memory=True), "failed"),
        (replace(QUIET, overtaken=True), "overtaken"),
        (replace(QUIET, overtaken=True, outcome=failed("data")), "overtaken"),
        (replace(QUIET, away=True, idle_failed=99), "again"),
    ],
)
def test_each_end_has_its_next_step(ended: Ended, step: str) -> None:
    assert step_of(ended) == step


@pytest.mark.parametrize("cause", sorted(FINAL_CAUSES))
def test_what_another_start_cannot_help_ends_the_run_also_under_a_notice(cause: str) -> None:
    assert step_of(replace(QUIET, outcome=failed(cause))) == "failed"
    assert step_of(replace(QUIET, outcome=failed(cause), notice="USR1")) == "failed"


def test_a_failure_is_told_with_its_place_and_without_words_that_nobody_said() -> None:
    wordless = replace(QUIET, outcome={**failed("peer"), "error_class": "MemoryError", "message": ""})
    assert decide(wordless, starts_without_progress=3).reason == "failed on rank 1 on n2: MemoryError"


def test_failures_without_a_new_checkpoint_are_bounded() -> None:
    assert step_of(replace(QUIET, idle_failed=2), limit=3) == "again"
    given_up = decide(replace(QUIET, idle_failed=3), starts_without_progress=3)
    assert given_up.step == "failed"
    assert "3 starts in a row" in given_up.reason


def test_a_run_that_is_told_to_stop_has_more_patience_and_not_without_end() -> None:
    told = replace(QUIET, notice="TERM", idle_failed=0)
    assert step_of(replace(told, idle_told=TOLD_FACTOR * 3 - 1)) == "return"
    assert step_of(replace(told, idle_told=TOLD_FACTOR * 3)) == "failed"


def started(step: int) -> dict[str, Any]:
    return {"event": "started", "step": step}


def ended(*, noticed: bool = False, away: bool = False) -> dict[str, Any]:
    return {"event": "ended", "noticed": noticed, "away": away}


SUBMITTED = {"event": "submitted"}


@pytest.mark.parametrize(
    ("lines", "step", "counts"),
    [
        ([], 0, (0, 0)),
        ([SUBMITTED, started(0), ended()], 0, (1, 1)),
        # A node that was switched off leaves no word of its end.
        ([SUBMITTED, started(0), started(0), ended()], 0, (2, 2)),
        ([SUBMITTED, started(0), ended(noticed=True), started(0), ended()], 0, (1, 2)),
        # Slurm's controller was away: no failure, and no notice.
        ([SUBMITTED, *[started(0), ended(noticed=True, away=True)] * 20, started(0), ended()], 0, (1, 1)),
        # The start from step 4 brought the run to 8.
        ([SUBMITTED, started(4), ended(), started(8), ended()], 8, (1, 1)),
        ([SUBMITTED, started(8), ended(), {"event": "next"}, started(8), ended()], 8, (2, 2)),
        # A person has submitted it anew.
        ([SUBMITTED, started(8), ended(), SUBMITTED, started(8), ended()], 8, (1, 1)),
    ],
)
def test_starts_are_counted_since_the_run_came_further(
    lines: list[dict[str, Any]], step: int, counts: tuple[int, int]
) -> None:
    assert count_idle_starts(lines, step) == counts
