"""The packing plan of a corpus: which tokens of which shard make up each row. Made once, kept, memory-mapped.

Every shard is packed on its own, so a row needs one shard and holds one source. A plan depends on the
documents' lengths alone: another ``sequence_length`` is another plan, and nothing is tokenised again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from training.data.corpus.manifest import SplitRecord
from training.data.order.packing import (
    PACKER_VERSION,
    LongDocuments,
    PackingCounts,
    add_counts,
    pack_documents,
)
from training.errors import DataError, StorageError
from training.files import file_checksum, sync_file, sync_folder

COUNTS = "counts.json"
SHARD_ROWS, ROW_BOUNDS, BEGINS, ENDS = "shard_rows.npy", "row_bounds.npy", "begins.npy", "ends.npy"
_UNREADABLE = (OSError, ValueError, TypeError, AttributeError, KeyError, EOFError)
ARRAYS = (SHARD_ROWS, ROW_BOUNDS, BEGINS, ENDS)


class Named(Protocol):
    """A document that has a name."""

    @property
    def id(self) -> str:
        """The name by which the user finds it."""
        ...


class PackedCorpus(Protocol):
    """What a plan needs to know of a corpus."""

    @property
    def record(self) -> SplitRecord:
        """The split's shards."""
        ...

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """int32 [D], tokens of each document in the order of the shards; negative: removed."""
        ...

    @property
    def plans_folder(self) -> Path:
        """Where plans are kept."""
        ...

    def document(self, index: int) -> Named:
        """Read the document of this number."""
        ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowPlan:
    """The rows of every shard of one split."""

    shard_rows: npt.NDArray[np.int64]
    """int64 [S]: rows of each shard; 0 where every document was removed or dropped."""

    counts: PackingCounts
    by_source: dict[str, PackingCounts]
    first_rows: list[int]
    """Where each shard's rows begin among all."""

    row_bounds: npt.NDArray[np.int64]
    """int64 [R + 1]: where each row begins among the pieces, and P."""

    begins: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    """int32 [P]: a piece is the tokens [begin, end) of its shard."""

    def spans(self, shard: int, row: int) -> list[tuple[int, int]]:
        """Give a row's pieces as token positions [begin, end) in the shard's values."""
        index = self.first_rows[shard] + row
        first, last = self.row_bounds[index : index + 2].tolist()
        return list(zip(self.begins[first:last].tolist(), self.ends[first:last].tolist(), strict=True))

    def pieces(self, shard: int, row: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Give a row's pieces as two views, int32 [n] each: where they begin and end in the values."""
        index = self.first_rows[shard] + row
        first, last = self.row_bounds[index : index + 2].tolist()
        return self.begins[first:last], self.ends[first:last]


def open_plan(corpus: PackedCorpus, sequence_length: int, long_documents: LongDocuments) -> RowPlan:
    """Open the corpus's plan; make it first where there is none, and anew where it is damaged.

    Every rank may ask at once: one packs, the others wait for it. Where the file system has no locks, each
    packs for itself and the first to finish counts; the plans are the same.

    Raises:
        DataError: A document is longer than a row and the policy is ``refuse``; or no row is left.
        StorageError: The plan cannot be written.
    """
    folder = corpus.plans_folder / _name_plan(corpus.record, sequence_length, long_documents)
    plan = _load_plan(folder)
    if plan is None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _locked(folder.with_name(f".{folder.name}.lock")):
                plan = _load_plan(folder)  # another rank may have been first
                if plan is None:
                    _make_plan(folder, corpus, sequence_length, long_documents)
                    plan = _load_plan(folder)
        except OSError as error:
            raise StorageError(
                f"{folder}: the packing plan cannot be written ({error.strerror or error}); free some space "
                "or set its permissions"
            ) from error
    if plan is None:
        raise StorageError(f"{folder}: the packing plan was just written and is damaged; look at the disk")
    if not plan.counts.rows:
        raise DataError(
            f"all {plan.counts.documents} documents are longer than batch.sequence_length={sequence_length} "
            "and dropped; raise it or set data.long_documents=split"
        )
    return plan


def read_counts(
    plans: Path, record: SplitRecord, sequence_length: int, long_documents: LongDocuments
) -> dict[str, PackingCounts] | None:
    """Read what packing came to, by source, where a plan is kept in ``plans``; None where there is none."""
    try:
        return _read_counts(plans / _name_plan(record, sequence_length, long_documents))[1]
    except _UNREADABLE:
        return None


def _name_plan(record: SplitRecord, sequence_length: int, long_documents: LongDocuments) -> str:
    shards = [(shard.checksum, shard.documents, shard.source) for shard in record.shards]
    key = json.dumps([PACKER_VERSION, sequence_length, long_documents, record.lengths.checksum, shards])
    return f"{sequence_length}_{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as stream:
        # Some network file systems have no locks; then the rename decides.
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _make_plan(
    folder: Path, corpus: PackedCorpus, sequence_length: int, long_documents: LongDocuments
) -> None:
    staged = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        _write_plan(staged, corpus, sequence_length, long_documents)
        for file in staged.iterdir():
            sync_file(file)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        try:
            staged.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise  # else another process was first, with the same plan
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _write_plan(
    staged: Path, corpus: PackedCorpus, sequence_length: int, long_documents: LongDocuments
) -> None:
    shards, lengths = corpus.record.shards, corpus.lengths
    shard_rows = np.zeros(len(shards), dtype=np.int64)
    counts: dict[str, PackingCounts] = {}
    first = pieces = 0
    with (
        _Column(staged / ROW_BOUNDS, "<i8") as row_bounds,
        _Column(staged / BEGINS, "<i4") as begins,
        _Column(staged / ENDS, "<i4") as ends,
    ):
        row_bounds.append(np.zeros(1))
        for number, shard in enumerate(shards):
            part = lengths[first : first + shard.documents]
            packing = pack_documents(part, sequence_length, long_documents, _namer(corpus, first))
            # A removed document still lies in its shard, where its neighbours begin after it.
            sizes = np.abs(part.astype(np.int64))
            starts = (np.cumsum(sizes) - sizes)[packing.documents] + packing.starts
            begins.append(starts)
            ends.append(starts + packing.sizes)
            row_bounds.append(packing.row_bounds[1:] + pieces)
            pieces += len(packing.sizes)
            shard_rows[number] = packing.counts.rows
            so_far = [counts[shard.source]] if shard.source in counts else []
            counts[shard.source] = add_counts([*so_far, packing.counts], sequence_length)
            first += shard.documents
    np.save(staged / SHARD_ROWS, shard_rows)
    facts = {
        "sequence_length": sequence_length,
        "by_source": {source: asdict(one) for source, one in counts.items()},
        "checksums": {name: file_checksum(staged / name) for name in ARRAYS},
    }
    (staged / COUNTS).write_text(json.dumps(facts, indent=2), encoding="utf-8")


def _namer(corpus: PackedCorpus, first: int) -> Callable[[int], str]:
    return lambda index: corpus.document(first + index).id


def _load_plan(folder: Path) -> RowPlan | None:
    """Read a plan; None where there is none, or a damaged one."""
    try:
        facts, by_source = _read_counts(folder)
        sequence_length = int(facts["sequence_length"])
        shard_rows = np.load(folder / SHARD_ROWS, allow_pickle=False)
        # As plain arrays: slices of np.memmap are some ten times slower.
        row_bounds, begins, ends = (
            np.asarray(np.load(folder / name, mmap_mode="r", allow_pickle=False))
            for name in (ROW_BOUNDS, BEGINS, ENDS)
        )
        # A plan with a flipped bit would cut documents at wrong places, and nobody would see it.
        whole = facts["checksums"] == {name: file_checksum(folder / name) for name in ARRAYS}
    except _UNREADABLE:
        whole = False
    if not whole:
        return None
    return RowPlan(
        shard_rows=shard_rows,
        counts=add_counts(by_source.values(), sequence_length),
        by_source=by_source,
        first_rows=(np.cumsum(shard_rows) - shard_rows).tolist(),
        row_bounds=row_bounds,
        begins=begins,
        ends=ends,
    )


def _read_counts(folder: Path) -> tuple[dict[str, Any], dict[str, PackingCounts]]:
    facts = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
    return facts, {source: PackingCounts(**counts) for source, counts in facts["by_source"].items()}


class _Column:
    """An .npy file of one dimension, written piece by piece: memory stays flat however many there are."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._dtype = dtype
        self._count = 0
        self._stream: BinaryIO = path.open("w+b")
        self._write_header()
        self._header_bytes = self._stream.tell()

    def append(self, values: npt.NDArray[np.generic]) -> None:
        self._stream.write(values.astype(self._dtype).tobytes())
        self._count += len(values)

    def _write_header(self) -> None:
        # numpy leaves room in the header for the first dimension to grow.
        header = {"descr": self._dtype, "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._stream, header)

    def __enter__(self) -> "_Column":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.seek(0)
        self._write_header()
        grown = self._stream.tell() != self._header_bytes
        self._stream.close()
        if grown:
            raise RuntimeError("numpy wrote a longer header than before; the plan's files would be damaged")
