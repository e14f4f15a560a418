"""A few held-out questions that are answered while a run is trained: so that a person sees what it says."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from training.data.reading.mapped import StoredDocument
from training.engine.seeds import derive_seed
from training.model.drawing import Drawing
from training.model.generation import generate, say, say_last_turn
from training.model.kind import AnyModel


class SampleQuestions:
    """The same questions each time, with the same luck: only the training changes what is said."""

    def __init__(
        self,
        documents: Sequence[StoredDocument],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        drawing: Drawing | None = None,
    ) -> None:
        """Cut documents into question and answer: before the first target, and from there to the next gap.

        A text that is a target from its beginning asks nothing; its first half is to be continued.

        Args:
            documents: What is asked, and expected.
            tokenizer: The model's.
            max_new_tokens: An answer longer than this is cut.
            drawing: How tokens are drawn, each question's from a seed of its own; None takes the likeliest.
        """
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        self._drawing = drawing
        self._ids = [document.id for document in documents]
        cuts = [_cut(document) for document in documents]
        self._prompts = [
            document.input_ids[:first] for document, (first, _) in zip(documents, cuts, strict=True)
        ]
        self._expected = [
            say(tokenizer, document.input_ids[first:last])
            for document, (first, last) in zip(documents, cuts, strict=True)
        ]

    def answer(self, model: AnyModel, *, together: bool) -> list[dict[str, Any]]:
        """Answer all, one after the other; give a line for each.

        Args:
            model: Being trained; it is left as it was.
            together: All ranks call this at the same time: ZeRO-3 gathers the layers, a team shares them.
        """
        lines = []
        for number, prompt in enumerate(self._prompts):
            (ids,) = generate(
                model,
                self._tokenizer,
                [prompt],
                max_new_tokens=self._max_new_tokens,
                drawing=self._draw_for(number),
                together=together,
            )
            lines.append(
                {
                    "id": self._ids[number],
                    "prompt": say_last_turn(self._tokenizer, prompt),
                    "expected": self._expected[number],
                    "answer": say(self._tokenizer, ids),
                }
            )
        return lines

    def _draw_for(self, number: int) -> Drawing | None:
        """Give a question the same seed at every step, on any number of ranks, and after a resume."""
        if self._drawing is None:
            return None
        return replace(self._drawing, seed=derive_seed(self._drawing.seed, "samples", number))


def _cut(document: StoredDocument) -> tuple[int, int]:
    """Say where the answer begins and ends."""
    size = document.input_ids.size
    first = int(np.argmax(document.is_target))
    # The first token is a target of nothing: a text's targets begin at the second.
    if first <= 1:
        return max(1, size // 2), size
    rest = np.flatnonzero(~document.is_target[first:])
    return first, first + int(rest[0]) if rest.size else size
