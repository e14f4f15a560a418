"""What has become of jobs that never began, and of runs while Slurm's controller is away."""

import json
from pathlib import Path

import pytest

from launcher.__main__ import main
from launcher.compose import compose_run
from launcher.seeing.facts import read_facts
from launcher.seeing.slurm import JobView, SlurmView, ask_jobs
from launcher.seeing.state import judge
from launcher.slurm.follow import find_ending
from launcher.slurm.journal import append_line, read_journal
from launcher.slurm.submit import refuse_second
from launcher.tree import ConfigTree
from launcher.why.awaited import choose_line, find_awaited, say_awaited
from tests.seen_run import put_on_path, write, write_lines, write_run
from training.errors import ClusterError
from training.layout import RunLayout

AWAY = "Slurm's controller does not answer"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    for name in ("squeue", "sacct", "scancel"):
        put_on_path(tmp_path / "bin", name, "exit 0")


def write_waiting(tmp_path: Path) -> RunLayout:
    """Write a run that was never started and whose job is in the queue until it is cancelled."""
    layout = RunLayout(Path("runs/mine").absolute())
    write(layout.config, {"config": {"name": "mine", "loop": {"max_steps": 10}}})
    append_line(layout.jobs, "submitted", job="7", after=None, nodes=1)
    append_line(layout.jobs, "stage", job="8", stage="export", after="7")
    queue = tmp_path / "queue"
    queue.write_text("7|PENDING|Resources|\n8|PENDING|Dependency|\n")
    put_on_path(tmp_path / "bin", "squeue", f"cat {queue}")
    put_on_path(tmp_path / "bin", "scancel", f'sed -i "/^$1|/s/PENDING/CANCELLED/" {queue}')
    return layout


