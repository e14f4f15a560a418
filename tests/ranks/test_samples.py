"""Questions answered while training: the model's own greedy answers, and training does not notice."""

from typing import Any

import pytest
import torch

from tests.ranks.spawn import on_ranks
from tests.ranks.test_engine import open_engine, open_place, run_steps
from tests.ranks.test_held_out import make_documents
from tests.ranks.training_case import make_config, make_model
from training.model.tokenizer import build_tokenizer
from training.samples import SampleQuestions

QUESTIONS, NEW_TOKENS = 3, 6
CUTS = [(2, False), (3, False), (3, True)]


def make_questions() -> SampleQuestions:
    return SampleQuestions(make_documents(QUESTIONS), build_tokenizer("bytes"), max_new_tokens=NEW_TOKENS)


def answer_plainly() -> list[str]:
    """Append the likeliest token, again and again, with the plain model."""
    model, tokenizer = make_model(adapter=False).eval(), build_tokenizer("bytes")
    model.set_attn_implementation("sdpa")
    answers = []
    for prompt in make_questions()._prompts:
        ids = torch.tensor(prompt, dtype=torch.int64)
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                ids = torch.cat([ids, model(input_ids=ids[None]).logits[0, -1:].argmax(-1)])
        answers.append(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip())
    return answers


def answer_on_stages(world_size: int) -> list[Any]:
    """Answer between steps of training; give the answers, and the losses with and without them."""
    told = []
    for stage, adapter in CUTS:
        config = make_config(**{"strategy.zero_stage": stage, "cluster.processes_per_node": world_size})
        place = open_place(config)
        engine = open_engine(config, place, adapter=adapter)
        together = stage == 3 and world_size > 1
        before = [line["answer"] for line in make_questions().answer(engine.model, together=together)]
        steps = run_steps(engine, config, place, range(2))
        make_questions().answer(engine.model, together=together)
        steps += run_steps(engine, config, place, range(2, 4))
        engine.close()
        engine = open_engine(config, place, adapter=adapter)
        told.append((before, steps, run_steps(engine, config, place, range(4))))
        engine.close()
    return told


@pytest.mark.parametrize("world_size", [1, 2])
def test_answers_are_those_of_the_plain_model_at_every_stage_and_training_does_not_notice(
    world_size: int,
) -> None:
    wanted = answer_plainly()
    assert any(wanted), "empty answers say little"
    for told in on_ranks(world_size, answer_on_stages, world_size):
        for answers, steps, undisturbed in told:
            assert answers == wanted
            assert steps == undisturbed


def test_a_text_without_a_question_is_continued_from_its_middle() -> None:
    (document,) = make_documents(1)
    document.is_target[:] = True
    prose = SampleQuestions([document], build_tokenizer("bytes"), max_new_tokens=1)
    assert len(prose._prompts[0]) == document.input_ids.size // 2
