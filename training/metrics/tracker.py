"""Weights & Biases, in a helper process that follows metrics.jsonl.

The journal is the truth and the helper its reader: the training never waits for a server. The helper's
standard input is a pipe that only the trainer holds; when it closes, or the trainer dies, the helper
sends what is left within DRAIN_SECONDS and leaves. What it could not send is sent by the next start,
or by hand: ``metier sync RUN``.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from training.layout import RunLayout
from training.processes import shield_children, stay_shielded

DRAIN_SECONDS = 7.0
"""How long the helper may go on after the training has ended."""

CLOSE_SECONDS = 9.0
"""How long the trainer waits for the helper at its end, whatever the server does."""

FOLLOW = "--follow"
ONLINE = "--online"
"""Send to the server, whatever mode the run was trained with."""


class TrackerHandle:
    """The trainer's end of the helper."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Own ``process``, the leader of its own group, whose standard input is a pipe."""
        self._process = process

    @property
    def pid(self) -> int:
        """Process and group id of the helper."""
        return self._process.pid

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Let the helper finish; end it and all that it started after ``timeout`` seconds."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            kill_group(self._process.pid)
            self._process.wait()


def start_tracker(layout: RunLayout) -> TrackerHandle:
    """Start the helper for one run directory; its words go to logs/tracker.log.

    Raises:
        OSError: No process can be started or no log written; the caller goes on without W&B.
    """
    layout.logs.mkdir(parents=True, exist_ok=True)
    with (layout.logs / "tracker.log").open("ab") as log, shield_children():
        process = subprocess.Popen(
            [sys.executable, "-m", "training.metrics.tracker", str(layout.root), FOLLOW],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return TrackerHandle(process)


def kill_group(group: int) -> None:
    """End every process of a group at once; nothing happens when it is gone."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def main(arguments: list[str]) -> int:
    """Follow a living training (``RUN_DIR --follow``), or send what is left (``RUN_DIR [--online]``)."""
    # Before W&B is imported, which the helper alone does.
    stay_shielded()
    from training.metrics.wandb_follower import follow_run  # noqa: PLC0415

    root = Path(arguments[0])
    attempt = next((int(word) for word in arguments[1:] if word.isdecimal()), 0)
    if ONLINE in arguments:
        return follow_run(RunLayout(root), follow=False, attempt=0, mode="online")
    return follow_run(RunLayout(root), follow=FOLLOW in arguments, attempt=attempt)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
