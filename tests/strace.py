"""Kills a process, or fails it, at the n-th system call of a kind: strace(1) does it, from outside.

Processes are forked from this one, so that not each of them imports everything again. No thread may run here.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CALLS = {
    "open": "?open,?openat",
    "write": "?write,?pwrite64,?writev",
    "fsync": "?fsync,?fdatasync",
    "rename": "?rename,?renameat,?renameat2",
    "mkdir": "?mkdir,?mkdirat",
    "unlink": "?unlink,?unlinkat,?rmdir",
    "link": "?link,?linkat",
}
"""What changes a disk, and the names that it has on this or that processor."""

_ALLOW_ANY_TRACER = (0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER, prctl(2)
_PATIENCE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Held:
    """A forked process that waits to be let go."""

    pid: int
    gate: int
    ready: int


def hold(prepare: Callable[[], Callable[[], int]]) -> Held:
    """Fork a process that prepares itself, waits, then does what was prepared and ends with its answer."""
    waits, gate = os.pipe()
    ready, is_ready = os.pipe()
    pid = os.fork()
    if pid:
        os.close(waits)
        os.close(is_ready)
        return Held(pid, gate, ready)
    code = 99
    try:
        os.close(gate)
        os.close(ready)
        ctypes.CDLL(None).prctl(*_ALLOW_ANY_TRACER)
        work = prepare()
        os.write(is_ready, b"1")
        os.read(waits, 1)
        code = work()
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def strike(held: Held, rule: str, log: Path) -> subprocess.Popen[str]:
    """Attach strace to a process that waits; returns once it sees all that the process does.

    Args:
        held: From ``hold``.
        rule: Of ``strace --inject``, for instance ``?open,?openat:signal=SIGKILL:when=3``.
        log: Where strace writes what it saw.
    """
    os.read(held.ready, 1)
    calls = rule.split(":", 1)[0]
    words = ["-f", "-e", f"trace={calls}", "-e", f"inject={rule}", "-o", str(log), "-p", str(held.pid)]
    tracer = subprocess.Popen(
        [shutil.which("strace") or "strace", *words],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    assert "attached" in line, line
    return tracer


def let_go(held: Held) -> None:
    """Let a process do its work."""
    os.write(held.gate, b"1")
    os.close(held.gate)


def end_of(held: Held) -> int:
    """Wait for a process; its answer, or minus the signal that ended it.

    Raises:
        AssertionError: It did not end in a minute.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        pid, status = os.waitpid(held.pid, os.WNOHANG)
        if pid:
            os.close(held.ready)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.kill(held.pid, 9)
    os.waitpid(held.pid, 0)
    raise AssertionError(f"process {held.pid} did not end in {_PATIENCE_SECONDS} s")


def why_not() -> str | None:
    """Say why strace cannot be used here; None: it can."""
    held = hold(lambda: lambda: 7)
    try:
        tracer = strike(held, f"{CALLS['mkdir']}:error=EIO", Path(os.devnull))
    except (OSError, AssertionError) as error:
        return f"strace cannot attach to a process here: {error}".strip()
    finally:
        let_go(held)
        end_of(held)
    tracer.communicate(timeout=_PATIENCE_SECONDS)
    return None
