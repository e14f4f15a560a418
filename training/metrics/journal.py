"""metrics.jsonl and events.jsonl: one JSON object per line, appended; the truth about a run."""

import errno
import json
import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NEWLINE = b"\n"


WAITING_BYTES = 16 << 20
"""Of lines that wait in memory for a disk to take them; some twenty thousand steps."""


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
        self._torn = False

    @property
    def lost_lines(self) -> int:
        """Lines that are not in the file: those that wait, and the oldest where too many had to."""
        return self._dropped + len(self._waiting)

    def append(self, value: Mapping[str, Any]) -> bool:
        """Write one line, behind those that wait; False when it has to wait as well."""
        self._wait_with(_encode(value) + NEWLINE)
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
        descriptor = self._open()
        # What came before may lack its end: a kill or a full disk in the middle of a line. The new line
        # starts afresh, and readers skip the torn one.
        line = NEWLINE * self._torn + line
        written = os.write(descriptor, line)
        if written:
            self._torn = written < len(line)
        if written < len(line):
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
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._descriptor).st_size
            self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != NEWLINE
        return self._descriptor


class Journal(LineFile):
    """metrics.jsonl: one line per step."""


class Events(LineFile):
    """events.jsonl: started, resumed, saved, save_failed, preempted, failed, finished."""

    def record(self, kind: str, **facts: object) -> bool:
        """Write one event with its time, durably; False when it has to wait."""
        kept = self.append({"event": kind, "time": round(time.time(), 3), **facts})
        self.sync()
        return kept


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read every whole line; none when the file is missing. Torn lines are skipped."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return parse_lines(content)


def parse_lines(content: bytes) -> list[dict[str, Any]]:
    """Parse complete lines; what is torn is no record and is skipped."""
    return [value for line in content.split(NEWLINE) if (value := _decode(line)) is not None]


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Read the last line of each step, in order of step.

    A run that was killed and resumed took some steps twice; the later incarnation's is the one that
    the weights remember.
    """
    latest: dict[int, dict[str, Any]] = {}
    for line in read_lines(path):
        step = line.get("step")
        if isinstance(step, int):
            known = latest.get(step)
            if known is None or line.get("incarnation", 0) >= known.get("incarnation", 0):
                latest[step] = line
    return [latest[step] for step in sorted(latest)]


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=str).encode()


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
