"""The post-mortem's parts: which rank was first, which start a line belongs to, what weighs more."""

import json
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from launcher.__main__ import main
from launcher.processes import run_with_log
from launcher.troubleshooting import write_page
from launcher.why.catalogue import Cause, Sign, read_catalogue
from launcher.why.evidence import find_failing, gather, leave_out_followers, newest_start
from launcher.why.match import Fact, rank_causes
from launcher.why.sacct import last_start, read_controller, read_rows, say_row
from launcher.why.starts import list_starts
from tests.seen_run import write, write_lines, write_run
from training.errors import ConfigError
from training.layout import START_MARK, RunLayout


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # no Slurm, whatever this machine has


def cause(name: str, weight: int, *, harmless: bool = False) -> Cause:
    sign = Sign(sources=("rank", "job"), pattern=re.compile(name))
    return Cause(
        id=name,
        title=name,
        area="a",
        seen_in="rank",
        seen="",
        signs=(sign,),
        explanation="",
        remedy="",
        weight=weight,
        harmless=harmless,
    )


def found(causes: list[Cause], facts: list[Fact], *, completed: bool = False) -> list[str]:
    return [each.cause.id for each in rank_causes(causes, facts, completed=completed)]


def rank_said(text: str) -> Fact:
    return Fact(source="rank", text=text, where="rank_0.log", rank=0)


def test_what_causes_others_comes_before_what_follows_wherever_it_stands() -> None:
    causes = [cause("lost", 10), cause("killed", 50), cause("full", 90)]
    facts = [rank_said("peer lost"), rank_said("disk full"), rank_said("was killed")]
    assert found(causes, facts) == found(causes, facts[::-1]) == ["full", "killed", "lost"]
    assert found(causes, []) == []


def test_of_equal_weights_the_one_that_more_places_tell_of_comes_first() -> None:
    causes = [cause("one", 50), cause("two", 50)]
    facts = [rank_said("one"), rank_said("two"), Fact(source="job", text="two")]
    assert found(causes, facts) == ["two", "one"]
    assert found(causes, facts[:2]) == ["one", "two"]


def test_a_line_is_a_sign_only_where_the_cause_is_looked_for() -> None:
    assert found([cause("one", 50)], [Fact(source="tracker", text="one")]) == []


def test_of_a_run_that_completed_only_what_failed_beside_it_is_told() -> None:
    causes = [cause("killed", 50), cause("tracker", 5, harmless=True)]
    facts = [rank_said("killed"), rank_said("tracker")]
    assert found(causes, facts, completed=True) == ["tracker"]


def test_the_last_start_alone_counts_in_a_log_that_goes_on() -> None:
    old, new = ["=== start a", "No space left"], ["=== start b", "fine"]
    assert newest_start([*old, *new]) == new
    assert newest_start(["x", "metier job: start 2 of job 7 on n", "y"])[1:] == ["y"]
    assert newest_start(["without", "marks"]) == ["without", "marks"]


def test_what_torchrun_killed_after_the_first_failure_is_no_sign() -> None:
    report = ["before", "Failures:", "Signal 9 (SIGKILL)", "---", "Root Cause (first observed failure):", "x"]
    assert leave_out_followers(report) == ["before", *report[4:]]
    assert leave_out_followers(report[:3]) == report[:3]
    assert leave_out_followers(["nothing"]) == ["nothing"]


def test_a_rank_that_was_killed_is_named_before_the_one_that_only_lost_it() -> None:
    lost = {"state": "FAILED", "rank": 0, "error_class": "PeerLostError", "cause": "peer", "node": "node1"}
    torchrun = [
        "Root Cause (first observed failure):",
        "  host      : node2",
        "  rank      : 3 (local_rank: 1)",
        "Failures:",
        "  rank      : 0 (local_rank: 0)",
    ]
    facts = [Fact(source="launch", text=line) for line in torchrun]
    failing = find_failing(lost, facts)
    assert failing is not None
    assert (failing.rank, failing.node) == (3, "node2")
    srun = [Fact(source="job", text="srun: error: node4: tasks 5-6: Killed")]
    failing = find_failing(lost, srun)
    assert failing is not None
    assert (failing.rank, failing.node, failing.how) == (5, "node4", "srun: Killed")
    failing = find_failing(lost, [])
    assert failing is not None
    assert failing.rank == 0
    own = {"state": "FAILED", "rank": 2, "error_class": "DataError", "node": "node1"}
    failing = find_failing(own, facts)
    assert failing is not None
    assert failing.rank == 2
    assert find_failing({"state": "COMPLETED", "rank": 0}, []) is None


ROWS = """\
JobID|JobName|State|ExitCode|NodeList
7|job|NODE_FAIL|0:0|node[1-2]
7.batch|batch|CANCELLED|0:15|node1
7|job|OUT_OF_MEMORY|0:125|node3
7.batch|batch|OUT_OF_MEMORY|0:125|node3
7|job|RUNNING|0:0|node4
"""


def test_of_a_requeued_job_the_last_start_that_has_ended_counts() -> None:
    rows = read_rows(ROWS.splitlines())
    assert [row["State"] for row in last_start(rows)] == ["OUT_OF_MEMORY", "OUT_OF_MEMORY"]
    assert say_row(rows[0]) == "job=7 name=job state=NODE_FAIL exit=0:0 nodes=node[1-2]"
    assert last_start([]) == []
    assert last_start(rows[-1:]) == rows[-1:]
    assert read_rows([]) == []


