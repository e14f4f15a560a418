"""A child is asked to end when we are asked, and when we are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Says that it is there, waits for SIGTERM, says that it came.
CHILD = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path('ended').touch()
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
sys.stderr.write('for the log\\n')
sys.stderr.flush()
pathlib.Path('started').touch()
time.sleep(60)
"""

PARENT = """
import os, pathlib, sys
from launcher.processes import run_with_log
sys.exit(run_with_log([sys.executable, 'child.py'], os.environ, pathlib.Path('logs/launch.log'))[0])
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "child.py").write_text(CHILD)
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    wait_for(tmp_path / "started")
    yield process
    process.kill()
    process.wait()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not appear within 30 s"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_child_as_a_request_to_end(
    parent: subprocess.Popen[bytes], number: signal.Signals, tmp_path: Path
) -> None:
    parent.send_signal(number)
    assert parent.wait(timeout=30) == 7
    assert (tmp_path / "ended").exists()
    assert (tmp_path / "logs" / "launch.log").read_text() == "for the log\n"


def test_when_the_launcher_is_killed_the_kernel_ends_the_child(
    parent: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    parent.kill()
    wait_for(tmp_path / "ended")
