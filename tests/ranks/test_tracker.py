"""W&B behind its helper process: no server, a silent one, or a dead helper ever reaches the training."""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from training.layout import RunLayout
from training.metrics.journal import Journal
from training.metrics.lines import read_lines
from training.metrics.rewind import Moment
from training.metrics.sink import open_metrics
from training.metrics.tracker import CLOSE_SECONDS, start_tracker
from training.ranks import Ranks

FAKE_KEY = "a" * 40
LEVELDB_BLOCK = 32768
WANDB_HEADER = 7


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever runs the tests may have an account, which must not be used.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    for name in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accept every connection and never answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)  # the kernel completes the handshake; nobody reads
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def new_run(root: Path, mode: str) -> RunLayout:
    layout = RunLayout(root / "run")
    layout.root.mkdir(parents=True)
    tracker = {
        "mode": mode,
        "project": "tests",
        "entity": None,
        "group": None,
        "job_type": "train",
        "tags": ["a"],
        "system_seconds": None,
    }
    config = {"name": "run", "tracker": tracker, "optimizer": {"learning_rate": 1e-3}}
    layout.config.write_text(json.dumps({"config": config, "versions": {}}))
    return layout


def write_steps(layout: RunLayout, first: int, last: int, seconds: float = 0.0) -> float:
    """Append steps as a training would; give the slowest append in seconds."""
    journal, slowest = Journal(layout.metrics), 0.0
    for step in range(first, last + 1):
        started = time.perf_counter()
        journal.append({"step": step, "samples_seen": 8 * step, "loss": 1 / step, "incarnation": 1})
        slowest = max(slowest, time.perf_counter() - started)
        time.sleep(seconds)
    journal.close()
    return slowest


