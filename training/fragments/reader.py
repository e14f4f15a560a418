"""Reads elements of a checkpoint's parameters: only those asked for, straight from the mapped files."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from training.errors import CheckpointError
from training.fragments.index import ITEM_BYTES, Index, find_rows, lay_out, read_index


class FragmentReader:
    """The parameters of one checkpoint. Files are mapped when first needed; nothing is copied here."""

    def __init__(self, folder: Path) -> None:
        """Open the checkpoint in ``folder``, whose files have been verified.

        Raises:
            CheckpointError: Its index is missing or damaged.
        """
        self._folder = folder
        self._maps: dict[int, mmap.mmap] = {}
        self.index: Index = read_index(folder)

    def __enter__(self) -> Self:
        """Use the reader in a with statement, which lets the files go."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the files go; a map that is still looked at goes with its last reader."""
        self._maps.clear()

    def read(self, name: str, key: str, start: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        """Give ``key`` of the elements [start, stop) of a parameter, a stretch at a time.

        Yields:
            The number of the stretch's first element, and its bytes: a view of the mapped file.

        Raises:
            CheckpointError: A file is missing or too short.
        """
        parameter = self.index.parameters[name]
        size = ITEM_BYTES[parameter.keys[key]]
        for begin, end, row in find_rows(parameter, start, stop):
            places, _ = lay_out(row.stop - row.start, parameter.keys, row.offset)
            first = places[key] + (begin - row.start) * size
            data = memoryview(self._map(row.file))[first : first + (end - begin) * size]
            if len(data) != (end - begin) * size:
                raise CheckpointError(f"{self._folder / self.index.files[row.file]} is too short")
            yield begin, data

    def _map(self, number: int) -> mmap.mmap:
        if number not in self._maps:
            path = self._folder / self.index.files[number]
            try:
                with path.open("rb") as stream:
                    # A private map: torch wants its buffers writable, though nobody writes.
                    self._maps[number] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path} cannot be read ({error})") from None
        return self._maps[number]
