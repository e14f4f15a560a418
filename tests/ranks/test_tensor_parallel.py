"""Ranks that share a model's matrices do the steps of a plain loop; their checkpoints fit any other cut."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint_case import at, open_store
from tests.ranks.spawn import on_ranks
from tests.ranks.test_engine import (
    check_sources,
    first_nats,
    interrupt_cuts,
    open_engine,
    open_place,
    plain_losses,
    run_steps,
    train_cuts,
)
from tests.ranks.test_held_out import NAMES, TOKENS_PER_BATCH, make_documents, measure_plainly
from tests.ranks.test_samples import answer_plainly, make_questions
from tests.ranks.training_case import make_config, make_model
from training.fragments.fragment import DTYPES, read_into
from training.fragments.reader import FragmentReader
from training.fragments.runs import Stretch
from training.layout import RunLayout

RATE = 3e-3
DOCUMENTS = 7
STEPS_PER_CUT = 2


def cut_for(stage: int, micro: int = 1, *, team: int = 2, **settings: Any) -> dict[str, Any]:
    return {
        "strategy.tensor_parallel_size": team,
        "strategy.zero_stage": stage,
        "batch.micro_batch_size": micro,
        "cluster.processes_per_node": 4,
        "optimizer.learning_rate": RATE,
        **settings,
    }


CUTS = [cut_for(1, 2), cut_for(2, 1), cut_for(2, 2)]
OFFLOADED = cut_for(2, **{"strategy.offload_optimizer": "cpu"})
WAY = [
    cut_for(2, team=1),
    cut_for(1),
    cut_for(2, team=1, **{"strategy.sequence_parallel_size": 2}),
    cut_for(2),
    cut_for(3, team=1),
    OFFLOADED,
    cut_for(2),
]
"""Each cut takes up the checkpoint of the one before."""


def work_in_teams(folder: Path) -> dict[str, Any]:
    """Do everything on one start of the processes."""
    return {
        "steps": train_cuts(CUTS, adapter=False),
        "interrupted": interrupt_cuts([cut_for(1), cut_for(2), OFFLOADED], folder / "interrupted"),
        "recut": recut(folder / "recut"),
        "measured": measure_in_teams(),
        "norms of heads": train_norms_of_heads(),
    }


def recut(root: Path) -> tuple[list[str], list[float]]:
    """Walk from cut to cut; name what a checkpoint has lost or changed on its way, and give the losses."""
    changed, losses = [], []
    for number, cut in enumerate(WAY):
        config, first = make_config(**cut), STEPS_PER_CUT * number
        place = open_place(config)
        engine = open_engine(config, place, adapter=False)
        store = open_store(root, engine, config, place)
        assert store.resume() == at(first)
        if number:
            # Written anew from what was taken up, the checkpoint is the same to the last bit.
            open_store(root / str(number), engine, config, place).save(at(first), final=True)
            one, other = (read_all(RunLayout(run).checkpoint(first)) for run in (root, root / str(number)))
            changed += sorted(one.keys() ^ other.keys())
            changed += [key for key in one if not torch.equal(one[key], other[key])]
        steps = range(first, first + STEPS_PER_CUT)
        losses += [step.loss for step in run_steps(engine, config, place, steps)]
        store.save(at(steps.stop), final=True)
        engine.close()
    return changed, losses


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Read all that a checkpoint has of every whole parameter."""
    found = {}
    with FragmentReader(folder) as reader:
        for name, entry in reader.index.parameters.items():
            for key, dtype in entry.keys.items():
                flat = torch.full((entry.numel,), float("nan"), dtype=DTYPES[dtype])
                read_into(flat, reader, name, key, Stretch(0, entry.numel))
                found[f"{name} {key}"] = flat
    return found


def measure_in_teams() -> Any:
    """Measure documents and answer questions in the middle of training; then train on."""
    from training.held_out import HeldOutDocuments

    config = make_config(**cut_for(2))
    place = open_place(config)
    documents = HeldOutDocuments(
        make_documents(DOCUMENTS), NAMES, place.ranks, tokens_per_batch=TOKENS_PER_BATCH, together=2
    )
    engine = open_engine(config, place, adapter=False, tested=True)
    measured = documents.measure(engine.measure_nats, place.device)
    answers = [line["answer"] for line in make_questions().answer(engine.model, together=True)]
    steps = run_steps(engine, config, place, range(2))
    engine.close()
    return measured.loss, measured.by_source, answers, [step.loss for step in steps]


