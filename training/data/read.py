"""From a source's configuration to its documents: the one place that knows all kinds."""

from collections.abc import Iterator

from training.config.sources import (
    FilesSource,
    Icd10cmSource,
    LicencesSource,
    PythonTopicsSource,
    SourceConfig,
)
from training.data.documents import Document, Provenance
from training.data.sources.files import read_files, trace_files
from training.data.sources.icd10cm import read_icd10cm, trace_icd10cm
from training.data.sources.licences import read_licences, trace_licences
from training.data.sources.python_topics import read_python_topics, trace_python_topics


def read_documents(name: str, source: SourceConfig) -> Iterator[Document]:
    """Yield the documents of the source called ``name``, always in the same order.

    Raises:
        DataError: A file or package is missing, or a record is not what the source says it holds.
    """
    match source:
        case FilesSource():
            yield from read_files(name, source)
        case Icd10cmSource():
            yield from read_icd10cm(name, source)
        case LicencesSource():
            yield from read_licences(name, source)
        case PythonTopicsSource():
            yield from read_python_topics(name, source)


def trace_source(name: str, source: SourceConfig) -> Provenance:
    """Say what the source is made of, without reading its documents.

    Raises:
        DataError: A file or package is missing.
    """
    match source:
        case FilesSource():
            return trace_files(name, source)
        case Icd10cmSource():
            return trace_icd10cm(name)
        case LicencesSource():
            return trace_licences(name)
        case PythonTopicsSource():
            return trace_python_topics()
