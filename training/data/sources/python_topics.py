"""General English prose that every Python carries: the topics of its language reference."""

import platform
from collections.abc import Iterator
from itertools import islice
from pydoc_data.topics import topics

from training.config.sources import PythonTopicsSource
from training.data.documents import Document, Provenance, Text

LICENCE = "PSF-2.0"


def read_python_topics(name: str, source: PythonTopicsSource) -> Iterator[Document]:
    """Yield one text per topic, in the topics' alphabetical order."""
    for topic in islice(sorted(topics), source.max_documents):
        yield Document(
            id=f"python_topics/{topic}",
            family=topic,
            source=name,
            task="python_topics",
            content=Text(topics[topic].strip()),
        )


def measure_python_topics(source: PythonTopicsSource) -> int:
    """Sum the topics' characters."""
    return sum(len(topics[topic]) for topic in islice(sorted(topics), source.max_documents))


def trace_python_topics() -> Provenance:
    """Name the Python whose documentation is read."""
    return Provenance(content={"python": platform.python_version()}, licence=LICENCE, notes={})
