"""Starts child processes that end when the launcher ends, and passes its signals on."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO

from training.layout import start_line
from training.processes import end_with_parent

_LOOK_SECONDS = 0.5
_QUIT_SECONDS = 10.0


def run_here(
    command: list[str], environment: Mapping[str, str], *, is_late: Callable[[], bool] | None = None
) -> int:
    """Run a child on the same terminal and give its exit code.

    Args:
        command: The child's words.
        environment: Its variables.
        is_late: Asked now and then whether the child is to be ended.
    """
    child = subprocess.Popen(command, env=environment, preexec_fn=_asked_to_end_with_us())  # noqa: PLW1509
    while True:
        try:
            return _wait(child, is_late)
        except KeyboardInterrupt:
            # The terminal has told the child as well: let it end in its own way.
            continue


def _wait(child: subprocess.Popen[bytes], is_late: Callable[[], bool] | None) -> int:
    if is_late is None:
        return child.wait()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(_LOOK_SECONDS)
        if is_late():
            break
    # srun ends all tasks at once, those that are stopped as well; of torchrun the kernel does (prctl).
    child.send_signal(signal.SIGQUIT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        return child.wait(_QUIT_SECONDS)
    child.kill()
    return child.wait()


def run_with_log(
    command: list[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    is_late: Callable[[], bool] | None = None,
) -> tuple[int, bool]:
    """Run a child whose stderr is appended to ``log``; ask it to stop when we are asked.

    The child gets a session of its own: Ctrl-C reaches it once, through us, as the SIGTERM that
    asks torchrun and its workers for an orderly end.

    Returns:
        The child's exit code, and whether it was asked to stop.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stderr:
        if stderr.tell():  # an earlier start has complained here
            stderr.write(start_line().encode())
            stderr.flush()
        child = _start(command, environment, stderr)

        asked = False

        def forward(_number: int, _frame: FrameType | None) -> None:
            nonlocal asked
            asked = True
            child.send_signal(signal.SIGTERM)

        before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return _wait(child, is_late), asked
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _start(command: list[str], environment: Mapping[str, str], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=_asked_to_end_with_us(),  # noqa: PLW1509 - the launcher has one thread
    )


def _asked_to_end_with_us() -> Callable[[], None]:
    """Give what a new child calls so that the kernel asks it to end, politely, when the launcher dies."""
    return partial(end_with_parent, os.getpid(), signal.SIGTERM)
