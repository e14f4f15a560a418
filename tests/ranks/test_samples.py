"""Questions answered while training: the model's own words, with the same luck, and nobody notices."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.ranks.spawn import on_ranks
from tests.ranks.test_engine import open_engine, open_place, run_steps
from tests.ranks.test_held_out import make_documents
from tests.ranks.training_case import make_config, make_model
from training.engine.seeds import derive_seed
from training.model.drawing import Drawing
from training.model.tokenizer import build_tokenizer
from training.samples import SampleQuestions

QUESTIONS, NEW_TOKENS = 3, 6
CUTS = [(2, False), (3, False), (3, True)]


DRAWINGS = [None, *(Drawing(temperature=1.5, top_p=0.8, seed=seed) for seed in (1, 2))]


def make_questions(drawing: Drawing | None = None) -> SampleQuestions:
    return SampleQuestions(
        make_documents(QUESTIONS), build_tokenizer("bytes"), max_new_tokens=NEW_TOKENS, drawing=drawing
    )


def choose_plainly(logits: torch.Tensor, drawing: Drawing | None, dice: np.random.Generator) -> int:
    """Choose a token: the likeliest; or by lot among the likeliest that have ``top_p`` together."""
    if drawing is None:
        return int(logits.argmax())
    weights = dict(enumerate(torch.softmax(logits.double() / drawing.temperature, 0).tolist()))
    kept, together = set(), 0.0
    for token in sorted(weights, key=lambda token: -weights[token]):
        if together < drawing.top_p:
            kept.add(token)
            together += weights[token]
    lot = dice.random() * together
    for token in sorted(kept):
        lot -= weights[token]
        if lot < 0:
            break
    return token


def answer_plainly(drawing: Drawing | None) -> list[str]:
    """Append a token, again and again, with the plain model."""
    model, tokenizer = make_model(adapter=False).eval(), build_tokenizer("bytes")
    model.set_attn_implementation("sdpa")
    answers = []
    for number, prompt in enumerate(make_questions()._prompts):
        dice = np.random.default_rng(derive_seed(drawing.seed if drawing else 0, "samples", number))
        ids = torch.tensor(prompt, dtype=torch.int64)
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                chosen = choose_plainly(model(input_ids=ids[None]).logits[0, -1], drawing, dice)
            ids = torch.cat([ids, torch.tensor([chosen])])
        answers.append(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip())
    return answers


def answer_on_stages(world_size: int) -> list[Any]:
    """Answer between steps of training; give the answers, and the losses with and without them.

    Also whether torch's random state is where it was.
    """
    told = []
    for stage, adapter in CUTS:
        config = make_config(**{"strategy.zero_stage": stage, "cluster.processes_per_node": world_size})
        place = open_place(config)
        engine = open_engine(config, place, adapter=adapter)
        together = stage == 3 and world_size > 1
        state = torch.get_rng_state()
        before = [
            [line["answer"] for line in make_questions(drawing).answer(engine.model, together=together)]
            for drawing in DRAWINGS
        ]
        unmoved = torch.equal(state, torch.get_rng_state())
        steps = run_steps(engine, config, place, range(2))
        make_questions(DRAWINGS[1]).answer(engine.model, together=together)
        steps += run_steps(engine, config, place, range(2, 4))
        engine.close()
        engine = open_engine(config, place, adapter=adapter)
        told.append((before, unmoved, steps, run_steps(engine, config, place, range(4))))
        engine.close()
    return told


@pytest.mark.parametrize("world_size", [1, 2])
def test_answers_are_those_of_the_plain_model_at_every_stage_and_training_does_not_notice(
    world_size: int,
) -> None:
    wanted = [answer_plainly(drawing) for drawing in DRAWINGS]
    assert all(map(any, wanted)), "empty answers say little"
    assert wanted[0] != wanted[1] != wanted[2], "another seed must say something else"
    for told in on_ranks(world_size, answer_on_stages, world_size):
        for answers, unmoved, steps, undisturbed in told:
            assert answers == wanted
            assert unmoved
            assert steps == undisturbed


def test_a_text_without_a_question_is_continued_from_its_middle() -> None:
    (document,) = make_documents(1)
    document.is_target[:] = True
    prose = SampleQuestions([document], build_tokenizer("bytes"), max_new_tokens=1)
    assert len(prose._prompts[0]) == document.input_ids.size // 2
