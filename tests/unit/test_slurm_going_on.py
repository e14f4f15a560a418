"""How a run goes on, or ends, when Slurm, a person or a node comes between: what may never be got wrong."""

import subprocess
from pathlib import Path

import pytest

from launcher.compose import compose_run
from launcher.slurm import facts
from launcher.slurm.call import call_slurm
from launcher.slurm.facts import asked_by_user, find_living_job, is_cancelled, read_own_log
from launcher.slurm.job import ENOUGH, main
from launcher.slurm.journal import append_line, read_journal
from launcher.slurm.request import find_look_seconds
from launcher.slurm.script import write_script
from launcher.slurm.submit import refuse_second
from launcher.slurm.successor import find_successor, hand_over, submit_next
from launcher.tree import ConfigTree
from tests.cluster_case import slurm_run
from tests.seen_run import put_on_path, write
from training.config.freeze import write_frozen
from training.errors import EXIT_FAILED, EXIT_OK, ClusterError
from training.layout import RunLayout
from training.verdict import Verdict, find_report, note_lead, read_verdict

TOLD = "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 1790000000 ***"
IMAGE = "nvcr.io#nvidia/pytorch:25.06-py3"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lend a folder with Slurm's commands, of which none refuses anything, within job 7 on node n1."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    here = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURMD_NODENAME": "n1", "MASTER_ADDR": "n1"}
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    for name in ("squeue", "sinfo", "scancel"):
        put_on_path(tmp_path, name, "exit 0")
    put_on_path(tmp_path, "scontrol", 'case "$2" in hostnames) echo n1;; *) echo JobState=COMPLETING;; esac')
    put_on_path(tmp_path, "sbatch", f'echo "$*" >>{tmp_path}/asked; wc -l <{tmp_path}/asked')
    return tmp_path


def make_run(*words: str) -> RunLayout:
    """Write a run whose job is number 7."""
    composed = compose_run(["experiment=tiny_smoke", "cluster=slurm", "name=mine", *words], ConfigTree(None))
    layout = RunLayout(Path("runs/mine").absolute())
    write_frozen(layout.config, composed.config, {})
    layout.job_script.write_text(write_script(composed.config, layout))
    append_line(layout.jobs, "submitted", job="7")
    return layout


def events(layout: RunLayout, event: str) -> list[dict[str, object]]:
    return [line for line in read_journal(layout.jobs) if line["event"] == event]


@pytest.mark.parametrize(
    ("said", "is_so"),
    [
        ("step 1/9  loss 5.7  lr 1e-3\n" * 2000 + TOLD, True),
        (f"{TOLD}\nmetier job: start 2 of job 7 on n1, from step 4\nstep 5", False),
    ],
)
def test_of_the_log_counts_what_was_said_since_the_newest_start_however_long_ago_that_was(
    said: str, is_so: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "_read_end", lambda _: said[-20_000:])
    assert is_cancelled("7", read_own_log()) is is_so


def test_a_persons_wish_to_stop_is_known_from_the_journal_until_the_run_is_submitted_again() -> None:
    layout = RunLayout(Path("runs/mine"))
    append_line(layout.jobs, "submitted", job="7")
    assert not asked_by_user(layout)
    layout.stop_request.write_text("job 7: USR1\n")
    append_line(layout.jobs, "stop", by="user ann@login", told=["7"], cancelled=[])
    assert asked_by_user(layout)
    append_line(layout.jobs, "submitted", job="8")
    assert not asked_by_user(layout)


@pytest.mark.parametrize("wish", ["user ann@login\n", None])
def test_the_scripts_notice_does_not_write_over_a_persons_wish(wish: str | None) -> None:
    layout = make_run()
    script = layout.job_script.read_text()
    assert script.count("stop.request") == 1  # nothing else in it writes there
    ask = next(line for line in script.splitlines() if line.startswith("ask_to_stop()"))
    if wish:
        layout.stop_request.write_text(wish)
    head = f"set -u; run={layout.root} this_job=7 notice=USR1"
    subprocess.run(["/bin/bash", "-c", f"{head}\n{ask}\nask_to_stop"], check=True)
    assert layout.stop_request.read_text() == (wish or "job 7: USR1\n")


