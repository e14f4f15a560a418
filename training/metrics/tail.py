"""The steps of a run as they appear in its files, each time it is looked."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from training.layout import redone_beside
from training.metrics.lines import NEWLINE, parse_lines

POLL_SECONDS = 1.0


class Tail:
    """A file of JSON lines that grows, and may be replaced: then it is read from its beginning again."""

    def __init__(self, path: Path) -> None:
        """Read ``path`` from its beginning, once it is there."""
        self._path = path
        self._stream: BinaryIO | None = None

    def read(self) -> list[dict[str, Any]]:
        """Give the steps that have come since the last time, or all of them when the file is another one."""
        stream = self._open()
        if stream is None:
            return []
        place = stream.tell()
        content = stream.read()
        whole = content.rfind(NEWLINE) + 1
        stream.seek(place + whole)
        return [line for line in parse_lines(content[:whole]) if isinstance(line.get("step"), int)]

    def _open(self) -> BinaryIO | None:
        # The former file stays open until then, so that no new one is taken for it.
        with contextlib.suppress(FileNotFoundError):
            if self._stream is None or not os.path.samestat(
                self._path.stat(), os.fstat(self._stream.fileno())
            ):
                self.close()
                self._stream = self._path.open("rb", buffering=0)
        return self._stream

    def close(self) -> None:
        """Let the file go."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def follow_lines(path: Path, ended: threading.Event) -> Iterator[list[dict[str, Any]]]:
    """Yield the journal's steps as whole lines appear, in the order in which they were done.

    Those that were done again are among them. Stops once ``ended`` is set and all was read.
    """
    # In this order: what was taken away from the journal before it was read is already beside it.
    files = (Tail(path), Tail(redone_beside(path)))
    while True:
        last_look = ended.is_set()
        lines = [line for file in files for line in file.read()]
        if lines:
            yield sorted(lines, key=lambda line: int(line.get("samples_seen", line["step"])))
        if last_look:
            break
        ended.wait(POLL_SECONDS)
    for file in files:
        file.close()
