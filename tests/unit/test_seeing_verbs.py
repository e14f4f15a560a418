"""`metier logs`, `stop`, `watch` and `sync` by what they print and leave behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.__main__ import main
from launcher.seeing.events import say_event
from launcher.seeing.logs import Follower
from tests.seen_run import put_on_path, write, write_lines, write_run
from training.layout import RunLayout


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # no Slurm, whatever this machine has


def write_logs(layout: RunLayout) -> None:
    layout.logs.mkdir()
    for rank in (10, 2):
        layout.rank_log(rank).write_text("".join(f"line {number} of {rank}\n" for number in range(99)))
    layout.job_log("7").write_text("start 1\n")


def test_logs_come_in_the_order_of_the_ranks_each_line_with_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_logs(write_run(Path("runs/mine")))
    assert main(["logs", "mine", "--lines", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "job 7   | start 1",
        "rank 2  | line 97 of 2",
        "rank 2  | line 98 of 2",
        "rank 10 | line 97 of 10",
        "rank 10 | line 98 of 10",
    ]


def test_one_rank_or_one_job_comes_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    write_logs(write_run(Path("runs/mine")))
    for words, wanted in (
        (["--rank", "10", "--lines=1"], "line 98 of 10\n"),
        (["--rank=2", "--lines", "1"], "line 98 of 2\n"),
        (["--job", "7"], "start 1\n"),
    ):
        assert main(["logs", "mine", *words]) == 0
        assert capsys.readouterr().out == wanted


def test_a_rank_without_a_log_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    write_logs(write_run(Path("runs/mine")))
    for words in (["--rank", "3"], ["--job", "8"]):
        assert main(["logs", "mine", *words]) == 2
        assert capsys.readouterr().err.endswith("is not there; rank 2, rank 10, job 7\n")
    for word in ("x", "-1"):
        assert main(["logs", "mine", "--rank", word]) == 2
        told = f"metier logs: --rank {word}: wanted the number of a rank, 0 or more\n"
        assert capsys.readouterr().err == told
    assert main(["logs", "mine", "--rank"]) == 2
    assert capsys.readouterr().err == "metier: --rank needs a value after it\n"


def test_what_is_followed_comes_in_whole_lines_once_and_again_from_the_start_when_it_is_new() -> None:
    path = Path("log")
    path.write_text("old\n")
    follower = Follower(path)
    assert follower.read() == []
    with path.open("a") as stream:
        stream.write("one\ntwo\nhal")
    assert follower.read() == ["one", "two"]
    with path.open("a") as stream:
        stream.write("f\n")
    assert follower.read() == ["half"]
    path.write_text("new\n")
    assert follower.read() == ["new"]


def test_stop_refuses_where_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    layout = write_run(Path("runs/mine"))
    write(layout.outcome, {"state": "COMPLETED", "step": 5})
    assert main(["stop", "mine"]) == 2
    said = capsys.readouterr().err
    assert said == "metier stop: nothing of mine is running: it is COMPLETED after step 5\n"
    assert not layout.stop_request.exists()
    assert main(["stop"]) == 2


def test_stop_writes_a_persons_wish_which_the_job_script_tells_from_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    layout = write_run(Path("runs/mine"), host="elsewhere")
    assert main(["stop", "mine"]) == 0
    assert "asked to save and end" in capsys.readouterr().out
    assert layout.stop_request.read_text().startswith("user ")
    assert os.uname().nodename in layout.stop_request.read_text()


def test_stop_cancels_jobs_that_wait_and_tells_those_that_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = write_run(Path("runs/mine"), host="elsewhere")
    lines = [
        {"event": "submitted", "job": "1"},
        {"event": "next", "job": "2"},
        {"event": "stage", "job": "3"},
    ]
    write_lines(layout.jobs, lines)
    rows = ["1|RUNNING|None|node1", "2|PENDING|Dependency|", "3|PENDING|Dependency|"]
    put_on_path(tmp_path / "bin", "squeue", f'for row in {" ".join(map(repr, rows))}; do echo "$row"; done')
    put_on_path(tmp_path / "bin", "scancel", f'echo "$@" >>{tmp_path}/cancelled')
    assert main(["stop", "mine"]) == 0
    assert (tmp_path / "cancelled").read_text() == "--batch --signal=USR1 1\n2\n3\n"
    assert "job 1 on node1 was told" in capsys.readouterr().out
    (tmp_path / "cancelled").unlink()
    assert main(["stop", "mine", "--now"]) == 0
    assert (tmp_path / "cancelled").read_text() == "1\n2\n3\n"
    put_on_path(tmp_path / "bin", "scancel", "echo 'scancel: error: Access/permission denied' >&2; exit 1")
    assert main(["stop", "mine"]) == 1
    assert "Access/permission denied" in capsys.readouterr().out


def test_stop_now_tells_the_ranks_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    layout = write_run(Path("runs/mine").absolute())
    words = [
        "import signal, sys; signal.sigwait([signal.SIGTERM])",
        "-m",
        "training.worker",
        str(layout.root),
    ]
    rank = subprocess.Popen([sys.executable, "-c", *words])
    try:
        deadline = time.monotonic() + 20
        while main(["stop", "mine", "--now"]) != 0:
            assert time.monotonic() < deadline
        assert rank.wait(20) == -15
        assert "1 processes on" in capsys.readouterr().out
    finally:
        rank.kill()
        rank.wait()


def test_watch_tells_the_events_of_the_newest_start_and_ends_with_the_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    layout = write_run(Path("runs/mine"))
    write(layout.incarnations / "000002.json", {"host": "x"})
    events = [
        {"event": "saved", "time": 1.0, "incarnation": 1, "step": 4},
        {"event": "resumed", "time": 2.0, "incarnation": 2, "step": 4},
        {"event": "self_test", "time": 2.0, "incarnation": 2},
    ]
    write_lines(layout.events, events)
    write(layout.outcome, {"state": "COMPLETED", "step": 5})
    assert main(["watch", "mine"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.endswith("resumed: step 4")
    assert last == "mine: COMPLETED  step 5/10  loss 0.800  1,000 tokens/s  mfu 40.0%  start 2"


def test_watch_says_by_its_exit_code_that_a_run_failed(capsys: pytest.CaptureFixture[str]) -> None:
    layout = write_run(Path("runs/mine"))
    write(layout.outcome, {"state": "FAILED", "rank": 3, "error_class": "DataError", "message": "broken"})
    assert main(["watch", "mine"]) == 1
    assert "rank 3: DataError: broken" in capsys.readouterr().out
    assert main(["watch", "mine", "--every", "never"]) == 2


def test_an_event_is_one_line_that_fits() -> None:
    assert say_event({"event": "memory", "ranks": []}) == ""
    assert (
        say_event({"event": "saved", "step": 4, "seconds": 0.123456})
        == "--:--:-- saved: step 4, seconds 0.1235"
    )
    assert len(say_event({"event": "note", "text": "x" * 999})) < 220
    assert say_event({}) == ""


def test_sync_after_a_run_is_a_small_job_that_waits_for_its_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = write_run(Path("runs/mine"))
    assert main(["sync", "mine", "--after"]) == 2
    assert "names no job to wait for" in capsys.readouterr().err
    write_lines(layout.jobs, [{"event": "submitted", "job": "1"}, {"event": "next", "job": "2"}])
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    assert main(["sync", "mine", "--after"]) == 2
    assert "no API key of Weights & Biases is here" in capsys.readouterr().err
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
    assert main(["sync", "mine", "--after"]) == 2
    assert "sbatch is not here" in capsys.readouterr().err
    put_on_path(
        tmp_path / "bin", "sbatch", f'for word in "$@"; do echo "$word"; done >{tmp_path}/words; echo 9'
    )
    assert main(["sync", "mine", "--after", "--partition", "login"]) == 0
    log = layout.root.absolute() / "logs" / "sync_9.log"
    assert capsys.readouterr().out == f"job 9 sends it, afterany:2; its log is {log}\n"
    words = (tmp_path / "words").read_text().splitlines()
    assert {"--dependency=afterany:2", "--partition=login", "--ntasks=1"} <= set(words)
    assert any("training.metrics.tracker" in word and word.endswith("--online") for word in words)
    put_on_path(
        tmp_path / "bin", "sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1"
    )
    assert main(["sync", "mine", "--partition=x"]) == 2
    assert "Slurm refused the job: sbatch: error: invalid partition" in capsys.readouterr().err
