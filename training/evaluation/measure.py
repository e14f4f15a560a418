"""One model's numbers on the material."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from training.config.schema import EvaluationConfig
from training.evaluation.answers import Question
from training.evaluation.bootstrap import Floats
from training.evaluation.generate import answer_questions
from training.evaluation.losses import measure_losses
from training.evaluation.material import Material
from training.model.kind import AnyModel
from training.model.packed import PackedLanguageModel

ANSWER_TOKENS_FACTOR = 2
"""A batch of answers holds this many times ``tokens_per_batch``: generation keeps no activations."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurement:
    """What one model makes of the material, document by document."""

    held_out_nats: Floats
    """float64 [held-out documents]: the sum over each document's targets."""

    general_nats: Floats
    """float64 [general documents]."""

    answers: list[str]


def measure(
    model: AnyModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    questions: list[Question],
    config: EvaluationConfig,
    *,
    advance: Callable[[int], None],
) -> Measurement:
    """Measure the losses and generate the answers, in evaluation mode.

    Args:
        model: As built for training; on its device.
        tokenizer: The model's.
        material: The documents.
        questions: What is asked, made from ``material.questions``.
        config: Batch size and the longest answer.
        advance: Called with the number of documents done since the last call.
    """
    model.eval()
    packed = PackedLanguageModel(model)
    device = next(model.parameters()).device
    with torch.inference_mode():
        held_out, general = (
            measure_losses(
                packed,
                documents,
                tokens_per_batch=config.tokens_per_batch,
                device=device,
                advance=advance,
            )
            for documents in (material.held_out, material.general)
        )
    answers = answer_questions(
        model,
        tokenizer,
        questions,
        max_new_tokens=config.max_new_tokens,
        tokens_per_batch=config.tokens_per_batch * ANSWER_TOKENS_FACTOR,
        advance=advance,
    )
    return Measurement(held_out_nats=held_out, general_nats=general, answers=answers)
