"""Answers by greedy generation, in batches of similar length."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.evaluation.answers import Question
from training.model.generation import generate, say


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
        found = generate(
            model, tokenizer, [question.prompt_ids for question in chosen], max_new_tokens=max_new_tokens
        )
        for index, ids in zip(batch, found, strict=True):
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
