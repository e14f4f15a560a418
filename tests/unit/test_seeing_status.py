"""`metier status`: a row for every run, whatever has become of its files, and Slurm asked once."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.__main__ import main
from launcher.seeing.facts import find_time_left, read_facts
from launcher.seeing.slurm import NOTHING, JobView, SlurmView, ask, ask_jobs
from launcher.seeing.state import choose_job, judge
from launcher.seeing.words import draw_line
from tests.seen_run import put_on_path, write, write_lines, write_run
from training.layout import RunLayout


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # no Slurm, whatever this machine has


def status(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict[str, Any]]:
    assert main(["status", "--json", *words]) == 0
    return {record["run"]: record for record in json.loads(capsys.readouterr().out)}


def test_a_row_says_what_the_files_say(capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path("runs/mine"), steps=5, max_steps=10)
    record = status(capsys)["mine"]
    assert (record["step"], record["max_steps"], record["loss"], record["mfu"]) == (5, 10, 0.8, 0.4)
    assert record["checkpoint_step"] == 4
    assert record["restarts"] == 0
    # 5 steps of 1.5 s count, in the 20 s since the start was asked for.
    assert record["goodput"] == pytest.approx(7.5 / 20, rel=0.02)
    assert main(["status"]) == 0
    head, row = capsys.readouterr().out.splitlines()[:2]
    assert head.split()[:6] == ["run", "state", "step", "loss", "tokens/s", "MFU"]
    assert row.split()[:6] == ["mine", "KILLED", "5/10", "0.800", "1,000", "40.0%"]


def test_the_time_left_is_of_the_newest_start_alone_saves_and_pauses_between_its_steps_included() -> None:
    lines = [{"incarnation": 1, "time": 0.0}, {"incarnation": 1, "time": 1.0}]
    lines += [{"incarnation": 2, "time": moment} for moment in (1000.0, 1004.0, 1010.0)]
    assert find_time_left(lines, 7, 10) == 3 * 5.0
    assert find_time_left([{"incarnation": 1, "step_seconds": 4.0}], 1, 3) == 8.0
    assert find_time_left([], None, 3) is None
    assert find_time_left([], 3, 3) == 0.0


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "events.jsonl", "outcome.json", "jobs.jsonl"])
@pytest.mark.parametrize("damage", ["cut", "empty", "binary", "other", "gone", "folder"])
def test_whatever_is_torn_there_is_a_row(name: str, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    layout = write_run(Path("runs/mine"))
    write(layout.outcome, {"state": "STOPPED", "step": 5, "notice": "SIGTERM"})
    write_lines(layout.jobs, [{"event": "submitted", "job": "12", "time": 1.0}])
    path = layout.root / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "gone":
        made = {"cut": content[: len(content) * 2 // 3], "empty": b"", "binary": b"\xff\x00\n" * 99}
        path.write_bytes(made.get(damage, b'[1, {"step": null, "time": "x"}]\n{"step": "a", "time": []}\n'))
    assert set(status(capsys)) == {"mine"}
    assert main(["status"]) == 0


def test_a_run_of_an_older_version_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("runs/old/run.json"), {"config": {"steps": 3}})
    write_lines(Path("runs/old/metrics.jsonl"), [{"step": 2, "train_loss": 1.0}])
    write(Path("runs/old/incarnations/000001.json"), {"host": "elsewhere"})
    record = status(capsys)["old"]
    assert (record["step"], record["loss"], record["state"]) == (2, None, "SILENT")


def test_named_runs_alone_are_shown_and_one_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        write_run(Path("else") / name)
    assert set(status(capsys, "run_root=else")) == {"one", "two"}
    assert set(status(capsys, "else/two")) == {"two"}
    assert main(["status", "on", "run_root=else"]) == 2
    assert "did you mean one?" in capsys.readouterr().err


def job(number: str, state: str) -> JobView:
    return JobView(job=number, state=state)


@pytest.mark.parametrize(
    ("jobs", "here", "outcome", "host", "age", "wanted"),
    [
        ([job("7", "RUNNING")], False, "STOPPED", "other", 999, ("RUNNING", False)),
        ([job("7", "PENDING")], False, "STOPPED", "other", 999, ("PENDING", False)),
        ([job("7", "TIMEOUT")], False, "STOPPED", "other", 999, ("STOPPED", True)),
        ([job("7", "NODE_FAIL")], False, None, "other", 999, ("NODE_FAIL", True)),
        ([], True, "STOPPED", None, 999, ("RUNNING", False)),
        ([], False, "FAILED", None, 1, ("FAILED", True)),
        ([], False, None, None, 1, ("KILLED", True)),
        ([], False, None, "other", 1, ("RUNNING", False)),
        ([], False, None, "other", 999, ("SILENT", False)),
    ],
)
def test_slurm_counts_while_a_job_lives_then_what_can_be_seen_then_the_outcome(
    jobs: list[JobView],
    here: bool,
    outcome: str | None,
    host: str | None,
    age: float,
    wanted: tuple[str, bool],
) -> None:
    layout = write_run(Path("mine").absolute(), host=host)
    write_lines(layout.jobs, [{"event": "submitted", "job": "7"}] if jobs else [])
    if outcome:
        write(layout.outcome, {"state": outcome, "step": 5, "rank": 1, "error_class": "DataError"})
    slurm = SlurmView(jobs={each.job: each for each in jobs})
    facts = read_facts(layout)
    view = judge(facts, slurm, {layout.root: [1]} if here else {}, facts.last_sign + age)
    assert (view.state, view.is_over) == wanted


def test_of_several_jobs_the_one_that_runs_counts_then_one_that_waits_then_the_newest() -> None:
    order = ("1", "2", "3")
    done, waits, runs = job("1", "COMPLETED"), job("3", "PENDING"), job("2", "RUNNING")
    assert choose_job(order, [done, waits, runs]) == runs
    assert choose_job(order, [done, waits]) == waits
    assert choose_job(order, [done, job("2", "FAILED")]) == job("2", "FAILED")
    assert choose_job(order, []) is None


def test_slurm_is_asked_once_for_all_runs_and_its_words_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, number in (("one", "11"), ("two", "12_3")):
        layout = write_run(Path("runs") / name, host="other")
        write_lines(layout.jobs, [{"event": "submitted", "job": number}])
    asked = tmp_path / "asked"
    put_on_path(
        tmp_path / "bin",
        "squeue",
        f'echo "$@" >>{asked}\necho "11|RUNNING|None|node[1-2]"\necho "12_3|PENDING|Priority|"',
    )
    found = status(capsys)
    assert (found["one"]["state"], found["one"]["nodes"]) == ("RUNNING", "node[1-2]")
    assert (found["two"]["state"], found["two"]["note"]) == ("PENDING", "job 12_3 (Priority)")
    assert [line.split("--jobs=")[1] for line in asked.read_text().splitlines()] == ["11,12_3"]


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        (
            "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
            True,
        ),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
    ],
)
def test_a_controller_that_does_not_answer_is_said_and_never_an_error(
    script: str,
    wanted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    layout = write_run(Path("runs/mine"))
    write_lines(layout.jobs, [{"event": "submitted", "job": "11"}])
    put_on_path(tmp_path / "bin", "squeue", script)
    put_on_path(tmp_path / "bin", "sacct", "exit 1")
    assert main(["status"]) == 0
    said = capsys.readouterr()
    assert ("Slurm's controller does not answer" in said.err) == wanted
    assert "mine" in said.out


def test_a_command_of_slurm_that_hangs_is_left_after_a_while() -> None:
    lines, trouble = ask([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.1)
    assert lines == []
    assert trouble == f"Slurm's controller does not answer ({sys.executable} took more than 0 s)"


def test_without_jobs_slurm_is_not_asked() -> None:
    assert ask_jobs([]) == NOTHING
    assert ask_jobs(["; rm -rf"]) == NOTHING


def test_a_restarted_run_counts_its_restarts(capsys: pytest.CaptureFixture[str]) -> None:
    layout = write_run(Path("runs/mine"))
    for number in (2, 3):
        write(layout.incarnations / f"{number:06}.json", {"host": "x", "pid": 1, "time": time.time()})
    assert status(capsys)["mine"]["restarts"] == 2


def test_a_line_of_bars_goes_from_the_highest_to_the_lowest() -> None:
    assert draw_line([3.0, 2.0, 1.0], 3) == "█▅▁"
    assert draw_line([1.0] * 100, 10) == "▁" * 10
    assert draw_line([], 10) == ""


def test_a_folder_without_runs_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "run_root=nowhere"]) == 0
    assert capsys.readouterr().out == "no run in nowhere/\n"


def test_every_run_is_found_by_its_checkpoints_too() -> None:
    write(Path("runs/lost/checkpoints/step_00000004/manifest.json"), {"step": 4})
    assert read_facts(RunLayout(Path("runs/lost").absolute())).checkpoint_step == 4
