"""metrics.jsonl, samples.jsonl and events.jsonl: one JSON object per line; the truth about a run."""

import errno
import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.errors import StorageError
from training.metrics.lines import NEWLINE, decode_line, encode_line
from training.metrics.rewind import Moment, Rewound, rewind

WAITING_BYTES = 16 << 20
"""Of lines that wait in memory for a disk to take them; some twenty thousand steps."""

_LOOK_BYTES = 1 << 16


class LineFile:
    """Appends whole lines. A full disk never ends the training: lines wait until it has space again."""

    def __init__(self, path: Path) -> None:
        """Append to ``path``, which is opened with the first line."""
        self.path = path
        self.last_error: str | None = None
        self._dropped = 0
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._descriptor: int | None = None
        self.torn = 0
        """Ends of lines that were never written whole and have been cut off."""

    @property
    def lost_lines(self) -> int:
        """Lines that are not in the file: those that wait, and the oldest where too many had to."""
        return self._dropped + len(self._waiting)

    def append(self, value: Mapping[str, Any]) -> bool:
        """Write one line, behind those that wait; False when it has to wait as well."""
        self._wait_with(encode_line(value) + NEWLINE)
        return self.flush()

    def flush(self) -> bool:
        """Write the lines that wait, in their order; False when some still have to."""
        try:
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting_bytes -= len(self._waiting.popleft())
        except OSError as error:
            self.last_error = error.strerror or str(error)
            return False
        return True

    def _wait_with(self, line: bytes) -> None:
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        while self._waiting_bytes > WAITING_BYTES:
            self._waiting_bytes -= len(self._waiting.popleft())
            self._dropped += 1

    def _write(self, line: bytes) -> None:
        """Write a line with one system call.

        O_APPEND makes the call atomic on a local file system: two writers never mix their lines.

        Raises:
            OSError: The disk took nothing of it, or a part.
        """
        if os.write(self._open(), line) < len(line):
            self._let_go()  # it is cut off when the file is opened again
            raise OSError(errno.ENOSPC, "the disk took half a line")

    def sync(self) -> None:
        """Return once the lines would survive a power cut, or the disk has refused."""
        if self._descriptor is None:
            return
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self.last_error = error.strerror or str(error)

    def close(self) -> None:
        """Make the lines durable and let the file go."""
        self.flush()
        self.sync()
        self._let_go()

    def _let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._descriptor).st_size
            whole = _find_end(self._descriptor, size)
            if whole < size:
                # A kill or a full disk in the middle of a line.
                os.ftruncate(self._descriptor, whole)
                self.torn += 1
        return self._descriptor


class Journal(LineFile):
    """metrics.jsonl and samples.jsonl: lines of steps, each step once, in order."""

    def __init__(self, path: Path) -> None:
        """Append to ``path``, which is opened with the first line."""
        super().__init__(path)
        self._moment: Moment | None = None
        """To which the file still has to go back."""

        self._unwritten: list[bytes] = []

    def rewind(self, moment: Moment) -> Rewound | None:
        """Take back the lines that do not lead to ``moment``; None when a full disk makes that wait."""
        waiting, self._waiting = self._waiting, deque()
        for line in waiting:
            if (decode_line(line) or {}).get("step", 0) > moment.step:
                self._unwritten.append(line.removesuffix(NEWLINE))
                self._waiting_bytes -= len(line)
            else:
                self._waiting.append(line)
        self._moment = moment
        return self._rewind()

    def flush(self) -> bool:
        """Write the lines that wait, in their order; False when some still have to."""
        if self._moment is not None and self._rewind() is None:
            return False
        return super().flush()

    def _rewind(self) -> Rewound | None:
        if self._moment is None:
            return None
        self._let_go()
        try:
            found = rewind(self.path, self._moment, self._unwritten)
        except (StorageError, OSError) as error:
            self.last_error = str(error)
            return None
        self._moment = None
        self._unwritten.clear()
        return found


class Events(LineFile):
    """events.jsonl: started, resumed, saved, save_failed, stopped, failed, finished."""

    def record(self, kind: str, **facts: object) -> bool:
        """Write one event with its time, durably; False when it has to wait."""
        kept = self.append({"event": kind, "time": round(time.time(), 3), **facts})
        self.sync()
        return kept


def _find_end(descriptor: int, size: int) -> int:
    """Give the size of the whole lines at the beginning of a file."""
    while size > 0:
        first = max(0, size - _LOOK_BYTES)
        found = os.pread(descriptor, size - first, first).rfind(NEWLINE)
        if found >= 0:
            return first + found + 1
        size = first
    return 0
