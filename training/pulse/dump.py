"""All stacks of all ranks, when one hangs: asked for by a file, and by a signal on the same machine."""

import contextlib
import faulthandler
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from training.layout import RunLayout
from training.pulse.heart import Heart, read_born

DUMP_SIGNAL = signal.SIGRTMIN + 7
"""Nobody else's: the usual ones mean a stop. faulthandler answers it without Python's help."""

LEAST_SECONDS = 5.0
"""How long the ranks have for their answer."""

_SIGNAL_SECONDS = 0.5
_POLL_SECONDS = 0.05


def find_request(layout: RunLayout) -> str | None:
    """Read what the watcher asks of all ranks, a reason and a time; None when it asks nothing."""
    try:
        return _request(layout).read_text(encoding="utf-8")
    except OSError:
        return None


def ask_for_dumps(layout: RunLayout, reason: str, ranks: Collection[int], *, seconds: float) -> set[int]:
    """Ask every rank for its stacks, and wait for so long; give the ranks that answered."""
    for rank in ranks:
        _answer(layout, rank).unlink(missing_ok=True)
    partial = _request(layout).with_suffix(".partial")
    partial.write_text(f"{reason} ({time.strftime('%Y-%m-%d %H:%M:%S')})", encoding="utf-8")
    partial.replace(_request(layout))
    deadline = time.monotonic() + seconds
    while True:
        answered = {rank for rank in ranks if _answer(layout, rank).exists()}
        if len(answered) == len(ranks) or time.monotonic() > deadline:
            return answered
        time.sleep(_POLL_SECONDS)


def clear_pulse(layout: RunLayout, began: float) -> None:
    """Remove the hearts and requests of earlier starts; the lead's task, once it begins.

    Args:
        layout: The run.
        began: Files that are younger are of this start: a rank may be faster than its lead.
    """
    with contextlib.suppress(OSError):
        for path in layout.pulse.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < began or path == _request(layout):
                    path.unlink()


def dump_here(layout: RunLayout, rank: int, reason: str) -> None:
    """Write the stacks of all threads of this process to its log, and what torch recorded beside it."""
    _say(f"\n--- stacks of rank {rank}: {reason}\n")
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    _say(f"--- end of the stacks of rank {rank}\n")
    with contextlib.suppress(Exception):
        _dump_flight(layout.logs / f"flight_rank_{rank}.json")
    with contextlib.suppress(OSError):
        _answer(layout, rank).touch()


def _dump_flight(path: Path) -> None:
    """Write PyTorch's flight recorder: the last collectives, who began and who ended which."""
    torch = sys.modules.get("torch._C._distributed_c10d")
    # NCCL's own, where torch was built with it, tells more; the other one is of all back ends.
    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):
        dump: Callable[[], bytes] | None = getattr(torch, name, None)
        if dump is not None:
            content = dump()
            if json.loads(content).get("entries"):
                path.write_bytes(content)
                return


def end_of_stacks(hearts: Collection[Heart], layout: RunLayout) -> dict[int, str]:
    """Have the processes of this machine that did not answer dump by a signal; tell what the kernel says.

    Gives, by rank, a few words on each that cannot run.
    """
    found = {}
    for heart in hearts:
        if not is_here(heart):
            continue
        with contextlib.suppress(OSError):
            os.kill(heart.pid, DUMP_SIGNAL)
        state = _read_state(heart.pid)
        facts = {name: _read(heart.pid, name) for name in ("status", "wchan", "stack")}
        told = "\n".join(f"/proc/{heart.pid}/{name}:\n{text}" for name, text in facts.items() if text)
        with contextlib.suppress(OSError), layout.rank_log(heart.rank).open("a", encoding="utf-8") as log:
            log.write(f"\n--- rank {heart.rank} did not answer; the kernel says:\n{told}\n")
        found[heart.rank] = _STATES.get(state[:1], "Python is held by a call that does not return")
    time.sleep(_SIGNAL_SECONDS)
    return found


_STATES = {
    "T": "its process is stopped by a signal",
    "t": "its process is stopped by a debugger",
    "D": "its process waits for a disk or a device",
    "Z": "its process is dead",
}


def is_here(heart: Heart) -> bool:
    """Whether this rank is a living process of this machine, and not another one of the same number."""
    return heart.node == os.uname().nodename and read_born(heart.pid) == heart.born


def _read_state(pid: int) -> str:
    lines = (line.partition(":") for line in _read(pid, "status").splitlines())
    return next((value.strip() for name, _, value in lines if name == "State"), "")


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _request(layout: RunLayout) -> Path:
    return layout.pulse / "dump.request"


def _answer(layout: RunLayout, rank: int) -> Path:
    return layout.pulse / f"dumped_{rank}"


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
