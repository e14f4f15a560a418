"""From a source's configuration to its documents: the one place that knows all kinds.

A source is read in pieces, each on its own and in any process: a file, a range of a big file, a shard of a
hub's dataset, or a whole generated source. A piece gives the same items in the same order every time.
"""

from collections.abc import Iterator
from itertools import islice

from training.config.sources import (
    FilesSource,
    HubSource,
    Icd10cmSource,
    LicencesSource,
    PythonTopicsSource,
    SourceConfig,
)
from training.data.documents import Document, Provenance
from training.data.sources.files import list_file_pieces, read_file_piece, trace_files
from training.data.sources.hub import list_hub_pieces, read_hub_piece, trace_hub
from training.data.sources.icd10cm import measure_icd10cm, read_icd10cm, trace_icd10cm
from training.data.sources.licences import measure_licences, read_licences, trace_licences
from training.data.sources.pieces import Piece, Skipped
from training.data.sources.python_topics import (
    measure_python_topics,
    read_python_topics,
    trace_python_topics,
)

__all__ = ["Piece", "Skipped", "list_pieces", "read_documents", "read_piece", "trace_source"]


def list_pieces(name: str, source: SourceConfig) -> list[Piece]:
    """List the pieces of the source called ``name``, in the order of its documents.

    Raises:
        DataError: A file, dataset or package is missing.
    """
    match source:
        case FilesSource():
            return list_file_pieces(name, source)
        case HubSource():
            return list_hub_pieces(name, source)
        case Icd10cmSource():
            size = measure_icd10cm(name, source)
        case LicencesSource():
            size = measure_licences(name, source)
        case PythonTopicsSource():
            size = measure_python_topics(source)
    return [Piece(name, 0, None, trace_source(name, source).content, size)]


def read_piece(
    name: str, source: SourceConfig, piece: Piece, *, skip: int = 0
) -> Iterator[Document | Skipped]:
    """Yield the documents of a piece and what was skipped in it, after the first ``skip`` of these items.

    Raises:
        DataError: What is to be read is gone, changed or damaged, or a record is not what the source says.
    """
    match source:
        case FilesSource():
            yield from read_file_piece(name, source, piece, skip)
        case HubSource():
            yield from read_hub_piece(name, source, piece, skip)
        case Icd10cmSource():
            yield from islice(read_icd10cm(name, source), skip, None)
        case LicencesSource():
            yield from islice(read_licences(name, source), skip, None)
        case PythonTopicsSource():
            yield from islice(read_python_topics(name, source), skip, None)


def read_documents(name: str, source: SourceConfig) -> Iterator[Document]:
    """Yield all documents of the source called ``name``, always in the same order.

    Raises:
        DataError: As `list_pieces` and `read_piece`.
    """
    for piece in list_pieces(name, source):
        for item in read_piece(name, source, piece):
            if isinstance(item, Document):
                yield item


def trace_source(name: str, source: SourceConfig) -> Provenance:
    """Say what the source is made of, without reading its documents.

    Raises:
        DataError: A file, dataset or package is missing.
    """
    match source:
        case FilesSource():
            return trace_files(name, source)
        case HubSource():
            return trace_hub(name, source)
        case Icd10cmSource():
            return trace_icd10cm(name)
        case LicencesSource():
            return trace_licences(name)
        case PythonTopicsSource():
            return trace_python_topics()
