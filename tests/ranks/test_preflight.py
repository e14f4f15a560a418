"""Processes on this machine as the nodes of a preflight: who is slow, full, silent is named."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.compose import compose_values
from launcher.tree import ConfigTree
from tests.ranks.spawn import free_port
from training.config.freeze import check_config, write_frozen
from training.layout import RunLayout
from training.preflight.board import Board, find_prefix, open_store
from training.ranks import Ranks
from training.verdict import EXIT_EXCLUDE, UNNAMED, Report, find_report

_SECONDS = 100
_LOCAL = "PREFLIGHT_TEST_LOCAL"
_REPOSITORY = Path(__file__).resolve().parents[2]


class Nodes:
    """Ranks, each taken for a node of its own."""

    def __init__(self, folder: Path, count: int, *settings: str) -> None:
        self.layout, self.count, self.port = RunLayout(folder), count, free_port()
        overrides = [f"name={UNNAMED}", f"cluster.nodes={count}", f"cluster.local_path=${_LOCAL}"]
        overrides += ["cluster.preflight.min_free_bytes=1000000", "cluster.preflight.min_disk_mbps=1"]
        values = compose_values([*overrides, *settings], ConfigTree.open(None))
        write_frozen(
            self.layout.config,
            check_config({key: value for key, value in values.items() if key not in {"dry_run", "after"}}),
            {},
        )
        (folder / "local").mkdir()
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, rank: int, *wrapper: str, **variables: str) -> subprocess.Popen[str]:
        """Start the real entry as one rank."""
        own = {
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(self.count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            "METIER_NODE_NAME": f"node{rank + 1}",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(_REPOSITORY),
            _LOCAL: str(self.layout.root / "local"),
        }
        process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "training.preflight", str(self.layout.root)],
            env={**os.environ, **own, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def board(self) -> Board:
        """Reach the lead's board, as a rank does."""
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        guest = Ranks(rank=self.count, local_rank=0, world_size=self.count)
        return Board(open_store(address, guest, _SECONDS), find_prefix(address))

    def report(self) -> Report:
        """Read what the lead has written."""
        report = find_report(self.layout.preflight)
        assert report is not None
        return report

    def end(self) -> None:
        """Leave nothing behind."""
        for process in self._processes:
            process.kill()
            process.communicate()


@contextmanager
def held_back(process: subprocess.Popen[str]) -> Iterator[None]:
    """Stop a process nine tenths of the time."""
    over = threading.Event()

    def pause() -> None:
        while not over.wait(0.01):
            process.send_signal(signal.SIGSTOP)
            over.wait(0.09)
            process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=pause)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def tiny_disk(folder: Path) -> list[str]:
    """Give the words before a command that see a full disk of 64 KiB in this folder."""
    words = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--mount", "sh", "-c"]
    script = f"mount -t tmpfs -o size=64k none '{folder}' && exec \"$@\""
    words = [*words, script, "rank"]
    if shutil.which("unshare") is None or _fails([*words, "true"]):
        pytest.skip("neither root nor user namespaces: no disk of its own for one process")
    return words


def _fails(words: list[str]) -> bool:
    return subprocess.run(words, capture_output=True, check=False).returncode != 0


def finish(process: subprocess.Popen[str]) -> tuple[str, str, int]:
    stdout, stderr = process.communicate(timeout=_SECONDS)
    return stdout, stderr, process.returncode


def test_a_node_held_back_and_one_whose_disk_is_full_are_named_and_excluded(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 3, "cluster.preflight.mode=exclude", "cluster.preflight.slow_factor=2")
    full = tmp_path / "full"
    full.mkdir()
    wrapper = tiny_disk(full)
    try:
        lead, slow = nodes.start(0), nodes.start(1)
        assert nodes.board().find("here/1", _SECONDS) == "node2"
        with held_back(slow):
            last = nodes.start(2, *wrapper, **{_LOCAL: str(full)})  # only now they begin
            table, told, code = finish(lead)
        assert code == EXIT_EXCLUDE, told
        assert finish(slow)[2] == finish(last)[2] == 0
    finally:
        nodes.end()
    report = nodes.report()
    assert report.verdict.nodes == ("node2", "node3"), told
    assert {finding.node for finding in report.findings} == {"node2", "node3"}
    assert "node2: matrix product " in told
    assert "of its cores' time" in told
    assert f"free in {full}, at least 1.0 MB wanted (No space left on device); excluded" in told
    assert [line.split()[-1] for line in table.splitlines()[1:4]] == ["ok", "excluded", "excluded"]
    assert list((tmp_path / "local").iterdir()) == []


def test_nodes_that_never_come_or_fall_silent_are_named_within_the_budget(tmp_path: Path) -> None:
    budget = 20
    nodes = Nodes(
        tmp_path, 4, f"cluster.preflight.budget_seconds={budget}", "cluster.preflight.slow_factor=1000"
    )
    step = {"SLURM_STEP_NODELIST": "node[1-4]", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}
    try:
        lead, second = nodes.start(0, **step), nodes.start(1, **step)
        nodes.board().post("here/2", "node3")  # and then nothing any more; rank 3 never comes
        began = time.monotonic()
        _, told, code = finish(lead)
        assert time.monotonic() - began < 3 * budget
        assert code == EXIT_EXCLUDE, told
        assert finish(second)[2] == 0
    finally:
        nodes.end()
    report = nodes.report()
    assert report.verdict.nodes == ("node3", "node4"), told
    assert "node3: answer none, rank 2 came, and did not answer any more; excluded" in told
    assert "node4: answer none, rank 3 did not come within" in told
    assert report.seconds <= budget
    assert measured(report.facts) == {"node1", "node2"}


def measured(facts: Mapping[str, object]) -> set[object]:
    """The nodes between which an all-reduce was measured although others were missing."""
    network = facts["network"]
    assert isinstance(network, list)
    return {each["node"] for each in network if each["bus_gbps"] is not None}
