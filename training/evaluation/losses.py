"""The loss of each document, many documents in one forward pass, none seeing another."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from training.evaluation.bootstrap import Floats
from training.evaluation.material import EvaluationDocument
from training.model.inputs import cut_rows, lay_documents, shift_labels
from training.model.packed import PackedLanguageModel, document_losses


def measure_losses(
    model: PackedLanguageModel,
    documents: Sequence[EvaluationDocument],
    *,
    tokens_per_batch: int,
    device: torch.device,
    advance: Callable[[int], None],
) -> Floats:
    """Sum the nats of each document's targets.

    Args:
        model: Evaluation mode is the caller's affair.
        documents: Each with one target at least.
        tokens_per_batch: Most tokens of a forward pass; a longer document has a pass of its own.
        device: Where the model lies.
        advance: Called with the number of documents measured since the last call.

    Returns:
        float64 [D], in the order of ``documents``.
    """
    nats = np.zeros(len(documents))
    for places in cut_rows([document.input_ids.size for document in documents], tokens_per_batch):
        chosen = [documents[place] for place in places]
        batch = lay_documents(
            [document.input_ids for document in chosen],
            [shift_labels(document.input_ids, document.is_target) for document in chosen],
        )
        sums, _ = document_losses(model, batch.to(device))
        nats[places] = sums.numpy()
        advance(len(places))
    return nats


def count_targets(document: EvaluationDocument) -> int:
    """Count the targets that have a token before them: those whose loss is measured."""
    return int(document.is_target[1:].sum())
