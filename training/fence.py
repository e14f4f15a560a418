"""Who may write: each start of a run claims the next incarnation, and an older one may write no more.

A job can be started again while its old processes still live on a node that the scheduler lost sight of
(split brain). The claim is a hard link, which is atomic on local disks and on NFS.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from training.errors import CheckpointError
from training.layout import ASKED

_DIGITS = 6


def claim_incarnation(folder: Path) -> int:
    """Claim the next number in ``folder``; 1 for a run's first start.

    Its note tells when the start was asked for, seconds since 1970: imports count as time of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / f".claim.{os.uname().nodename}.{os.getpid()}"
    asked = float(os.environ.get(ASKED, time.time()))
    note.write_text(json.dumps({"host": os.uname().nodename, "pid": os.getpid(), "time": asked}) + "\n")
    try:
        while True:
            number = newest_incarnation(folder) + 1
            try:
                os.link(note, _claim(folder, number))
            except FileExistsError:
                continue
            return number
    finally:
        note.unlink(missing_ok=True)
        _sweep(folder)


def _claim(folder: Path, number: int) -> Path:
    return folder / f"{number:0{_DIGITS}d}.json"


def _sweep(folder: Path) -> None:
    """Remove the notes of this machine's processes that were killed while they claimed."""
    for note in folder.glob(f".claim.{os.uname().nodename}.*"):
        try:
            os.kill(int(note.suffix[1:]), 0)
        except ProcessLookupError:
            note.unlink(missing_ok=True)
        except (OSError, ValueError):
            continue


def newest_incarnation(folder: Path) -> int:
    """Give the highest number claimed so far; 0 when there is none."""
    return max((int(path.stem) for path in folder.glob("[0-9]" * _DIGITS + ".json")), default=0)


class FencedError(CheckpointError):
    """A newer start of the same run has taken over, or the run was removed; this one must not write."""


def find_incarnation(folder: Path, asked: float) -> int | None:
    """Find the start that the launcher asked for at this time; None when it never came to claim.

    Of several, where torchrun has started the ranks again by itself, the newest.
    """
    for path in sorted(folder.glob("[0-9]" * _DIGITS + ".json"), reverse=True):
        try:
            if float(json.loads(path.read_text(encoding="utf-8"))["time"]) == asked:
                return int(path.stem)
        except (OSError, ValueError, KeyError):
            continue
    return None


def is_fenced(folder: Path, incarnation: int) -> bool:
    """Whether a newer start has claimed the run: a look at one name, cheap enough before each line."""
    return _claim(folder, incarnation + 1).exists()


@contextlib.contextmanager
def within_fence(folder: Path, incarnation: int) -> Iterator[None]:
    """Turn whatever goes wrong in a start that was overtaken into that: nothing else of it is news.

    Raises:
        FencedError: A newer start has claimed the run.
    """
    try:
        yield
    except Exception as error:
        if is_fenced(folder, incarnation) and not isinstance(error, FencedError):
            check_fence(folder, incarnation)
        raise


def check_fence(folder: Path, incarnation: int) -> None:
    """Make sure that the run is still this start's.

    Raises:
        FencedError: A newer start has claimed it, or somebody has removed the claims.
    """
    newest = newest_incarnation(folder)
    if newest < incarnation:
        raise FencedError(
            f"somebody has removed {folder}, or the whole run, while it trained; start {incarnation} ends "
            "without saving"
        )
    if newest != incarnation:
        raise FencedError(
            f"start {newest} of this run has taken over; start {incarnation} ends without saving"
        )