def test_what_the_controller_says_stands_in_for_the_accounting() -> None:
    line = (
        "JobId=7 JobName=job JobState=TIMEOUT Reason=TimeLimit ExitCode=0:0 NodeList=node1 RunTime=00:01:02"
    )
    assert (
        say_row(read_controller(line)) == "job=7 name=job state=TIMEOUT exit=0:0 reason=TimeLimit nodes=node1"
    )
    assert read_controller("slurm_load_jobs error: Invalid job id specified") == {}


def test_each_start_is_listed_with_its_steps_and_its_end() -> None:
    layout = write_run(Path("runs/mine"))
    for number in (2, 3):
        write(layout.incarnations / f"{number:06}.json", {"host": f"node{number}", "time": 5.0})
    write_lines(layout.metrics, [{"step": step, "incarnation": 2} for step in (5, 6)])
    write_lines(layout.metrics.with_suffix(".redone.jsonl"), [{"step": 5, "incarnation": 1}])
    events = [{"event": "stopped", "incarnation": 2, "notice": "SIGTERM", "time": 1.0}]
    write_lines(layout.events, events)
    write(layout.outcome, {"state": "FAILED", "error_class": "DataError", "message": "broken"})
    starts = list_starts(gather(layout).run)
    assert [(start.number, start.last_step, start.end) for start in starts] == [
        (1, 5, "ended without a word: killed, or its node was lost"),
        (2, 6, "stopped in order: SIGTERM"),
        (3, None, "failed: DataError: broken"),
    ]


def test_the_page_names_cause_remedy_rank_starts_and_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    layout = write_run(Path("runs/mine"))
    message = "/scratch/x: cannot be written (No space left on device); free some space"
    failed = {"state": "FAILED", "rank": 1, "error_class": "StorageError", "message": message, "node": "n"}
    write(layout.outcome, failed)
    layout.logs.mkdir()
    layout.rank_log(1).write_text("=== start x\nlast words\n")
    assert main(["why", "mine"]) == 0
    said = capsys.readouterr().out
    for words in (
        "mine: FAILED, step 5/10",
        "cause    A disk is full (disk_full)",
        "to do    Free some space",
        "Rank 1 on n was the first to fail",
        "  | last words",
        "Last checkpoint: step 4",
    ):
        assert words in said


def test_a_run_that_goes_on_or_has_completed_has_no_cause(capsys: pytest.CaptureFixture[str]) -> None:
    layout = write_run(Path("runs/mine"), host="elsewhere")
    assert main(["why", "mine"]) == 0
    assert "It has not ended." in capsys.readouterr().out
    write(layout.outcome, {"state": "COMPLETED", "step": 10})
    assert main(["why", "mine"]) == 0
    assert "Nothing is wrong: the run has completed." in capsys.readouterr().out


def test_a_text_alone_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    Path("said.txt").write_text("metier train: optimizer.learning_rat is not a setting; did you mean it?\n")
    assert main(["why", "--log", "said.txt"]) == 0
    assert "cause    A setting is misspelt (setting_unknown)" in capsys.readouterr().out
    Path("said.txt").write_text("all is well\n")
    assert main(["why", "--log=said.txt"]) == 0
    assert "no known cause is in this text" in capsys.readouterr().out
    assert main(["why", "--log", "gone.txt"]) == 2
    assert capsys.readouterr().err == "metier why: --log gone.txt: there is no such file\n"


def test_what_torchrun_said_of_an_earlier_start_is_not_held_against_the_newest(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    for words in ("Signal 9 (SIGKILL)", "a warning"):
        child = [sys.executable, "-c", f"import sys; sys.exit({words!r})"]
        run_with_log(child, os.environ, layout.logs / "launch.log")
    said = [fact.text for fact in gather(layout).facts if not fact.text.startswith(START_MARK)]
    assert said == ["a warning"]


def test_a_rank_that_the_newest_start_does_not_have_is_not_heard(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    layout.logs.mkdir()
    layout.incarnations.mkdir()
    asked = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
    claim = {"host": "node1", "pid": 1, "time": asked.timestamp()}
    (layout.incarnations / "000002.json").write_text(json.dumps(claim))
    for rank, began in enumerate((asked + timedelta(seconds=9), asked - timedelta(hours=1))):
        mark = f"{START_MARK}{began.strftime('%Y-%m-%dT%H:%M:%S%z')} on node1"
        layout.rank_log(rank).write_text(f"{mark}\nwords of rank {rank}\n")
    heard = [fact.text for fact in gather(layout).facts if fact.text.startswith("words")]
    assert heard == ["words of rank 0"]


def test_an_entry_of_the_catalogue_that_is_incomplete_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "causes.yaml"
    path.write_text("- {id: x, title: x}\n")
    with pytest.raises(ConfigError, match=r"x: without \['area', 'seen', 'signs'"):
        read_catalogue(path)


def test_the_page_of_causes_has_each_of_them_and_is_current() -> None:
    page = write_page()
    assert all(f'<a id="{each.id}"></a>{each.title}' in page for each in read_catalogue())
    written = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
    assert written.read_text() == page
