"""Questions with one right answer: what is asked, what was wanted, and how well an answer matches."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from training.evaluation.material import EvaluationDocument
from training.model.generation import say, say_last_turn

WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """A held-out document up to its first target, and the targets as text."""

    id: str
    family: str
    task: str
    prompt_ids: npt.NDArray[np.int32]
    """int32 [P]."""

    prompt: str
    """What a person would see of it: the last turn, without the template's furniture."""

    expected: str


def ask(document: EvaluationDocument, tokenizer: PreTrainedTokenizerBase) -> Question:
    """Turn a document into a question; of a chat with several answers the first is asked."""
    ids, is_target = document.input_ids, document.is_target
    first = int(np.argmax(is_target))
    rest = np.flatnonzero(~is_target[first:])
    answer = ids[first : first + int(rest[0]) if rest.size else None]
    return Question(
        id=document.id,
        family=document.family,
        task=document.task,
        prompt_ids=ids[:first],
        prompt=say_last_turn(tokenizer, ids[:first]),
        expected=say(tokenizer, answer),
    )


def normalise_answer(text: str) -> str:
    """Strip, fold case, and make every inner white space one blank."""
    return " ".join(text.casefold().split())


def matches_exactly(answer: str, expected: str) -> bool:
    """Compare normalised texts."""
    return normalise_answer(answer) == normalise_answer(expected)


def find_word_f1(answer: str, expected: str) -> float:
    """Give the harmonic mean of precision and recall over words (SQuAD, arXiv:1606.05250, section 6.1).

    Words are runs of letters and digits in the normalised text; 0..1.
    """
    found, wanted = (Counter(WORD.findall(normalise_answer(text))) for text in (answer, expected))
    if not found or not wanted:
        return float(found == wanted)
    return 2 * (found & wanted).total() / (found.total() + wanted.total())
