"""One shard of a corpus, mapped into memory: what is not read costs nothing."""

import contextlib
import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.errors import DataError

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StoredDocument:
    """One document as it lies in its shard; the arrays are its own."""

    id: str
    source: str
    family: str
    task: str
    input_ids: npt.NDArray[np.int32]
    """int32 [L]."""

    is_target: npt.NDArray[np.bool_]
    """bool [L]."""


class Shard:
    """An Arrow IPC stream of one record batch, one row per document.

    It is mapped for as long as this object or a view into it lives. The mapping keeps the file's descriptor
    as well, and with it the lock that keeps a cached file from being evicted.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        """Map the file and close ``descriptor``; ``name`` is what messages call it.

        Raises:
            DataError: It is no shard.
        """
        try:
            self._mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        try:
            with pa.ipc.open_stream(pa.py_buffer(self._mapped)) as stream:
                batch = stream.read_next_batch()
            ids, targets = batch.column("input_ids"), batch.column("is_target")
            self.ids: Tokens = _view(ids.values)
            """uint16 or uint32 [T]: the documents' tokens, one after the other."""

            self.targets: npt.NDArray[np.uint8] = _view(targets.values)
            """uint8 [T]: 1 where the token is a target."""
        except (pa.ArrowException, KeyError, StopIteration, AttributeError) as error:
            raise DataError(
                f"{name}: not a shard of this version ({error}); run `metier prepare` again"
            ) from None
        self.offsets: npt.NDArray[np.int32] = _view(ids.offsets)
        """int32 [D + 1]: where each document begins in the tokens, and T."""

        self.bytes = len(self._mapped)
        self.touched = False
        """Whether pages of it may be in this process's memory."""

        self._batch: Any = batch

    def read(self, places: npt.NDArray[np.int64]) -> tuple[Tokens, npt.NDArray[np.uint8]]:
        """Copy the tokens at ``places``, int64 of any shape: ids, and which are targets, of that shape."""
        self.touched = True
        return self.ids.take(places), self.targets.take(places)

    def text(self, column: str, row: int) -> str:
        """Read one of a document's names."""
        self.touched = True
        return str(self._batch.column(column)[row].as_py())

    def document(self, row: int) -> StoredDocument:
        """Copy one document."""
        begin, end = int(self.offsets[row]), int(self.offsets[row + 1])
        source, family, task = (self.text(name, row) for name in ("source", "family", "task"))
        return StoredDocument(
            id=self.text("id", row),
            source=source,
            family=family,
            task=task,
            input_ids=self.ids[begin:end].astype(np.int32),
            is_target=self.targets[begin:end] != 0,
        )

    def give_back(self) -> None:
        """Let the pages go from this process's memory; they stay in the kernel's cache."""
        self._mapped.madvise(mmap.MADV_DONTNEED)
        self.touched = False


def _view(column: Any) -> npt.NDArray[Any]:
    # pyarrow's own to_numpy() imports pandas: a second, and 25 MB, for what is a view of a buffer.
    kind = "i" if pa.types.is_signed_integer(column.type) else "u"
    values = np.frombuffer(column.buffers()[1], dtype=f"{kind}{column.type.bit_width // 8}")
    return values[column.offset : column.offset + len(column)]


def give_back(array: npt.NDArray[Any]) -> None:
    """Let the pages of an array that is mapped from a file go from this process's memory, as a shard's."""
    mapped = _find_mapping(array)
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


def keep_small_pages(array: npt.NDArray[Any]) -> None:
    """Have a mapped array's pages come one by one, not 2 MB at a time, where it is read here and there."""
    mapped = _find_mapping(array)
    if mapped is not None:
        # Kernels without transparent huge pages know no such advice, and need none.
        with contextlib.suppress(OSError):
            mapped.madvise(mmap.MADV_NOHUGEPAGE)


def _find_mapping(array: Any) -> mmap.mmap | None:
    while isinstance(array, np.ndarray):
        array = array.base
    return array if isinstance(array, mmap.mmap) else None
