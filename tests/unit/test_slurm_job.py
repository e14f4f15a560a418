"""The small things of a job's script: nodes, ports, dependencies, the journal."""

import json
from pathlib import Path

import pytest

from launcher.slurm.job import port_of
from launcher.slurm.journal import append_line, newest_job, read_journal
from launcher.slurm.living import choose_nodes
from launcher.slurm.successor import find_waiting, replace_dependency

NAMES = ["n1", "n2", "n3"]


@pytest.mark.parametrize(
    ("states", "without", "wanted", "chosen"),
    [
        ({}, set(), 2, ["n1", "n2"]),
        ({"n1": "alloc", "n2": "alloc*", "n3": "mix"}, set(), 2, ["n1", "n3"]),
        ({"n1": "down", "n2": "alloc", "n3": "drng"}, set(), 2, ["n2", "n3"]),
        ({"n1": "down*"}, {"n3"}, 2, None),
        ({}, {"n1"}, 2, ["n2", "n3"]),
        ({"n2": "fail"}, set(), 3, None),
    ],
)
def test_a_start_takes_the_first_nodes_that_live(
    states: dict[str, str], without: set[str], wanted: int, chosen: list[str] | None
) -> None:
    assert choose_nodes(NAMES, states, without, wanted) == chosen


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
