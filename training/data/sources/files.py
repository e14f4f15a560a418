"""The user's own files, on a disk or behind a URL that fsspec reads, in pieces for any process to take.

Every format has a reader of its own here. `datasets` in streaming mode serves sources of kind ``hub``: what
it loads by name, or a folder. It is not used for single files, because it cannot say in which line a record
is bad nor go on behind it, guesses types block by block (JSON, CSV), and reads a file of JSON lines in one
process only.

Pieces: JSON lines without compression are cut into ranges of 64 MiB, Parquet into groups of row groups of
about as much, any other file is one piece. With ``max_documents`` the whole source is one piece, whose
identity holds those of all its files: only one reader can know when the limit is reached.
"""

import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import islice, pairwise
from pathlib import PurePosixPath
from typing import BinaryIO, Literal

from training.config.sources import FilesSource
from training.data.documents import Document, Provenance
from training.data.sources.formats.arrays import read_json
from training.data.sources.formats.csv_rows import read_csv
from training.data.sources.formats.lines import count_lines, read_json_lines
from training.data.sources.formats.tables import list_row_groups, read_arrow, read_parquet
from training.data.sources.formats.texts import read_text
from training.data.sources.formats.webdataset import read_webdataset
from training.data.sources.pieces import Piece, Row, RowRange, Skipped
from training.data.sources.records import RecordParser, read_rows
from training.data.sources.storage import (
    StoredFile,
    decompress,
    explain_faults,
    find_files,
    is_remote,
    open_file,
)
from training.errors import DataError

PIECE_BYTES = 1 << 26
"""About as much as one process reads in some seconds: a big file keeps all cores busy."""

COUNTED_BYTES = 1 << 32
"""To name the line of a fault in a big file the lines before it are counted, up to here: some seconds."""

Format = Literal["jsonl", "json", "parquet", "csv", "arrow", "text", "webdataset"]

ENDINGS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".arrow": "arrow",
    ".txt": "text",
    ".md": "text",
    ".tar": "webdataset",
}
COMPRESSED = (".gz", ".zst")
WHOLE = ("parquet", "arrow")
"""Formats that are compressed inside and cannot be read through a compression around them."""


def list_file_pieces(name: str, source: FilesSource) -> list[Piece]:
    """List the pieces of all files, sorted by file and then as they lie in it.

    Raises:
        DataError: A path leads to nothing, or its format is not one that is read.
    """
    files = _find_files(name, source)
    if source.max_documents is None:
        return [piece for file in files for piece in _cut(file, source)]
    identity = {file.name: file.identity for file in files}
    return [Piece(name, 0, None, identity, sum(file.bytes for file in files))]


def read_file_piece(
    name: str, source: FilesSource, piece: Piece, skip: int = 0
) -> Iterator[Document | Skipped]:
    """Yield what lies in the piece, without its first ``skip`` items; those are not parsed.

    Every record is one item, a document or a skipped one. With ``max_documents`` the items before are parsed
    after all, as only documents count.

    Raises:
        DataError: The file is gone, changed or damaged, or a record is bad and ``bad_records`` is refuse.
    """
    if source.max_documents is None:
        yield from _read_piece(name, source, piece, skip)
    else:
        yield from islice(_read_first(name, source, piece, source.max_documents), skip, None)


def trace_files(name: str, source: FilesSource) -> Provenance:
    """List the files with their identities: size and time of change, or size and version.

    Raises:
        DataError: A path leads to nothing.
    """
    files = _find_files(name, source)
    return Provenance(
        content={file.name: file.identity for file in files},
        licence=source.licence,
        notes=dict(source.provenance),
    )


def find_format(name: str, source: FilesSource) -> Format:
    """Tell the format by the source's setting or by the file's ending, whatever its case.

    Raises:
        DataError: The ending is none of those that are read.
    """
    # The query of a web address is no part of the file's name.
    path = name.partition("?")[0] if is_remote(name) else name
    endings = [ending.lower() for ending in PurePosixPath(path).suffixes[-2:]]
    compressed = bool(endings) and endings[-1] in COMPRESSED
    if compressed:
        endings.pop()
    found = ENDINGS.get(endings[-1]) if endings else None
    wanted: Format | None = found if source.format == "auto" else source.format
    if wanted is None or (compressed and wanted in WHOLE):
        raise DataError(
            f"{name}: wanted a file ending in {', '.join(ENDINGS)}, "
            "all but .parquet and .arrow also with .gz or .zst; or say the source's format"
        )
    # A .json file is an array or lines, which is seen only in the file.
    return "json" if wanted == "jsonl" and found == "json" else wanted


