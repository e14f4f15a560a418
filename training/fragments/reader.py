"""Reads elements of a checkpoint's parameters: only those asked for, straight from the mapped files."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from training.errors import CheckpointError
from training.fragments.index import ITEM_BYTES, Index, lay_out, read_index
from training.fragments.runs import Overlap, Stretch, find_overlaps


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

    def read(self, name: str, key: str, wanted: Stretch) -> Iterator[tuple[Overlap, npt.NDArray[np.uint8]]]:
        """Give ``key`` of some elements of a parameter, as they lie in the files.

        Yields:
            Which of the elements wanted these are, and their bytes, [rows, width x bytes of one]: a view of
            the mapped file.

        Raises:
            CheckpointError: A file is missing or too short.
        """
        parameter = self.index.parameters[name]
        size = ITEM_BYTES[parameter.keys[key]]
        for row in parameter.rows:
            for part in find_overlaps(wanted, row.stretch, parameter.numel):
                places, _ = lay_out(row.stop - row.start, parameter.keys, row.offset)
                mapped, first = self._map(row.file), places[key] + part.other_place * size
                if first + ((part.rows - 1) * part.other_pitch + part.width) * size > len(mapped):
                    raise CheckpointError(f"{self._folder / self.index.files[row.file]} is too short")
                yield (
                    part,
                    np.ndarray(
                        (part.rows, part.width * size),
                        np.uint8,
                        buffer=mapped,
                        offset=first,
                        strides=(part.other_pitch * size, 1),
                    ),
                )

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