def test_a_run_that_was_stopped_in_the_queue_says_so_everywhere_and_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = write_waiting(tmp_path)
    assert main(["stop", "mine"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "mine: job 7, which was PENDING, is cancelled",
        "mine: job 8, which was PENDING, is cancelled",
    ]
    stop = read_journal(layout.jobs)[-1]
    assert (stop["event"], stop["cancelled"], stop["told"]) == ("stop", ["7", "8"], [])
    assert stop["by"].startswith("user ")

    assert main(["watch", "mine"]) == 0
    assert "mine: STOPPED" in (said := capsys.readouterr().out)
    assert "stopped before it began, asked by user " in said
    assert main(["status", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "STOPPED"
    assert main(["why", "mine"]) == 0
    assert "(stopped_by_user)" in capsys.readouterr().out
    assert main(["stop", "mine"]) == 2
    assert capsys.readouterr().err == "metier stop: nothing of mine is running: it is STOPPED\n"


def test_what_was_stopped_in_the_queue_and_submitted_again_waits(tmp_path: Path) -> None:
    layout = write_waiting(tmp_path)
    assert main(["stop", "mine"]) == 0
    append_line(layout.jobs, "submitted", job="9", after=None, nodes=1)
    slurm = SlurmView(jobs={"9": JobView(job="9", state="PENDING")})
    assert judge(read_facts(layout), slurm, {}, 0.0).state == "PENDING"
    assert judge(read_facts(layout), SlurmView(jobs={}), {}, 0.0).state == "NEW"


def test_a_job_that_ended_while_it_was_being_stopped_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = write_waiting(tmp_path)
    words = "scancel: error: Kill job error on job id 7: Invalid job id specified"
    put_on_path(tmp_path / "bin", "scancel", f"echo '{words}' >&2; exit 1")
    assert main(["stop", "mine"]) == 0
    assert "mine: job 7 has ended meanwhile" in capsys.readouterr().out
    assert read_journal(layout.jobs)[-1]["cancelled"] == []


@pytest.mark.parametrize(
    ("squeue", "sacct", "unmet"),
    [
        ("7|CANCELLED|DependencyNeverSatisfied|", "", True),
        ("", "7|CANCELLED|Dependency|None assigned", True),
        ("", "7|CANCELLED|None|None assigned", True),
        ("7|CANCELLED|Dependency|", "", False),
        ("", "7|CANCELLED by 0|Dependency|None assigned", False),
        ("", "7|CANCELLED|None|node1", False),
    ],
)
def test_slurms_own_end_of_a_job_whose_condition_cannot_come_true_is_told_from_a_persons(
    squeue: str, sacct: str, unmet: bool, tmp_path: Path
) -> None:
    put_on_path(tmp_path / "bin", "squeue", f"echo '{squeue}'")
    put_on_path(tmp_path / "bin", "sacct", f"echo '{sacct}'")
    layout = write_run(Path("runs/mine").absolute())
    write(layout.outcome, {"state": "STOPPED", "step": 5})
    write_lines(layout.jobs, [{"event": "submitted", "job": "7", "after": "6"}])
    view = judge(read_facts(layout), ask_jobs(["7"]), {}, 0.0)
    assert (view.state, "never began" in view.note) == (("CANCELLED", True) if unmet else ("STOPPED", False))


def test_the_job_that_was_waited_for_is_found_over_those_that_never_began_themselves() -> None:
    layout = RunLayout(Path("runs/mine").absolute())
    layout.logs.mkdir(parents=True)
    layout.job_log("5_1").write_text("reading\nno such folder: /documents\n\n")
    lines = [
        {"event": "stage", "job": "5", "stage": "prepare_shares", "after": None},
        {"event": "stage", "job": "6", "stage": "prepare", "after": "5"},
        {"event": "submitted", "job": "7", "after": "6"},
    ]
    never = {"State": "CANCELLED", "NodeList": "None assigned"}
    shares = [
        {"JobID": f"5_{task}", "State": state, "ExitCode": code, "NodeList": "node1"}
        for task, state, code in ((0, "COMPLETED", "0:0"), (1, "FAILED", "2:0"))
    ]
    rows = {"5": shares, "6": [{"JobID": "6", **never}]}
    found = find_awaited(lines, "7", [{"JobID": "7", **never}], rows.__getitem__)
    assert found is not None
    assert say_awaited(found, layout) == (
        f"job 5 (prepare_shares), which has ended: 5_1 FAILED 2:0; {layout.job_log('5_1')} "
        "says: no such folder: /documents"
    )
    person = {**never, "JobID": "7", "State": "CANCELLED by 1000"}
    assert find_awaited(lines, "7", [person], rows.__getitem__) is None


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ([], ""),
        (["reading", "srun: error: node1: task 0: Exited with exit code 2", ""], "reading"),
        (["srun: error: node1: task 0: Exited with exit code 2"], "srun: error: node1: task 0: Exited"),
        (
            ["metier prepare: no documents", "bye", "srun: Terminating StepId=5.0"],
            "metier prepare: no documents",
        ),
        (
            ["pyarrow.lib.ArrowInvalid: no", "OSError: [Errno 5] broken", "in vain"],
            "OSError: [Errno 5] broken",
        ),
    ],
)
def test_an_error_in_a_log_is_told_before_what_slurm_adds_to_it(lines: list[str], line: str) -> None:
    assert choose_line(lines).startswith(line)
    assert bool(choose_line(lines)) is bool(line)


def test_of_a_job_of_another_run_the_run_is_named() -> None:
    write_lines(write_run(Path("runs/other")).jobs, [{"event": "submitted", "job": "3"}])
    lines = [{"event": "submitted", "job": "4", "after": "3"}]
    rows = [{"JobID": "4", "State": "CANCELLED", "NodeList": "None assigned"}]
    found = find_awaited(lines, "4", rows, lambda _: [{"JobID": "3", "State": "TIMEOUT", "ExitCode": "0:0"}])
    assert found is not None
    said = say_awaited(found, RunLayout(Path("runs/mine").absolute()))
    assert said == "job 3, which has ended: 3 TIMEOUT 0:0; it is of other: metier why other"


def decided(layout: RunLayout, step: str) -> None:
    write_lines(
        layout.jobs,
        [
            {"event": "submitted", "job": "7"},
            {"event": "started", "job": "7"},
            {"event": "decided", "job": "7", "step": step},
        ],
    )


@pytest.mark.parametrize(
    ("step", "state", "is_over"), [("finished", "COMPLETED", True), ("return", "RUNNING", False)]
)
def test_without_its_controller_slurms_word_of_a_job_yields_to_the_runs_own_decision(
    step: str, state: str, is_over: bool
) -> None:
    layout = write_run(Path("runs/mine").absolute())
    decided(layout, step)
    write(layout.outcome, {"state": "COMPLETED", "step": 10})
    old = SlurmView(jobs={"7": JobView(job="7", state="RUNNING")}, trouble=AWAY)
    view = judge(read_facts(layout), old, {}, 0.0)
    assert (view.state, view.is_over) == (state, is_over)


def test_without_its_controller_a_stop_that_a_later_start_follows_is_no_end() -> None:
    layout = write_run(Path("runs/mine").absolute())
    decided(layout, "return")
    write(layout.outcome, {"state": "STOPPED", "step": 5})
    assert not judge(read_facts(layout), SlurmView(jobs={}, trouble=AWAY), {}, 0.0).is_over
    assert judge(read_facts(layout), SlurmView(jobs={}), {}, 0.0).is_over


def test_watch_and_stop_know_a_finished_run_while_the_controller_is_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = write_run(Path("runs/mine"))
    decided(layout, "finished")
    write(layout.outcome, {"state": "COMPLETED", "step": 10})
    put_on_path(tmp_path / "bin", "squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    put_on_path(tmp_path / "bin", "sacct", "echo '7|RUNNING|None|node1'")
    assert main(["watch", "mine"]) == 0
    assert "mine: COMPLETED" in capsys.readouterr().out
    assert main(["stop", "mine"]) == 2
    assert "nothing of mine is running: it is COMPLETED after step 10" in capsys.readouterr().err
    assert not layout.stop_request.exists()


def test_a_run_whose_jobs_are_forgotten_is_not_submitted_twice_while_it_lives(tmp_path: Path) -> None:
    layout = write_run(Path("runs/mine").absolute(), host="elsewhere")
    with pytest.raises(
        ClusterError, match=r"^mine lives \(on elsewhere\), and .*`metier stop mine` lets it save"
    ):
        refuse_second(layout)
    other = RunLayout(Path("runs/other").absolute())
    put_on_path(tmp_path / "bin", "squeue", f"echo '12 /home/x.sh'; echo '13 {other.job_script}'")
    with pytest.raises(ClusterError, match=r"^job 13 is of other and lives, and .*`metier stop other`"):
        refuse_second(other)
    write(layout.outcome, {"state": "STOPPED", "step": 5})
    refuse_second(layout)
    refuse_second(RunLayout(Path("runs/new").absolute()))


def test_a_job_that_jobs_jsonl_does_not_name_is_found_by_its_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = write_run(Path("runs/mine").absolute(), host="elsewhere")
    layout.job_script.write_text("#!/bin/bash\n")
    rows = f"echo '12 /home/x.sh'; echo '13 {layout.job_script}'"
    queue = f"case $* in *%o*) {rows};; *) echo '13|PENDING|None|';; esac"
    put_on_path(tmp_path / "bin", "squeue", queue)
    assert main(["status", "mine"]) == 0
    assert "PENDING" in capsys.readouterr().out
    told = tmp_path / "told"
    put_on_path(tmp_path / "bin", "scancel", f'echo "$@" >> {told}')
    main(["stop", "mine"])
    assert "13" in told.read_text()


@pytest.mark.parametrize(("step", "points"), [("finished", False), (None, True)])
def test_a_table_points_to_why_only_where_slurm_alone_knows_of_an_end(
    step: str | None, points: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = write_run(Path("runs/mine").absolute())
    if step:
        decided(layout, step)
    else:
        write_lines(layout.jobs, [{"event": "submitted", "job": "7"}, {"event": "started", "job": "7"}])
    put_on_path(tmp_path / "bin", "sacct", "echo '7|COMPLETED|None|node1'")
    assert main(["status"]) == 0
    assert ("metier why mine" in capsys.readouterr().out) is points


def test_who_follows_a_run_that_is_taken_out_of_the_queue_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = write_waiting(tmp_path)
    config = compose_run(["experiment=tiny_smoke", "name=mine"], ConfigTree(None)).config
    append_line(layout.jobs, "stop", by="user ann@login", cancelled=["7"], told=[])
    put_on_path(tmp_path / "bin", "squeue", "exit 0")
    ending = find_ending(config, layout)
    assert (ending.exit_code, ending.state) == (0, "STOPPED")
    assert "asked by user ann@login" in capsys.readouterr().out


def test_a_row_names_the_jobs_before_and_after_the_training_that_wait_run_or_have_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(Path("runs/preflight"))  # of no run: no row
    layout = write_run(Path("runs/mine"), host="elsewhere")
    stages = [("1", "prepare"), ("2", "prepare_shares"), ("3", "prepare"), ("5", "evaluate"), ("6", "export")]
    lines = [{"event": "stage", "job": job, "stage": stage} for job, stage in stages]
    lines.insert(1, {"event": "submitted", "job": "0"})  # the first is of an earlier time
    lines.insert(4, {"event": "submitted", "job": "4"})
    write_lines(layout.jobs, lines)
    rows = ("1|FAILED", "2_0|COMPLETED", "2_1|RUNNING", "3|PENDING", "4|PENDING", "5|TIMEOUT", "6|CANCELLED")
    script = "\n".join(f"echo '{row}||'" for row in rows)
    put_on_path(tmp_path / "bin", "squeue", script)
    assert main(["status"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[1:2]] == ["mine"]
    assert said[-1] == "mine: job 4; prepare_shares 2 RUNNING, prepare 3 PENDING, evaluate 5 TIMEOUT"


def test_a_clock_that_is_ahead_makes_no_negative_time(tmp_path: Path) -> None:
    layout = write_run(Path("runs/mine").absolute())
    write(layout.pulse / "heart_0.json", {"phase": "save", "since": 10.4, "incarnation": 1})
    slurm = SlurmView(jobs={"7": JobView(job="7", state="RUNNING", nodes="node1")})
    write_lines(layout.jobs, [{"event": "submitted", "job": "7"}])
    assert judge(read_facts(layout), slurm, {}, 10.0).note == "job 7 on node1, save for 0 s"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["status", ""], "'' is no run's name; known here: mine"),
        (["why", "--log", "."], "--log .: a folder; name a file in it, or give a run's folder without --log"),
        (["drill", "kinds="], "kinds=: wanted one or several of notice, stop, kill, requeue, with commas"),
        (["drill", "kinds=kill,"], "kinds=kill,: wanted one or several of"),
        (["cluster", "show", "mine", "words"], "mine: metier cluster show takes no further word"),
    ],
)
def test_words_that_mean_nothing_are_refused_in_one_line(
    words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(Path("runs/mine"))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert wanted in said
    assert said.count("\n") == 1
