"""The parts of a preflight that need no second process."""

import errno
import itertools
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ranks.spawn import free_port
from training.errors import ClusterError
from training.preflight import nvml
from training.preflight.board import Board, find_address, open_store
from training.preflight.disk import look_at_read, look_at_written
from training.preflight.looks import Clock, Looks
from training.preflight.network import plan_tournament
from training.preflight.nodes import expand_nodes, find_node, place_ranks
from training.ranks import Ranks
from training.verdict import Finding, Report, Verdict, read_verdict, write_report


@given(st.integers(1, 40))
def test_in_a_tournament_everyone_meets_everyone_once_and_nobody_two_at_a_time(count: int) -> None:
    rounds = plan_tournament(count)
    met = [pair for one_round in rounds for pair in one_round]
    assert sorted(met) == list(itertools.combinations(range(count), 2))
    for one_round in rounds:
        seats = [seat for pair in one_round for seat in pair]
        assert len(seats) == len(set(seats))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ["node1"]),
        ("node[1-3],login", ["node1", "node2", "node3", "login"]),
        ("gpu[008-010,12]", ["gpu008", "gpu009", "gpu010", "gpu12"]),
        ("rack[1-2]n[1-2]-ib", ["rack1n1-ib", "rack1n2-ib", "rack2n1-ib", "rack2n2-ib"]),
        ("", []),
    ],
)
def test_slurms_list_of_nodes_is_written_out(text: str, names: list[str]) -> None:
    assert expand_nodes(text) == names


