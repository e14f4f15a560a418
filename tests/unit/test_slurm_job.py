"""The small things of a job's script: nodes, ports, dependencies, the journal."""

import json
from pathlib import Path

import pytest

from launcher.__main__ import main as type_metier
from launcher.compose import compose_run
from launcher.slurm.call import is_busy
from launcher.slurm.facts import is_out_of_memory
from launcher.slurm.job import main, port_of
from launcher.slurm.journal import append_line, count_in_vain, find_newer, newest_job, read_journal
from launcher.slurm.living import choose_deputies, choose_living
from launcher.slurm.script import write_script
from launcher.slurm.successor import find_waiting, replace_dependency
from launcher.tree import ConfigTree
from tests.seen_run import put_on_path
from training.config.freeze import write_frozen
from training.errors import EXIT_FAILED, EXIT_OK, EXIT_USER_ERROR
from training.layout import RunLayout

NAMES = ["n1", "n2", "n3"]


@pytest.mark.parametrize(
    ("states", "without", "chosen"),
    [
        ({}, set(), ["n1", "n2", "n3"]),
        ({"n1": "alloc", "n2": "alloc*", "n3": "mix"}, set(), ["n1", "n3"]),
        ({"n1": "down", "n2": "alloc", "n3": "drng"}, set(), ["n2", "n3"]),
        ({"n1": "down*"}, {"n3"}, ["n2"]),
        ({}, {"n1"}, ["n2", "n3"]),
        ({"n2": "fail"}, set(), ["n1", "n3"]),
        # A reservation for maintenance runs jobs on its nodes.
        ({"n1": "alloc$", "n2": "mix$", "n3": "alloc#"}, set(), ["n1", "n2"]),
    ],
)
def test_a_start_takes_nodes_that_live(states: dict[str, str], without: set[str], chosen: list[str]) -> None:
    assert choose_living(NAMES, states, without) == chosen


def test_a_few_other_nodes_look_after_a_job_spare_ones_first() -> None:
    assert choose_deputies(["n1"], "n1") == []
    assert choose_deputies(["n1", "n2"], "n1") == ["n2"]
    assert choose_deputies(["n1", "n2", "n3", "n4", "n5"], "n1") == ["n3", "n4", "n5"]
    assert choose_deputies(["n1", "n2", "n3", "n4"], "n4") == ["n1", "n2", "n3"]


def test_ports_differ_between_neighbouring_jobs_and_starts_and_lie_below_the_ephemeral_range() -> None:
    ports = {port_of(str(job), start) for job in range(1000, 1100) for start in range(5)}
    assert len(ports) == 500
    assert min(ports) >= 15_000
    assert max(ports) < 25_000
    assert port_of("12_1", 0) != port_of("12_2", 0)


@pytest.mark.parametrize(
    ("waits", "moved"),
    [
        ("afterok:12(unfulfilled)", "afterok:99"),
        ("afterok:12(unfulfilled),afterany:7(unfulfilled)", "afterok:99,afterany:7"),
        ("afterany:7:12", "afterany:7:99"),
        ("afterok:123(unfulfilled)", None),
        ("afterok:12_4(unfulfilled)", None),
        ("(null)", None),
        ("singleton(unfulfilled)", None),
    ],
)
def test_who_waits_for_a_job_is_made_to_wait_for_another(waits: str, moved: str | None) -> None:
    assert replace_dependency(waits, "12", "99") == moved


def test_a_torn_line_costs_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    append_line(path, "submitted", job="1")
    path.write_bytes(path.read_bytes() + b'{"event": "star')
    append_line(path, "next", job="2", after="1")
    assert [line["event"] for line in read_journal(path)] == ["submitted", "next"]
    assert newest_job(read_journal(path)) == "2"
    assert json.loads(path.read_text().splitlines()[-1])["job"] == "2"


def test_the_next_job_of_a_chain_is_known_until_it_is_called_off() -> None:
    lines = [{"event": "next", "job": "2", "after": "1"}]
    assert find_waiting(lines, "1") == "2"
    assert find_waiting(lines, "2") is None
    assert find_waiting([*lines, {"event": "called_off", "job": "2"}], "1") is None


def began(job: str, restart: int = 0) -> dict[str, object]:
    return {"event": "started", "job": job, "restart": restart}


@pytest.mark.parametrize(
    ("later", "newer"),
    [
        ([], None),
        ([began("1", 0)], None),
        ([began("1", 1)], "1"),
        ([{"event": "next", "job": "2"}], None),
        ([{"event": "next", "job": "2"}, began("2")], "2"),
        # The other begins once more although it is the older one.
        ([{"event": "next", "job": "2"}, began("2"), began("1", 0)], "2"),
    ],
)
def test_a_script_knows_that_slurm_has_begun_its_run_anew_elsewhere(
    later: list[dict[str, object]], newer: str | None
) -> None:
    lines = [{"event": "submitted", "job": "1"}, began("1"), *later]
    assert find_newer(lines, "1", 0) == newer


