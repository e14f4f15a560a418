"""`metier preflight` as a user types it."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

from tests.end_to_end.runs import metier, start
from training.verdict import EXIT_EXCLUDE, EXIT_STOP


def test_a_preflight_prints_a_line_per_node_and_tells_what_is_bad_by_words_and_exit_code(
    tmp_path: Path,
) -> None:
    # Where tests share the cores, one process may be slower than the other.
    done = metier(
        tmp_path,
        "preflight",
        "experiment=tiny_smoke",
        "cluster.processes_per_node=2",
        "cluster.preflight.slow_factor=100",
        "cluster.preflight.min_free_bytes=1000000000000000000",
    )
    assert done.returncode == EXIT_STOP, done.stderr
    name = os.uname().nodename
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["node", "ranks", "product"]
    assert (lines[1].split()[:2], lines[1].split()[-1]) == ([name, "2"], "bad")
    assert lines[2].startswith("all-reduce over 2 ranks: ")
    assert lines[-1].startswith("verdict: stop")
    told = [line for line in done.stderr.splitlines() if "at least 1,000,000,000.0 GB wanted; bad" in line]
    assert [line.split(" free in ")[0].rsplit(" ", 2)[0] for line in told] == [
        f"metier preflight: {name}: run directory",
        f"metier preflight: {name}: local disk",
    ]
    folder = tmp_path / "runs" / "tiny_smoke" / "preflight"
    report = json.loads((folder / "preflight.json").read_text())
    assert [rank["rank"] for rank in report["facts"]["ranks"]] == [0, 1]
    assert not list(folder.glob(".preflight-*"))
    assert not (folder.parent / "run.json").exists()


def test_under_slurm_the_command_asks_for_nodes_as_the_run_would_but_for_minutes(tmp_path: Path) -> None:
    words = (
        "cluster=slurm",
        "cluster.nodes=4",
        "cluster.slurm.partition=gpu",
        "cluster.slurm.exclude=[bad7]",
    )
    done = metier(tmp_path, "preflight", *words, "dry_run=true")
    assert done.returncode == 0, done.stderr
    for word in ("--nodes=4", "--partition=gpu", "--exclude=bad7", "--time=6", "--kill-on-bad-exit=0"):
        assert f" {word} " in done.stdout
    for word in ("--output", "--signal", "--requeue", "--open-mode", "--wait-all-nodes"):
        assert word not in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_lead_that_hangs_is_named_in_place_of_the_verdict_that_it_does_not_give(tmp_path: Path) -> None:
    words = ("experiment=tiny_smoke", "cluster.processes_per_node=2", "cluster.preflight.budget_seconds=2")
    with start(tmp_path, "preflight", *words) as asked:
        lead = wait_for_lead(tmp_path / "runs" / "tiny_smoke" / "preflight")
        os.kill(lead, signal.SIGSTOP)
        _, told = asked.communicate(timeout=120)
    assert asked.returncode == EXIT_EXCLUDE, told
    name = os.uname().nodename
    said = "leads the preflight and did not answer for 34 s, a verdict wanted; excluded"
    assert told.splitlines()[-1] == f"metier preflight: {name}: {said}"
    deadline = time.monotonic() + 10
    while Path(f"/proc/{lead}").exists():
        assert time.monotonic() < deadline, "the lead is left behind"
        time.sleep(0.05)
    report = json.loads((tmp_path / "runs/tiny_smoke/preflight/preflight.json").read_text())
    assert report["verdict"]["nodes"] == [name]


def wait_for_lead(folder: Path) -> int:
    """Wait until the lead of a preflight has written that it is the lead; give its process id."""
    deadline = time.monotonic() + 60
    while not (folder / "preflight.json").exists():
        assert time.monotonic() < deadline, "no lead has begun"
        time.sleep(0.05)
    words = [b"-m", b"training.preflight", os.fsencode(folder)]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().split(b"\0")[:-1]
            is_lead = b"RANK=0" in (process / "environ").read_bytes().split(b"\0")
            if is_lead and command[-3:] == words and b"torch.distributed.run" not in command:
                return int(process.name)
    raise AssertionError("the lead has ended")
