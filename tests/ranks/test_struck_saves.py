"""A process dies, or the disk fails, at any system call of a save: the last complete checkpoint loads."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.strace import CALLS
from tests.struck_save import CODES, FAILING, SAVED, TOLD

ROOT = Path(__file__).resolve().parents[2]
KILLED = -9


@pytest.fixture(scope="module")
def struck() -> list[dict[str, Any]]:
    """Strike saves at one system call after the other; tell what became of each."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.struck_save"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    told = [json.loads(line) for line in ended.stdout.splitlines()]
    if "reason" in told[0]:
        pytest.skip(told[0]["reason"])
    return told


def those(struck: list[dict[str, Any]], *words: str) -> list[dict[str, Any]]:
    return [told for told in struck if all(word in told["blow"] for word in words)]


def test_after_every_blow_a_whole_state_loads_and_the_next_save_leaves_nothing_behind(
    struck: list[dict[str, Any]],
) -> None:
    assert len(struck) > 150
    for told in struck:
        assert told["loaded"] in [[2, 2.0], [3, 3.0]], told
        assert told["then"] == [4, 4.0], told
        assert told["left"] == [], told


@pytest.mark.parametrize("call", CALLS)
def test_a_process_killed_at_any_system_call_of_a_save_dies_there(
    call: str, struck: list[dict[str, Any]]
) -> None:
    killed = those(struck, f"{call} ", "SIGKILL")
    assert killed
    for told in killed:
        victim = int(told["blow"][-1])
        assert told["ends"][victim] == KILLED, told
        # The other rank is left alone: it has heard the verdict, or it tells of a save that failed.
        assert set(told["ends"]) <= {KILLED, SAVED, TOLD}, told


def test_kills_come_before_and_after_the_commit_of_both_ranks(struck: list[dict[str, Any]]) -> None:
    for victim in ("process=0", "process=1"):
        killed = [told for told in those(struck, "SIGKILL", victim) if len(told["ends"]) > 1]
        assert len(killed) >= 3, victim
        if victim == "process=0":
            assert {told["loaded"][0] for told in killed} == {2, 3}


@pytest.mark.parametrize("call", FAILING)
@pytest.mark.parametrize("code", CODES)
def test_an_error_at_any_system_call_of_a_save_is_told_unless_the_checkpoint_is_complete(
    code: str, call: str, struck: list[dict[str, Any]]
) -> None:
    failed = those(struck, f"{call} ", f"error={code}")
    assert failed
    for told in failed:
        assert told["ends"] in ([TOLD], [SAVED]), told
        assert told["ends"] == [TOLD] or told["loaded"] == [3, 3.0], told


def test_a_folder_that_may_not_be_written_is_told(struck: list[dict[str, Any]]) -> None:
    (told,) = those(struck, "may not be written")
    assert (told["ends"], told["loaded"]) == ([TOLD], [2, 2.0])