def test_the_newer_start_is_not_superseded_by_an_older_script_that_begins_once_more() -> None:
    lines = [{"event": "submitted", "job": "1"}, began("1"), began("1", 1), began("1", 0)]
    assert not find_newer(lines, "1", 1)
    chain = [{"event": "submitted", "job": "1"}, {"event": "next", "job": "2"}, began("2"), began("1")]
    assert not find_newer(chain, "2", 0)


def test_starts_that_slurm_did_not_let_begin_are_counted_from_the_last() -> None:
    ends = [{"event": "ended", "away": away} for away in (True, False, True, True)]
    assert count_in_vain([]) == 0
    assert count_in_vain(ends) == 2
    assert count_in_vain(ends[2:]) == 2


def test_a_step_that_is_refused_because_the_last_one_is_not_known_to_have_ended_may_be_tried_again() -> None:
    assert is_busy("srun: error: Unable to create step for job 124: Memory required by task is not available")
    assert not is_busy(
        "srun: error: Unable to create step for job 124: More processors requested than permitted"
    )


@pytest.mark.parametrize(
    ("words", "is_so"),
    [
        (
            "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some have been OOM Killed.",
            True,
        ),
        (
            "slurmstepd-n1: error: StepId=7.1 exceeded memory limit (355532800 > 314572800), being killed",
            True,
        ),
        ("slurmstepd-n1: error: Exceeded job memory limit", True),
        ("srun: error: n1: task 0: Killed", False),
    ],
)
def test_a_rank_that_was_killed_for_its_memory_is_known_by_slurms_words(words: str, is_so: bool) -> None:
    assert is_out_of_memory(words) is is_so


def test_where_no_job_may_run_again_one_other_waits_from_before_the_preflight_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    put_on_path(
        tmp_path / "bin", "sbatch", f"echo 8; echo $@ >>{tmp_path}/submitted; env >{tmp_path}/environment"
    )
    for name in ("SLURM_RESTART_COUNT", "SLURM_NTASKS", "SLURM_CONF"):
        monkeypatch.setenv(name, "2")
    put_on_path(tmp_path / "bin", "squeue", 'case "$*" in *=8*) echo PENDING;; esac')
    words = ["experiment=tiny_smoke", "cluster=slurm", "name=mine", "cluster.slurm.requeue="]
    for requeue, successors in (("true", []), ("false", ["8"])):
        config = compose_run([*words[:-1], words[-1] + requeue], ConfigTree(None)).config
        layout = RunLayout(tmp_path / requeue)
        write_frozen(layout.config, config, {})
        layout.job_script.write_text("#!/bin/bash\n")
        append_line(layout.jobs, "submitted", job="7")
        for _ in range(2):
            assert main(["chain", str(layout.root)]) == EXIT_OK
        assert [line["job"] for line in read_journal(layout.jobs) if line["event"] == "next"] == successors
        script = write_script(config, layout)
        assert ("job chain" in script) == bool(successors)
        assert script.find("job chain") < script.find("training.preflight")
    assert "--dependency=afterany:7" in (tmp_path / "submitted").read_text()
    # The next job's first start is no restart, whatever this one is.
    inherited = {line for line in (tmp_path / "environment").read_text().splitlines() if "SLURM" in line}
    assert inherited == {"SLURM_CONF=2", "SLURM_TIME_FORMAT=%s"}


def test_an_error_of_the_scripts_own_is_written_down_calls_off_what_would_follow_and_is_named_by_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)  # what nobody thought of
    for name, script in (
        ("sbatch", "echo 8"),
        ("squeue", "exit 0"),
        ("sacct", "exit 0"),
        ("scancel", f"echo $1 >{tmp_path}/cancelled"),
    ):
        put_on_path(tmp_path / "bin", name, script)
    words = ["experiment=tiny_smoke", "cluster=slurm", "cluster.slurm.requeue=false", "name=mine"]
    config = compose_run(words, ConfigTree(None)).config
    layout = RunLayout(tmp_path / "runs" / "mine")
    write_frozen(layout.config, config, {})
    layout.job_script.write_text("#!/bin/bash\n")
    append_line(layout.jobs, "submitted", job="7")
    assert main(["begin", str(layout.root)]) == EXIT_FAILED
    assert "Traceback" in capsys.readouterr().err
    lines = {line["event"]: line for line in read_journal(layout.jobs)}
    decided = lines["decided"]
    assert (decided["job"], decided["step"], decided["error_class"]) == ("7", "failed", "KeyError")
    assert decided["reason"] == "the job's script failed: KeyError: 'SLURM_JOB_NODELIST'"
    assert lines["called_off"]["job"] == "8"
    assert (tmp_path / "cancelled").read_text() == "8\n"
    assert type_metier(["why", "mine"]) == 0
    assert "(script_error)" in capsys.readouterr().out


def test_an_error_that_a_person_can_mend_is_a_decision_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    layout = RunLayout(tmp_path)
    assert main(["decide", str(layout.root), "1"]) == EXIT_USER_ERROR
    assert "Traceback" not in (said := capsys.readouterr().err)
    assert "run.json" in said
    assert [line["event"] for line in read_journal(layout.jobs)] == ["decided", "given_up"]