def test_a_rank_that_never_answers_has_a_node_where_slurm_says_so() -> None:
    step = {"SLURM_STEP_NODELIST": "node[1-3]", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"}
    assert place_ranks(step, 5) == ["node1", "node1", "node2", "node2", "node3"]
    assert place_ranks(step, 4) == [None] * 4
    assert place_ranks({}, 2) == [None, None]


def test_a_node_is_called_as_the_scheduler_calls_it() -> None:
    assert find_node({"SLURMD_NODENAME": "gpu7"}) == "gpu7"
    assert find_node({}) == os.uname().nodename


def test_ranks_meet_where_the_launcher_says_or_on_the_first_node_of_the_step() -> None:
    step = {"SLURM_STEP_NODELIST": "node[2-3]", "SLURM_JOB_ID": "70123"}
    assert find_address(step | {"MASTER_ADDR": "a", "MASTER_PORT": "7"}) == ("a", 7)
    host, port = find_address(step)
    assert host == "node2"
    assert 1024 < port < 32768  # below the ephemeral ports
    with pytest.raises(ClusterError, match="MASTER_ADDR and MASTER_PORT are not set"):
        find_address({"WORLD_SIZE": "2"})


def test_a_rank_that_comes_before_the_lead_meets_it_and_reads_what_it_leaves() -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    lead, guest = (Ranks(rank=rank, local_rank=rank, world_size=2) for rank in (0, 1))
    boards: list[Board] = []

    def come() -> None:
        boards.append(Board(open_store(where, guest, 60), "preflight/0"))

    early = threading.Thread(target=come)
    early.start()
    own = Board(open_store(where, lead, 60), "preflight/0")
    early.join(60)
    boards[0].post("here/1", {"node": "b"})
    assert own.collect(["here/0", "here/1"], 0.2) == {"here/1": {"node": "b"}}
    own.post("start", [1])
    assert boards[0].find("start", 10) == [1]
    assert boards[0].find("done", 0.1) is None


def test_a_look_that_hangs_is_left_behind_and_told_and_the_next_one_is_taken() -> None:
    looks = Looks(Clock(2.0), 1.0)
    assert looks.take("disk", lambda: time.sleep(60)) is None
    assert looks.take("memory", lambda: 3) == 3
    assert looks.undone == ["disk: no answer in 0.4 s"]


def test_a_look_that_raises_is_told_in_one_line_and_one_without_time_is_not_begun() -> None:
    looks = Looks(Clock(60), 1.0)
    assert looks.take("number", lambda: int("a\nb")) is None
    late = Looks(Clock(60, began=-1e9), 0.5)
    assert late.take("memory", lambda: pytest.fail("was begun")) is None
    assert looks.undone[0].startswith("number: invalid literal")
    assert late.undone == ["memory: no time was left"]


def test_a_refusal_of_something_insisted_upon_is_a_result_but_want_of_time_is_none() -> None:
    looks = Looks(Clock(60), 1.0)
    assert looks.insist("disk", lambda: str(1 / 0), str.upper) == "DIVISION BY ZERO"
    assert looks.undone == []
    late = Looks(Clock(60, began=-1e9), 0.5)
    assert late.insist("disk", lambda: "", str) is None


def test_a_folder_is_written_and_read_and_left_as_it_was(tmp_path: Path) -> None:
    found = look_at_written("local disk", tmp_path / "new", "node1")
    assert found.error is None
    assert found.write_mbps is not None
    assert found.read_mbps is not None
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_disk_is_told_by_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _block: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", refuse)
    found = look_at_written("run directory", tmp_path, "node1")
    assert found.error == "No space left on device"
    assert found.free_bytes is not None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_only_read_may_be_missing_or_empty(tmp_path: Path) -> None:
    assert look_at_read("corpus", tmp_path / "none").missing
    assert look_at_read("model", tmp_path).read_mbps is None
    (tmp_path / "weights").write_bytes(b"1" * 1_000_000)
    assert look_at_read("model", tmp_path).read_mbps is not None


class _RefusalError(Exception):
    """What NVML raises."""


def _refuse(*_: Any) -> Any:
    raise _RefusalError


def fake_nvml(**changes: Any) -> Any:
    """NVML as far as it is asked, with the numbers of nvml.h."""
    events = iter([SimpleNamespace(eventData=79)])

    def wait(_set: object, _milliseconds: int) -> Any:
        event = next(events, None)
        return event if event is not None else _refuse()

    values = {
        "NVMLError": _RefusalError,
        "NVML_FEATURE_ENABLED": 1,
        "NVML_MEMORY_ERROR_TYPE_UNCORRECTED": 1,
        "NVML_VOLATILE_ECC": 0,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlEventTypeXidCriticalError": 8,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=5),
        "nvmlEventSetCreate": object,
        "nvmlDeviceRegisterEvents": lambda *_: None,
        "nvmlEventSetWait": wait,
        "nvmlDeviceGetRemappedRows": lambda _: (0, 1, 1, 0),
        "nvmlDeviceGetRetiredPagesPendingStatus": _refuse,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _: 0x1 | 0x4 | 0x40 | 0x80,
        "nvmlDeviceGetTotalEccErrors": lambda *_: 3,
        "nvmlDeviceGetTemperature": lambda *_: 71,
    }
    return SimpleNamespace(**(values | changes))


def test_a_gpus_health_is_read_from_nvml_and_what_it_refuses_stays_unknown() -> None:
    health = nvml.GpuWatch(fake_nvml(), "GPU-1").read()
    assert health.uncorrected_errors == 3
    assert (health.rows_pending, health.rows_failed) == (True, False)
    assert health.xids == (79,)
    assert health.throttled == ("hardware thermal slowdown", "power brake")
    assert (health.celsius, health.used_bytes) == (71, 5)
    consumer = fake_nvml(nvmlDeviceGetRemappedRows=_refuse, nvmlDeviceGetTotalEccErrors=_refuse)
    unknown = nvml.GpuWatch(consumer, "GPU-1").read()
    assert (unknown.uncorrected_errors, unknown.rows_pending, unknown.rows_failed) == (None, None, None)


def test_the_verdict_is_read_without_the_rest_and_unknown_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "preflight.json"
    assert read_verdict(path).kind == "unknown"
    verdict = Verdict(kind="exclude", nodes=("node2",), reason="node2: slow")
    finding = Finding(
        node="node2", what="matrix product", value="1", wanted="2", severity="bad", excluding_helps=True
    )
    report = Report(
        time=1.0,
        seconds=2.0,
        nodes=("node1", "node2"),
        verdict=verdict,
        findings=(finding,),
        undone=(),
        facts={},
    )
    write_report(path, report)
    assert read_verdict(path) == verdict
    assert read_verdict(path).exit_code == 3
    assert json.loads(path.read_text())["verdict"]["nodes"] == ["node2"]
    path.write_text("{")
    assert read_verdict(path).kind == "unknown"