def test_nodes_that_never_live_end_the_run_after_some_time(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = make_run("cluster.slurm.starts_without_progress=1")
    put_on_path(place, "sinfo", "echo n1 down")
    codes = [main(["begin", str(layout.root)]) for _ in range(5)]
    assert codes[-1] == EXIT_FAILED
    assert EXIT_FAILED not in codes[:-1]
    assert "given up: 5 times in a row fewer nodes lived than the run needs" in capsys.readouterr().err
    assert [line["step"] for line in events(layout, "decided")] == ["return"] * 4 + ["failed"]


def refuse(layout: RunLayout, node: str = "n1") -> int:
    """Let a preflight find a node bad; give what the job's script does then."""
    verdict = Verdict(kind="exclude", nodes=(node,), reason=f"{node}: slow")
    report = {"time": 1.0, "seconds": 1.0, "nodes": [node], "findings": [], "undone": [], "facts": {}}
    write(layout.preflight, {**report, "verdict": verdict.model_dump(mode="json")})
    return main(["judge", str(layout.root), "3"])


def test_preflights_are_counted_in_a_row_and_not_over_the_life_of_a_run() -> None:
    layout = make_run("cluster.preflight.mode=exclude", "cluster.slurm.starts_without_progress=2")
    for _ in range(4):
        assert refuse(layout) == ENOUGH
        append_line(layout.jobs, "started", job="7", step=0)
    assert [refuse(layout) for _ in range(3)] == [ENOUGH, ENOUGH, EXIT_FAILED]


def test_the_next_job_stays_away_from_the_nodes_that_are_known_as_bad(place: Path) -> None:
    layout = make_run("cluster.slurm.exclude=[n8,n9]")
    submit_next(layout, after="7")
    append_line(layout.jobs, "preflight", job="7", verdict="exclude", bad=["n2"])
    submit_next(layout, after="7")
    first, second = (place / "asked").read_text().splitlines()
    assert [word for word in first.split() if "exclude" in word] == ["--exclude=n8,n9"]
    assert [word for word in second.split() if "exclude" in word][-1] == "--exclude=n8,n9,n2"
    assert [line["excluded"] for line in events(layout, "next")] == [[], ["n2"]]
    # Slurm would have too few nodes without it.
    put_on_path(place, "sbatch", 'case "$*" in *n2*) echo "error: no nodes" >&2; exit 1;; esac; echo 5')
    assert submit_next(layout, after="7") == "5"
    # A person has submitted the run anew: the node may have been mended.
    append_line(layout.jobs, "submitted", job="9")
    assert submit_next(layout, after="9") == "5"
    assert [line["excluded"] for line in events(layout, "next")][2:] == [[], []]


def test_a_successor_that_somebody_has_cancelled_is_submitted_anew(place: Path) -> None:
    layout = make_run("cluster.slurm.requeue=false")
    append_line(layout.jobs, "next", job="70", after="7")
    put_on_path(place, "squeue", 'case "$*" in *=70*) echo PENDING;; esac')
    assert find_successor(layout, "7") == "70"
    assert hand_over(layout, "7", may_requeue=False)[0] == "70"
    gone = """case "$*" in *=70*) echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1;; esac"""
    put_on_path(place, "squeue", gone)
    assert find_successor(layout, "7") is None
    assert hand_over(layout, "7", may_requeue=False)[0] == "1"
    assert events(layout, "decided")[-1]["by"] == "1"


def test_while_the_controller_is_away_a_successor_is_taken_to_wait(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_run("cluster.slurm.requeue=false")
    append_line(layout.jobs, "next", job="70", after="7")
    put_on_path(place, "squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    monkeypatch.setattr("launcher.slurm.call.PAUSE_SECONDS", 0.0)
    assert find_successor(layout, "7") == "70"


def test_no_job_is_submitted_while_one_saves_whose_successor_was_cancelled(place: Path) -> None:
    layout = make_run("cluster.slurm.requeue=false")
    append_line(layout.jobs, "next", job="70", after="7")
    put_on_path(place, "squeue", 'case "$*" in *=70*) ;; *=7*) echo RUNNING;; esac')
    assert find_living_job(read_journal(layout.jobs)) == ("7", "RUNNING")
    with pytest.raises(ClusterError, match=r"^job 7 of mine is running already"):
        refuse_second(layout)


def test_what_the_script_says_counts_for_more_than_what_the_users_environment_says(place: Path) -> None:
    layout = make_run("cluster.slurm.account=bio", 'cluster.slurm.comment="two words"')
    submit_next(layout, after="7")
    asked = (place / "asked").read_text()
    assert "--account=bio" in asked
    assert "--comment=two words" in asked
    assert asked.index("--open-mode") < asked.index("--dependency") < asked.index(str(layout.job_script))


def test_words_of_slurm_that_are_no_utf8_are_read(place: Path) -> None:
    put_on_path(place, "sinfo", "printf 'n1 L\\374fter\\n'")
    assert call_slurm(["sinfo"]).startswith("n1 L")


@pytest.mark.parametrize(
    ("words", "began", "image", "blamed"),
    [
        ("", True, None, True),
        ("", False, None, True),
        ("srun: error: Unable to contact slurm controller (connect failure)", False, None, False),
        ("", False, IMAGE, False),
        ("", True, IMAGE, True),
    ],
)
def test_a_head_is_blamed_for_a_preflight_without_end_only_where_nothing_else_held_it_up(
    words: str, began: bool, image: str | None, blamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = ["cluster.container.kind=pyxis", f'cluster.container.image="{image}"'] if image else []
    layout = make_run("cluster.preflight.mode=exclude", *container)
    monkeypatch.setattr(facts, "_read_end", lambda _: words)
    if began:
        note_lead(layout.preflight, "n1")
    assert main(["judge", str(layout.root), "124"]) == (ENOUGH if blamed else EXIT_OK)
    assert bool(events(layout, "preflight")) is blamed
    assert (find_report(layout.preflight) is not None) is blamed
    assert read_verdict(layout.preflight).kind == ("exclude" if blamed else "unknown")


def test_an_image_that_every_node_fetches_has_time_for_that() -> None:
    def look(image: str | None) -> int:
        kind = {"cluster__container__kind": "pyxis", "cluster__container__image": image}
        return find_look_seconds(slurm_run(**(kind if image else {})).cluster)

    assert look("/images/torch.sqsh") == look(None) < look(IMAGE)
