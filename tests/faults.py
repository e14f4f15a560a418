"""Makes the n-th thing that a process does to the files of a folder fail.

Counted are opens, writes, syncs, renames, removals and new folders. Python announces most of them to audit
hooks (PEP 578), which may raise; writes and syncs are counted where we call them.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMED = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link"}
_watcher: Callable[[], None] | None = None
_folder = ""
_is_hooked = False


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _watcher is not None and event in _NAMED and str(arguments[0]).startswith(_folder):
        _watcher()


@contextmanager
def disk_events(folder: Path, act: Callable[[int], None]) -> Iterator[None]:
    """Call ``act`` with the running number, from 1, of each event; what it raises fails the event."""
    global _watcher, _folder, _is_hooked  # noqa: PLW0603 - a hook cannot be taken out again
    if not _is_hooked:
        sys.addaudithook(_hear)
        _is_hooked = True
    moments = 0

    def count() -> None:
        nonlocal moments
        moments += 1
        act(moments)

    def write(descriptor: int, data: Any) -> int:
        count()
        return whole_write(descriptor, data)

    def sync(descriptor: int) -> None:
        count()
        whole_sync(descriptor)

    whole_write, whole_sync = os.write, os.fsync
    os.write, os.fsync = write, sync
    _watcher, _folder = count, str(folder)
    try:
        yield
    finally:
        _watcher = None
        os.write, os.fsync = whole_write, whole_sync


def fail_at(number: int, code: int, *, for_good: bool = False) -> Callable[[int], None]:
    """Fail the event of this number with ``code``, and with ``for_good`` all that follow."""

    def act(moment: int) -> None:
        if moment == number or (for_good and moment > number):
            raise OSError(code, os.strerror(code))

    return act
