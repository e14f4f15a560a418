"""The held-out loss is that of a plain loop over the documents, however many ranks share them."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from tests.ranks.spawn import on_ranks
from tests.ranks.test_engine import open_engine, open_place, run_steps
from tests.ranks.training_case import VOCABULARY, make_config, make_model
from training.data.reading.mapped import StoredDocument

NAMES = ["law", "empty", "replay"]
COUNTS = (1, 2, 3, 7, 20)
STAGES = (2, 3)
TOKENS_PER_BATCH = 64


def make_documents(count: int) -> list[StoredDocument]:
    dice = random.Random(7)
    documents = []
    for number in range(count):
        length = dice.randrange(5, 60)
        is_target = np.array([dice.random() < 0.6 for _ in range(length)])
        is_target[-1] = True
        documents.append(
            StoredDocument(
                id=f"d{number}",
                source=NAMES[0] if number % 3 else NAMES[2],
                family="f",
                task="t",
                input_ids=np.array([dice.randrange(VOCABULARY) for _ in range(length)], dtype=np.int32),
                is_target=is_target,
            )
        )
    return documents


def measure_plainly(documents: list[StoredDocument]) -> tuple[float, dict[str, float]]:
    """Walk the documents one by one through the plain model."""
    model = make_model(adapter=False).eval()
    nats, targets = dict.fromkeys(NAMES, 0.0), dict.fromkeys(NAMES, 0)
    for document in documents:
        ids, wanted = (
            torch.tensor(document.input_ids, dtype=torch.int64),
            torch.tensor(document.is_target)[1:],
        )
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        lost = torch.nn.functional.cross_entropy(logits[wanted], ids[1:][wanted], reduction="sum")
        nats[document.source] += float(lost)
        targets[document.source] += int(wanted.sum())
    by_source = {name: nats[name] / targets[name] for name in NAMES if targets[name]}
    return sum(nats.values()) / sum(targets.values()), by_source


def measure_on_stages(world_size: int) -> list[Any]:
    """Measure every number of documents on every stage, between two steps of training."""
    from training.held_out import HeldOutDocuments

    told = []
    for stage in STAGES:
        config = make_config(
            **{
                "strategy.zero_stage": stage,
                "cluster.processes_per_node": world_size,
                "batch.global_batch_size": 12 if world_size == 3 else 4,
            }
        )
        place = open_place(config)
        engine = open_engine(config, place, adapter=False)
        found = []
        for count in COUNTS:
            documents = HeldOutDocuments(
                make_documents(count), NAMES, place.ranks, tokens_per_batch=TOKENS_PER_BATCH
            )
            measured = documents.measure(engine.measure_nats, place.device)
            found.append((measured.loss, measured.by_source))
        steps = []
        if world_size < 3:  # the case's steps have 4 samples
            steps = run_steps(engine, config, place, range(2))
            documents.measure(engine.measure_nats, place.device)
            steps += run_steps(engine, config, place, range(2, 4))
            engine.close()
            engine = open_engine(config, place, adapter=False)
            steps = [steps, run_steps(engine, config, place, range(4))]
        engine.close()
        told.append((found, steps))
    return told


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_document_counts_once_on_any_number_of_ranks_and_training_does_not_notice(
    world_size: int,
) -> None:
    wanted = [measure_plainly(make_documents(count)) for count in COUNTS]
    answers = on_ranks(world_size, measure_on_stages, world_size, timeout_seconds=600)
    assert all(answer == answers[0] for answer in answers), "all ranks must tell the same"
    for found, steps in answers[0]:
        for (loss, by_source), (plain, plain_by_source) in zip(found, wanted, strict=True):
            assert loss == pytest.approx(plain, rel=1e-6)
            assert by_source == pytest.approx(plain_by_source, rel=1e-6)
        if steps:
            measured, unmeasured = steps
            assert measured == unmeasured