def wait_for(path: Path, words: str, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not (path.exists() and words in path.read_text()):
        assert time.monotonic() < deadline, f"{path} does not say {words!r} within {timeout} s"
        time.sleep(0.1)


def read_offline_steps(layout: RunLayout) -> list[tuple[str, int]]:
    """Read run id and `step` of every history row from all offline folders, oldest first."""
    rows = []
    for file in sorted((layout.tracker / "wandb").glob("offline-run-*/*.wandb")):
        for record in read_records(file.read_bytes()[WANDB_HEADER:]):
            if record.WhichOneof("record_type") == "history":
                values = {(item.key or item.nested_key[0]): item.value_json for item in record.history.item}
                rows.append((file.stem.removeprefix("run-"), int(values["step"])))
    return rows


def read_records(content: bytes) -> Iterator[wandb_internal_pb2.Record]:
    """Read W&B's transaction log: LevelDB's log format (leveldb/doc/log_format.md) after a header."""
    place, piece = 0, b""
    while place + 7 <= len(content):
        # The header counts as part of the first block.
        left = LEVELDB_BLOCK - (place + WANDB_HEADER) % LEVELDB_BLOCK
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        piece += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(piece)
            yield record
            piece = b""


def test_a_resumed_run_keeps_its_id_and_sends_no_step_twice(tmp_path: Path) -> None:
    layout = new_run(tmp_path, "offline")
    for first, last in ((1, 20), (11, 30)):  # the second start takes steps 11 to 20 again
        handle = start_tracker(layout)
        Journal(layout.metrics).rewind(Moment(step=first - 1, samples_seen=8 * (first - 1)))
        write_steps(layout, first, last)
        handle.close(60)
    run_id = (layout.tracker / "wandb_id").read_text().strip()
    assert re.fullmatch(r"[a-z0-9]{8}", run_id)
    assert read_offline_steps(layout) == [(run_id, step) for step in range(1, 31)]


def test_the_next_starts_helper_waits_for_that_of_a_killed_start_and_goes_on_behind(
    tmp_path: Path,
) -> None:
    layout = new_run(tmp_path, "offline")
    write_steps(layout, 1, 12)
    layout.tracker.mkdir()
    with (layout.tracker / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        handle = start_tracker(layout)
        # "->" is a lock that is waited for; see proc_locks(5).
        wait_for(Path("/proc/locks"), f"-> FLOCK  ADVISORY  WRITE {handle.pid} ")
        (layout.tracker / "sent.json").write_text('{"offline": 10}')
    wait_for(layout.logs / "tracker.log", "is open (offline)")
    handle.close(60)
    assert [step for _, step in read_offline_steps(layout)] == [11, 12]


def test_a_step_that_is_taken_again_after_a_roll_back_is_a_row_of_its_own(tmp_path: Path) -> None:
    layout = new_run(tmp_path, "offline")
    frozen = json.loads(layout.config.read_text())
    frozen["config"]["batch"] = {"global_batch_size": 8}
    layout.config.write_text(json.dumps(frozen))
    # Rolled back from step 6 to 4, past the data of steps 5 and 6; then killed, and resumed from step 6.
    steps = [1, 2, 3, 4, 5, 6, 5, 6, 7]
    starts = [list(enumerate(steps, start=1)), [(9, 7), (10, 8)]]
    for incarnation, taken in enumerate(starts, start=1):
        handle = start_tracker(layout)
        journal = Journal(layout.metrics)
        for batch, step in taken:
            if batch in {7, 9}:
                wait_for(layout.logs / "tracker.log", "is open (offline)")
                # The journal is replaced under the helper, which may have read all of it or nothing yet.
                journal.rewind(Moment(step=step - 1, samples_seen=8 * 4 if batch == 7 else 8 * 8))
            journal.append({"step": step, "samples_seen": 8 * batch, "incarnation": incarnation})
        journal.close()
        handle.close(60)
    assert [line["step"] for line in read_lines(layout.metrics)] == [1, 2, 3, 4, 5, 6, 7, 8]
    run_id = (layout.tracker / "wandb_id").read_text().strip()
    assert read_offline_steps(layout) == [(run_id, step) for step in [*steps, 8]]


def test_answers_given_while_training_are_sent_with_their_step(tmp_path: Path) -> None:
    layout = new_run(tmp_path, "offline")
    samples = Journal(layout.samples)
    for step, answer in ((2, "E11"), (2, "E11"), (3, "other")):  # the second as a resumed run repeats it
        texts = {"prompt": "code of diabetes?", "expected": "E11", "answer": answer}
        samples.append({"step": step, "samples_seen": 8 * step, "id": "d1", **texts})
    samples.close()
    journal = Journal(layout.metrics)
    for step in (1, 2):
        journal.append({"step": step, "samples_seen": 8 * step, "incarnation": 1})
    journal.close()
    start_tracker(layout).close(60)
    (table,) = (layout.tracker / "wandb").glob("offline-run-*/files/media/table/samples_*.table.json")
    assert json.loads(table.read_text())["data"] == [["code of diabetes?", "E11", "E11"]]


def test_the_loss_of_each_source_is_a_metric_of_its_own(tmp_path: Path) -> None:
    layout = new_run(tmp_path, "offline")
    handle = start_tracker(layout)
    journal = Journal(layout.metrics)
    journal.append({"step": 1, "loss": 2.5, "loss_by_source": {"law": 2.0, "replay": None}, "incarnation": 1})
    journal.close()
    handle.close(60)
    (file,) = (layout.tracker / "wandb").glob("offline-run-*/*.wandb")
    records = list(read_records(file.read_bytes()[WANDB_HEADER:]))
    (row,) = (record.history.item for record in records if record.WhichOneof("record_type") == "history")
    values = named(row)
    assert {name: json.loads(text) for name, text in values.items() if name.startswith("loss")} == {
        "loss": 2.5,
        "loss/law": 2.0,
    }


def test_of_many_ranks_the_lead_alone_opens_a_run(tmp_path: Path) -> None:
    words = ["experiment=tiny_smoke", "tracker=offline", "tracker.system_seconds=null"]
    config = compose_run(words, ConfigTree(None)).config
    opened = []
    for rank in range(4):
        layout = new_run(tmp_path / str(rank), "offline")
        ranks = Ranks(rank=rank, local_rank=rank % 2, world_size=4)
        sink = open_metrics(layout, config, ranks, incarnation=1, flops_per_token=None, peak_flops=None)
        sink.event("started", step=0)
        sink.close()
        opened.append((layout.tracker / "wandb_id").exists() or (layout.logs / "tracker.log").exists())
    assert opened == [True, False, False, False]


def test_a_run_bears_its_group_its_job_type_and_every_nodes_readings(tmp_path: Path) -> None:
    layout = new_run(tmp_path, "offline")
    frozen = json.loads(layout.config.read_text())
    frozen["config"]["tracker"] |= {"group": "sweep", "job_type": "scale"}
    layout.config.write_text(json.dumps(frozen))
    for node, percent in (("node1", 10.0), ("node2", 30.0)):
        readings = Journal(layout.system(node))
        for moment, plus in ((1.0, 0.0), (2.0, 10.0), (9.0, 90.0)):
            readings.append({"time": moment, "node": node, "cpu_percent": percent + plus})
        readings.close()
    journal = Journal(layout.metrics)
    for step, moment in ((1, 0.5), (2, 2.5), (3, 3.5)):
        journal.append({"step": step, "samples_seen": 8 * step, "time": moment, "incarnation": 1})
    journal.close()
    start_tracker(layout).close(60)
    (file,) = (layout.tracker / "wandb").glob("offline-run-*/*.wandb")
    records = list(read_records(file.read_bytes()[WANDB_HEADER:]))
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (run.run_group, run.job_type, run.display_name) == ("sweep", "scale", "run")
    rows = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
    system = [
        {name: json.loads(text) for name, text in named(row).items() if name.startswith("system/")}
        for row in rows
    ]
    # Means of what was read during a step; what was read after the last one belongs to none yet.
    assert system == [{}, {"system/node1/cpu_percent": 15.0, "system/node2/cpu_percent": 35.0}, {}]


def named(row: Iterable[Any]) -> dict[str, str]:
    return {"/".join([item.key] if item.key else item.nested_key): item.value_json for item in row}


def test_sync_goes_to_the_server_whatever_the_run_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = new_run(tmp_path, "offline")
    write_steps(layout, 1, 3)
    # Where it cannot be reached nothing is written that would be taken for sent.
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    command = [sys.executable, "-m", "training.metrics.tracker", str(layout.root), "--online"]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "W&B refused" in done.stderr or "out of reach" in done.stderr
    assert not list((layout.tracker / "wandb").glob("offline-run-*"))
    assert not (layout.tracker / "sent.json").exists()


def test_a_killed_trainer_leaves_a_helper_that_sends_the_rest_and_ends(tmp_path: Path) -> None:
    layout = new_run(tmp_path, "offline")
    script = (
        "import sys, time; from pathlib import Path; from training.layout import RunLayout\n"
        "from training.metrics.tracker import start_tracker\n"
        "handle = start_tracker(RunLayout(Path(sys.argv[1])))\n"
        "print(handle.pid, flush=True); time.sleep(600)\n"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", script, str(layout.root)], stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdout is not None
    helper = int(trainer.stdout.readline())
    wait_for(layout.logs / "tracker.log", "is open (offline)")
    write_steps(layout, 1, 5)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    wait_for(layout.logs / "tracker.log", "W&B has every step up to 5", timeout=30)
    assert [step for _, step in read_offline_steps(layout)] == [1, 2, 3, 4, 5]
    wait_until_gone(helper, timeout=20)


def family_of(pid: int) -> list[int]:
    """List a process and all its descendants, as proctrack/linuxproc does."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family


def test_a_stop_notice_to_every_descendant_does_not_reach_the_helper_and_costs_no_step(
    tmp_path: Path,
) -> None:
    layout = new_run(tmp_path, "offline")
    handle = start_tracker(layout)
    notices = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
    for number in notices:
        os.kill(handle.pid, number)  # before its first line
    wait_for(layout.logs / "tracker.log", "is open (offline)")
    family = family_of(handle.pid)
    assert len(family) > 1, "W&B has a service of its own"
    for pid in family:
        for number in notices:
            with contextlib.suppress(ProcessLookupError):  # a child of W&B's service, which ends by SIGTERM
                os.kill(pid, number)
    write_steps(layout, 1, 3)
    handle.close(60)
    assert [step for _, step in read_offline_steps(layout)] == [1, 2, 3]


def test_a_silent_server_slows_no_step_and_delays_the_end_by_seconds(
    tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    check_unreachable(new_run(tmp_path, "online"))


def test_a_refusing_server_slows_no_step_and_delays_the_end_by_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        check_unreachable(new_run(tmp_path, "online"))


def check_unreachable(layout: RunLayout) -> None:
    handle = start_tracker(layout)
    slowest = write_steps(layout, 1, 30, seconds=0.1)
    started = time.monotonic()
    handle.close()
    assert time.monotonic() - started < CLOSE_SECONDS + 1
    assert slowest < 0.1
    assert [line["step"] for line in read_lines(layout.metrics)] == list(range(1, 31))
    assert not (layout.tracker / "sent.json").exists()
    # What did not go out goes out later, by hand: here into an offline folder, of the same run.
    offline = json.loads(layout.config.read_text())
    offline["config"]["tracker"]["mode"] = "offline"
    layout.config.write_text(json.dumps(offline))
    command = [sys.executable, "-m", "training.metrics.tracker", str(layout.root)]
    subprocess.run(command, check=True, timeout=60)
    assert [step for _, step in read_offline_steps(layout)] == list(range(1, 31))


def test_a_killed_helper_is_not_noticed_by_the_training(tmp_path: Path) -> None:
    layout = new_run(tmp_path, "offline")
    handle = start_tracker(layout)
    wait_for(layout.logs / "tracker.log", "is open (offline)")
    os.killpg(handle.pid, signal.SIGKILL)
    write_steps(layout, 1, 5)
    started = time.monotonic()
    handle.close()
    assert time.monotonic() - started < 1
    assert len(read_lines(layout.metrics)) == 5


def wait_until_gone(pid: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    # Nobody may reap an orphan here: a zombie is as good as gone.
    while (status := Path(f"/proc/{pid}/status")).exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline, f"the helper {pid} lives on after {timeout} s"
        time.sleep(0.1)
