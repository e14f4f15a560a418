"""What a training that has ended must not leave behind: processes, shared memory, half-written files."""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from training.layout import RunLayout

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - it is looked at, nothing is put there
_PROCESSES = Path("/proc")
_HALF_WRITTEN = (".*.partial", ".staging_*", ".claim.*", "*.tmp")


def find_half_written(layout: RunLayout) -> list[str]:
    """Find files and folders in a run directory that were begun and never finished."""
    found = {path for pattern in _HALF_WRITTEN for path in layout.root.rglob(pattern)}
    return sorted(f"half-written {path.relative_to(layout.root)}" for path in found)


def find_processes(is_ours: Callable[[bytes], bool]) -> list[int]:
    """Find this user's living processes that carry such a word among their environment variables."""
    found = []
    for entry in _PROCESSES.iterdir():
        if entry.name.isdigit():
            # Another user's, or one that ends at this moment, shows nothing; a dead one has nothing to show.
            with contextlib.suppress(OSError):
                if any(map(is_ours, (entry / "environ").read_bytes().split(b"\0"))):
                    found.append(int(entry.name))
    return found


def list_shared_memory(folder: Path = SHARED_MEMORY) -> set[Path]:
    """List this user's files in the machine's shared memory."""
    found = set()
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_uid == os.getuid():
                    found.add(path)
    return found


def find_abandoned(paths: Iterable[Path]) -> list[Path]:
    """Keep those files that no living process has open or mapped: the others are somebody's at work."""
    wanted = {str(path): path for path in paths if path.exists()}
    for entry in _PROCESSES.iterdir():
        if not wanted:
            break
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                maps = (entry / "maps").read_text(encoding="utf-8", errors="replace")
                links = _read_links(entry / "fd")
                for name in [name for name in wanted if name in maps or name in links]:
                    del wanted[name]
    return sorted(wanted.values())


def _read_links(folder: Path) -> list[str]:
    found = []
    for link in folder.iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(str(link.readlink()))
    return found
