"""What child processes need: to end when their parent does, and not to hear what is meant for it alone."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal when its parent dies, however it dies (Linux, prctl(2)).

    Args:
        parent: The parent's process id, as the parent knew it: it may be dead before the kernel is asked.
        number: The signal.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)


_NOTICES = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@contextlib.contextmanager
def shield_children() -> Iterator[None]:
    """Start children, within, that a stop notice does not reach; they call ``stay_shielded`` themselves.

    Slurm with proctrack/pgid or linuxproc sends its notice to every descendant of a task, and a terminal its
    ^C to the whole group. The notices are blocked while a child is started: a mask goes with fork and exec,
    so there is no moment in which one would end the child. Whatever comes for this process meanwhile is
    taken by another of its threads, or by this one afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOTICES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stay_shielded() -> None:
    """Keep stop notices from this process and from all that it starts: first thing in a helper.

    They are ignored and blocked: a Go program, as W&B's service is, takes SIGTERM although it was ignored
    when it began, but honours a mask (https://pkg.go.dev/os/signal); and Python's resource tracker takes the
    mask off but leaves alone what is ignored.
    """
    for number in _NOTICES:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, _NOTICES)