def train_norms_of_heads() -> list[list[tuple[float, float]]]:
    """Train a model that normalises each head, alone and in teams; give losses and gradient norms."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from tests.ranks.training_case import SOURCES, VOCABULARY
    from training.engine.deepspeed_engine import DeepSpeedEngine
    from training.model.attention import DOCUMENTS as KERNEL
    from training.model.attention import register_attention

    register_attention()
    told = []
    for team in (1, 2):
        config = make_config(**cut_for(2, team=team))
        place = open_place(config)
        torch.manual_seed(3)
        shape = Qwen3Config(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=VOCABULARY,
            attention_bias=True,
            attn_implementation=KERNEL,
        )
        model = Qwen3ForCausalLM(shape)
        for frozen in ("layers.0.self_attn.k_norm", "layers.0.mlp.up_proj"):
            model.model.get_submodule(frozen).requires_grad_(False)
        engine = DeepSpeedEngine(model, config, place, sources=SOURCES)
        steps = run_steps(engine, config, place, range(4))
        told.append([(step.loss, step.grad_norm) for step in steps])
        engine.close()
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("teams")
    for name in ("recut", "interrupted"):
        (made / name).mkdir()
    return made


@pytest.fixture(scope="module")
def told(folder: Path) -> list[dict[str, Any]]:
    """Give what each of four ranks, two teams, has told."""
    return on_ranks(4, work_in_teams, folder, timeout_seconds=600)


def test_two_teams_do_the_steps_of_the_plain_loop(told: list[dict[str, Any]]) -> None:
    expected, nats = plain_losses(adapter=False, learning_rate=RATE), first_nats(adapter=False)
    for number, cut in enumerate(CUTS):
        per_rank = [answer["steps"][number] for answer in told]
        assert all(reported == per_rank[0] for reported in per_rank), cut
        assert [step.loss for step in per_rank[0]] == pytest.approx(expected, rel=1e-5), cut
        assert [part.nats for part in per_rank[0][0].by_source] == pytest.approx(nats, rel=1e-5), cut
        check_sources(per_rank[0])


def test_a_norm_of_each_head_learns_from_the_heads_of_all_ranks(told: list[dict[str, Any]]) -> None:
    alone, in_teams = told[0]["norms of heads"]
    for one, other in zip(alone, in_teams, strict=True):
        assert other == pytest.approx(one, rel=1e-5)


def test_an_interrupted_run_goes_on_bit_for_bit(told: list[dict[str, Any]]) -> None:
    for answer in told:
        for uninterrupted, (resumed, same) in answer["interrupted"]:
            assert resumed == uninterrupted
            assert same, "weights after the last step"


def test_checkpoints_go_from_any_cut_to_any_other_without_losing_a_bit(
    told: list[dict[str, Any]],
) -> None:
    expected = plain_losses(adapter=False, learning_rate=RATE)
    for answer in told:
        changed, losses = answer["recut"]
        assert changed == []
        assert losses == pytest.approx(expected[: len(losses)], rel=1e-5)


def test_one_process_reads_whole_matrices_and_an_index_of_a_few_rows(
    told: list[dict[str, Any]], folder: Path
) -> None:
    from training.model.trained import load_weights

    assert told
    newest = RunLayout(folder / "recut").checkpoint(STEPS_PER_CUT * len(WAY))
    everything, model = read_all(newest), make_model(adapter=False)
    load_weights(model, newest)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.flatten(), everything[f"{name} weight"])
    with FragmentReader(newest) as reader:
        for name, entry in reader.index.parameters.items():
            assert len(entry.rows) <= 4, name
            cut_by_columns = name.endswith(("o_proj.weight", "down_proj.weight"))
            assert all((row.runs is not None) == cut_by_columns for row in entry.rows), name


def test_a_team_measures_each_document_once_and_answers_as_the_plain_model(
    told: list[dict[str, Any]],
) -> None:
    loss, by_source = measure_plainly(make_documents(DOCUMENTS))
    answers = answer_plainly(None)
    undisturbed = told[0]["steps"][1][:2]
    for answer in told:
        measured, sources, said, losses = answer["measured"]
        assert measured == pytest.approx(loss, rel=1e-6)
        assert sources == pytest.approx(by_source, rel=1e-6)
        assert said == answers
        assert losses == [step.loss for step in undisturbed]