def _find_files(name: str, source: FilesSource) -> list[StoredFile]:
    files = find_files(f"data.sources.{name}.paths", source.paths)
    for file in files:
        if find_format(file.name, source) == "text" and source.documents not in ("auto", "text"):
            raise DataError(
                f"{file.name}: a plain text file holds no {source.documents}; "
                f"set data.sources.{name}.documents=text"
            )
    return files


def _cut(file: StoredFile, source: FilesSource) -> list[Piece]:
    cuttable = file.bytes > PIECE_BYTES and not file.name.lower().endswith(COMPRESSED)
    match find_format(file.name, source):
        # A web server may not be able to send a part of a file.
        case "jsonl" if cuttable and not file.name.startswith(("http://", "https://")):
            ends = [*range(PIECE_BYTES, file.bytes, PIECE_BYTES), file.bytes]
            return [
                Piece(file.name, start, stop, file.identity, stop - start)
                for start, stop in pairwise([0, *ends])
            ]
        case "parquet" if cuttable:
            with open_file(file.name, file.identity) as stream:
                groups = list_row_groups(stream)
            return _group(file, groups)
        case _:
            return [Piece(file.name, 0, None, file.identity, file.bytes)]


def _group(file: StoredFile, groups: list[int]) -> list[Piece]:
    pieces: list[Piece] = []
    start = gathered = 0
    for index, size in enumerate(groups, start=1):
        gathered += size
        if gathered >= PIECE_BYTES or index == len(groups):
            pieces.append(Piece(file.name, start, index, file.identity, gathered))
            start, gathered = index, 0
    return pieces


def _read_first(name: str, source: FilesSource, piece: Piece, most: int) -> Iterator[Document | Skipped]:
    read = 0
    for path, identity in piece.identity.items():
        for item in _read_piece(name, source, Piece(path, 0, None, identity, 0), 0):
            yield item
            read += isinstance(item, Document)
            if read == most:
                return


def _read_piece(name: str, source: FilesSource, piece: Piece, skip: int) -> Iterator[Document | Skipped]:
    parser = RecordParser(name, source)
    if parser.schema is None and (piece.start or skip):
        # The schema that whoever reads the file from its beginning sees.
        with closing(
            _read_rows(source, piece, RowRange(piece.name, 0, None, 0, source.max_line_bytes))
        ) as rows:
            parser.recognise_from(rows)
    span = RowRange(piece.name, piece.start, piece.stop, skip, source.max_line_bytes)
    empty = True
    with closing(_read_rows(source, piece, span)) as rows:
        try:
            for item in read_rows(parser, source, rows):
                empty = False
                yield item
        except DataError as error:
            raise _name_line(piece, error) from None
    # A later piece may lie wholly inside one long line, or everything in this one was read before.
    if empty and not piece.start and not skip:
        if source.bad_records == "refuse":
            raise DataError(
                f"{piece.name}: the file holds no record; fill it or take it out of data.sources.{name}.paths"
            )
        yield Skipped(piece.name, "empty file")


def _read_rows(source: FilesSource, piece: Piece, span: RowRange) -> Generator[Row, None, None]:
    readers: dict[Format, Callable[[BinaryIO, RowRange], Iterator[Row]]] = {
        "jsonl": read_json_lines,
        "json": read_json,
        "parquet": read_parquet,
        "csv": read_csv,
        "arrow": read_arrow,
        "text": read_text,
        "webdataset": read_webdataset,
    }
    read = readers[find_format(piece.name, source)]
    with open_file(piece.name, piece.identity) as stream:
        yield from read(decompress(piece.name, stream), span)


def _name_line(piece: Piece, error: DataError) -> DataError:
    """Say the line where the reader, having begun in the middle of the file, could say only the byte."""
    found = re.match(rf"{re.escape(piece.name)}@(\d+): ", str(error))
    if not found or is_remote(piece.name) or int(found[1]) > COUNTED_BYTES:
        return error
    with explain_faults(piece.name), open_file(piece.name, piece.identity) as stream:
        line = count_lines(stream, int(found[1])) + 1
    return DataError(f"{piece.name}:{line}: {str(error)[found.end() :]}")
