"""Answers by greedy generation, in batches of similar length."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from training.evaluation.answers import Question, say
from training.model.attention import generating
from training.model.generation import find_stop_tokens


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    tokens_per_batch: int,
    advance: Callable[[int], None],
) -> list[str]:
    """Answer every question greedily with a key-value cache; the answers come in the questions' order.

    Args:
        model: A transformers (or peft) causal language model.
        tokenizer: Its tokenizer.
        questions: What is asked.
        max_new_tokens: An answer longer than this is cut.
        tokens_per_batch: Most tokens that a batch holds at its end, padding included.
        advance: Called with the number of questions answered since the last call.
    """
    answers = [""] * len(questions)
    for batch in cut_batches([q.prompt_ids.size + max_new_tokens for q in questions], tokens_per_batch):
        chosen = [questions[index] for index in batch]
        for index, ids in zip(batch, _generate(model, tokenizer, chosen, max_new_tokens), strict=True):
            answers[index] = say(tokenizer, ids)
        advance(len(batch))
    return answers


def cut_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Group places by length, longest first, so that a batch's rows x its longest fits ``tokens_per_batch``.

    Longest first: what does not fit into memory fails at once.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    max_new_tokens: int,
) -> list[np.ndarray]:
    """Give each question's new tokens, int32, up to and without the first that ends the answer."""
    ends = find_stop_tokens(tokenizer)
    padding = ends[0] if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    width = max(question.prompt_ids.size for question in questions)
    input_ids = torch.full((len(questions), width), padding, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, question in enumerate(questions):
        # Left padding: every answer begins in the same column.
        start = width - question.prompt_ids.size
        input_ids[row, start:] = torch.from_numpy(question.prompt_ids.astype(np.int64))
        mask[row, start:] = 1
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=padding,
    )
    device = next(model.parameters()).device
    with torch.inference_mode(), generating(model):
        output = model.generate(
            input_ids=input_ids.to(device), attention_mask=mask.to(device), generation_config=settings
        )
    return [_cut_at_end(row, ends) for row in output[:, width:].cpu().numpy().astype(np.int32)]


def _cut_at_end(ids: np.ndarray, ends: list[int]) -> np.ndarray:
    places = np.flatnonzero(np.isin(ids, ends))
    return ids[: places[0]] if places.size else ids
