"""What each node is at: one file per node, and means that go with the steps."""

import json
import time
from pathlib import Path

import pytest

from training.layout import RunLayout
from training.metrics.nodes import NodeReadings, find_means
from training.metrics.system import Counters, find_rates, read_devices, read_host, start_system_watch
from training.ranks import Ranks


def rank(number: int, local: int) -> Ranks:
    return Ranks(rank=number, local_rank=local, world_size=4)


def test_the_first_rank_of_each_node_reads_and_no_other(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    watches = [
        start_system_watch(layout, rank(0, 0), 0.01),
        start_system_watch(layout, rank(1, 1), 0.01),
        start_system_watch(layout, rank(2, 0), None),
    ]
    deadline = time.monotonic() + 20
    while not (found := layout.system_files()) or not found[0].read_bytes().count(b"\n") > 1:
        assert time.monotonic() < deadline
    for watch in watches:
        watch.close()
    (path,) = layout.system_files()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["node"] for line in lines} == {path.stem.removeprefix("system_")}
    assert all(0 <= line["memory_percent"] <= 100 for line in lines)
    assert {"cpu_percent", "network_sent_bytes_per_second"} <= lines[-1].keys()


def test_a_disk_that_refuses_is_no_error(tmp_path: Path) -> None:
    watch = start_system_watch(RunLayout(tmp_path / "gone"), rank(0, 0), 0.001)
    watch.close()
    assert not (tmp_path / "gone").exists()


def test_rates_are_bytes_over_seconds_and_a_counter_that_began_anew_is_none_below_zero() -> None:
    before = Counters(10.0, {"sent": 100, "read": 500})
    assert find_rates(before, Counters(12.0, {"sent": 300, "read": 0, "new": 7})) == {
        "sent_bytes_per_second": 100.0,
        "read_bytes_per_second": 0.0,
    }
    assert find_rates(before, before) == {}


def test_a_host_is_read_whatever_it_has() -> None:
    assert read_host()["memory_bytes"] > 0
    assert read_devices((None, ())) == {}


class OneDevice:
    """NVML's functions as far as they are used; power cannot be read, as on some cards."""

    def nvmlDeviceGetUtilizationRates(self, _: object) -> object:  # noqa: N802
        return type("Rates", (), {"gpu": 97})()

    def nvmlDeviceGetMemoryInfo(self, _: object) -> object:  # noqa: N802
        return type("Memory", (), {"used": 5})()

    def nvmlDeviceGetTemperature(self, _: object, __: int) -> int:  # noqa: N802
        return 61


def test_of_a_device_what_can_be_read_is_read() -> None:
    assert read_devices((OneDevice(), [object()])) == {
        "gpu_0_percent": 97.0,
        "gpu_0_memory_bytes": 5.0,
        "gpu_0_celsius": 61.0,
    }


def test_readings_go_once_with_the_step_during_which_they_were_taken(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    readings = NodeReadings(layout)
    path = layout.system("a")
    path.write_text('{"time": 1, "node": "a", "x": 1}\n{"time": 2, "node": "a", "x": 3}\n{"time": 9, "nod')
    readings.read()
    assert readings.take(0.5) == {}
    assert readings.take(2.0) == {"system/a/x": 2.0}
    with path.open("a") as stream:
        stream.write('e": "a", "x": 7}\ntorn\n[1]\n{"time": "x"}\n')
    readings.read()
    assert readings.take(9.0) == {"system/a/x": 7.0}
    assert readings.take(99.0) == {}


@pytest.mark.parametrize("line", [{}, {"time": 1}, {"time": 1, "node": "a", "text": "x", "none": None}])
def test_what_is_no_number_has_no_mean(line: dict[str, object]) -> None:
    assert find_means([line]) == {}
