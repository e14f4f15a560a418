"""What is measured: the same documents before and after, and for every run on the same corpus."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from training.config.schema import EvaluationConfig
from training.data.documents import Document, sample_evenly
from training.data.encoding.encode import encode
from training.data.read import read_documents
from training.data.reading.reader import Corpus
from training.errors import DataError
from training.held_out import shuffle

MOST_GENERAL_DOCUMENTS_READ = 20_000
"""A sample of general text is drawn from no more documents than this: a source may be without end."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluationDocument:
    """One encoded document, and where it comes from."""

    id: str
    family: str
    task: str
    input_ids: npt.NDArray[np.int32]
    """int32 [L]."""

    is_target: npt.NDArray[np.bool_]
    """bool [L]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Material:
    """All that is measured."""

    held_out: list[EvaluationDocument]
    questions: list[EvaluationDocument]
    """Held-out documents whose answer is generated."""

    general: list[EvaluationDocument]
    held_out_total: int
    """Held-out documents of the corpus, of which ``held_out`` is a sample."""

    cut: int
    """Held-out documents of which only the beginning was measured."""


def gather_material(
    corpus: Corpus,
    config: EvaluationConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    salt: int,
) -> Material:
    """Choose the documents.

    Args:
        corpus: The held-out split of the prepared corpus.
        config: How many, and which tasks are answered.
        tokenizer: Encodes the general text.
        sequence_length: Longer documents are cut to this, as a packed row would be, and counted.
        salt: Of the choice; the corpus' own, so that runs on one corpus are measured on the same documents.

    Raises:
        DataError: The corpus is damaged or holds out nothing, or there is no general text.
        StorageError: A shard cannot be fetched.
    """
    places = shuffle(len(corpus), salt)[: config.held_out_documents]
    held_out = [read_document(corpus, int(place)) for place in places]
    measured = [document for document in held_out if has_targets(document)]
    if not measured:
        raise DataError(
            f"{corpus.path} holds out no document with a target; raise data.held_out_fraction and "
            "run `metier prepare` again"
        )
    return Material(
        held_out=[cut(document, sequence_length) for document in measured],
        questions=find_questions(corpus, config.answer_tasks, config.answer_documents, salt),
        general=read_general(config, tokenizer),
        held_out_total=len(corpus),
        cut=sum(document.input_ids.size > sequence_length for document in measured),
    )


def find_questions(corpus: Corpus, tasks: Sequence[str], size: int, salt: int) -> list[EvaluationDocument]:
    """Take the first ``size`` documents of ``tasks`` in the shuffled order; fewer when there are no more."""
    there = sum(counts.documents for task, counts in corpus.record.by_task.items() if task in tasks)
    wanted = min(size, there)
    found: list[EvaluationDocument] = []
    places = iter(shuffle(len(corpus), salt))
    while len(found) < wanted:
        document = read_document(corpus, int(next(places)))
        if document.task in tasks:
            found.append(document)
    return [document for document in found if has_targets(document)]


def read_document(corpus: Corpus, place: int) -> EvaluationDocument:
    """Read one document of the corpus."""
    stored = corpus.document(place)
    return EvaluationDocument(
        id=stored.id,
        family=f"{stored.source}/{stored.family}",
        task=stored.task,
        input_ids=stored.input_ids,
        is_target=stored.is_target,
    )


def read_general(config: EvaluationConfig, tokenizer: PreTrainedTokenizerBase) -> list[EvaluationDocument]:
    """Encode an even sample of the general text, each document cut to its first tokens.

    Raises:
        DataError: The source is missing or gives no text.
    """
    documents = list(islice(read_documents("general", config.general), MOST_GENERAL_DOCUMENTS_READ))
    general = [
        cut(encode_document(document, tokenizer), config.general_tokens_per_document)
        for document in sample_evenly(documents, config.general_documents)
    ]
    general = [document for document in general if has_targets(document)]
    if not general:
        raise DataError(f"evaluation.general ({config.general.kind}) gives no text; choose another source")
    return general


def encode_document(document: Document, tokenizer: PreTrainedTokenizerBase) -> EvaluationDocument:
    """Encode one document."""
    encoded = encode(document, tokenizer)
    return EvaluationDocument(
        id=document.id,
        family=document.family,
        task=document.task,
        input_ids=encoded.input_ids,
        is_target=encoded.is_target,
    )


def cut(document: EvaluationDocument, tokens: int) -> EvaluationDocument:
    """Keep the first ``tokens`` tokens."""
    if document.input_ids.size <= tokens:
        return document
    return replace(document, input_ids=document.input_ids[:tokens], is_target=document.is_target[:tokens])


def has_targets(document: EvaluationDocument) -> bool:
    """Whether there is anything to measure."""
    return bool(document.is_target[1:].any())
