"""A stop has several sources and one name: signals, a file, the job's end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from training.layout import RunLayout
from training.notice import STOP_SIGNALS, Notice
from training.processes import shield_children
from training.stop import (
    JobEnd,
    LongestSave,
    StopFlag,
    StopRequest,
    find_lead_seconds,
    lead_wishes,
    read_asked,
    read_end_time,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_stops_and_is_named(number: signal.Signals) -> None:
    notice = Notice()
    notice.listen()
    flag = StopFlag(notice, CPU)
    assert not flag.is_set()

    signal.raise_signal(number)

    assert flag.is_set()
    assert flag.notice == number.name


def test_the_first_signal_is_the_one_that_is_told() -> None:
    notice = Notice()
    notice.listen()
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
    assert notice.heard == "SIGUSR1"


def test_a_file_stops_and_its_first_line_says_who(tmp_path: Path) -> None:
    path = tmp_path / "stop.request"
    wish = StopRequest(path, since=0)
    path.write_text("ann on login1\nsecond line\n")
    flag = StopFlag(Notice(), CPU, [wish])
    assert flag.is_set()
    assert flag.notice == "stop.request: ann on login1"
    assert flag.is_set(), "once agreed, it stays so"


def test_an_empty_file_stops_as_well(tmp_path: Path) -> None:
    (tmp_path / "stop.request").touch()
    flag = StopFlag(Notice(), CPU, [StopRequest(tmp_path / "stop.request", since=0)])
    assert flag.is_set()
    assert flag.notice == "stop.request"


def test_a_file_that_was_meant_for_an_earlier_start_is_removed_and_a_later_one_is_heard(
    tmp_path: Path,
) -> None:
    layout = RunLayout(tmp_path)
    layout.stop_request.write_text("ann")
    written = layout.stop_request.stat().st_mtime
    (heard,) = lead_wishes(layout, None, {}, asked=written - 1)
    assert heard() == "stop.request: ann"
    lead_wishes(layout, None, {}, asked=written + 1)
    assert not layout.stop_request.exists()


def test_the_files_name_goes_before_the_signal_that_came_with_it(tmp_path: Path) -> None:
    (tmp_path / "stop.request").write_text("ann")
    notice = Notice()
    notice.listen()
    signal.raise_signal(signal.SIGTERM)
    flag = StopFlag(notice, CPU, [StopRequest(tmp_path / "stop.request", since=0)])
    assert flag.is_set()
    assert flag.notice == "stop.request: ann"


@pytest.mark.parametrize(
    ("wanted", "longest_save", "left", "lead"),
    [
        (None, 0.0, 86400, 60),
        (None, 100.0, 86400, 260),
        (None, 100.0, 120, 60),  # no more than half of a short job
        (None, 0.0, -5, 0),
        (300, 100.0, 120, 300),  # what is set is taken as it is
    ],
)
def test_the_lead_is_a_minute_and_twice_the_longest_save_or_what_is_set(
    wanted: int | None, longest_save: float, left: float, lead: float
) -> None:
    assert find_lead_seconds(wanted, longest_save, left) == lead


def test_a_run_stops_while_one_more_step_and_the_save_still_fit() -> None:
    end = JobEnd(1000, 50, lambda: 0.0, now=0)
    looks = (100, 400, 700, 930)
    # 300 seconds a step: the look at 700 leaves room for none.
    assert [end.is_due(now) for now in looks] == [False, False, True, True]
    assert not JobEnd(1000, 50, lambda: 0.0, now=0).is_due(949)
    assert JobEnd(1000, 50, lambda: 0.0, now=0).is_due(950)


def test_the_longest_save_is_that_of_the_run_this_start_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, now = tmp_path / "events.jsonl", 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)

    def tell(*lines: dict[str, object], torn: str = "") -> None:
        with events.open("a") as stream:
            stream.write("".join(json.dumps(line) + "\n" for line in lines) + torn)

    longest = LongestSave(events)
    assert longest() == 0.0
    tell(
        {"event": "saved", "step": 1, "seconds": 4.0}, {"event": "note", "seconds": 9.0}, torn='{"event": "sa'
    )
    now += 2
    assert longest() == 4.0
    tell(torn='ved", "step": 2, "seconds": 6.5}\n')
    assert longest() == 4.0, "looked at once a second at most"
    now += 2
    assert longest() == 6.5


@pytest.mark.parametrize(
    ("environ", "end"),
    [
        ({}, None),
        ({"SLURM_JOB_END_TIME": "1700000000"}, 1700000000.0),
        ({"SLURM_JOB_END_TIME": "1700000000", "METIER_END_TIME": "1600000000.5"}, 1600000000.5),
        ({"SLURM_JOB_END_TIME": "0"}, None),
        ({"SLURM_JOB_END_TIME": "Unknown"}, None),
    ],
)
def test_the_jobs_end_is_read_where_somebody_says_it(environ: dict[str, str], end: float | None) -> None:
    assert read_end_time(environ) == end


def test_the_time_stops_by_its_own_name(tmp_path: Path) -> None:
    environ = {"METIER_END_TIME": "1"}
    flag = StopFlag(Notice(), CPU, lead_wishes(RunLayout(tmp_path), None, environ, asked=0))
    assert flag.is_set()
    assert flag.notice == "time"


def test_a_start_was_asked_for_when_the_launcher_says_or_when_its_process_began() -> None:
    assert read_asked({"METIER_ASKED": "12.5"}, "METIER_ASKED") == 12.5
    child = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())\n"
         "from training.stop import read_asked; print(read_asked({}, 'METIER_ASKED'), time.time())"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    first, began, last = map(float, child.stdout.split())
    assert first - 5 < began < last
    assert began < first + 1


CHILD = """
import os, signal, sys
from training.processes import stay_shielded
os.write(1, b"begun\\n")
sys.stdin.readline()
stay_shielded()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(status["SigBlk"].strip(), status["SigIgn"].strip())
"""


def test_a_helper_lives_through_notices_from_its_first_instant(tmp_path: Path) -> None:
    with shield_children():
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )  # fmt: skip
    with child:
        assert child.stdout is not None
        # At any moment, before its first line as well.
        for _ in range(2):
            for number in (*STOP_SIGNALS, signal.SIGHUP):
                child.send_signal(number)
            if _ == 0:
                assert child.stdout.readline() == "begun\n"
        told, _error = child.communicate("go\n", timeout=60)
    assert child.returncode == 0
    blocked, ignored = (int(mask, 16) for mask in told.split())
    for number in (*STOP_SIGNALS, signal.SIGHUP):
        assert blocked >> (number - 1) & 1
        assert ignored >> (number - 1) & 1


def test_a_notice_to_the_parent_is_not_lost_while_it_starts_a_child() -> None:
    notice = Notice()
    notice.listen()
    with shield_children():
        signal.raise_signal(signal.SIGTERM)
    assert notice.heard == "SIGTERM"
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(STOP_SIGNALS)
