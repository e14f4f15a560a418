"""Formats whose readers take a file that was cut at a good place for a whole one are asked for their end."""

from typing import BinaryIO


class Tail:
    """Reads on a reader's behalf, and remembers the last bytes that it was given."""

    closed = False

    def __init__(self, stream: BinaryIO, size: int) -> None:
        """Remember the last ``size`` bytes."""
        self._stream = stream
        self._size = size
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes; all when negative."""
        data = self._stream.read(size)
        self.last = (self.last + data[-self._size :])[-self._size :]
        return data
