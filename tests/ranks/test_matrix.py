"""Law 1, cell by cell: whatever the page of strategies calls tested does the steps of a plain loop."""

import functools
from pathlib import Path

import pytest

from tests.ranks.matrix_case import (
    BF16_GRAD_NORM,
    BF16_LOSS,
    FP32,
    Cell,
    Settings,
    compose,
    list_cells,
    walk_reference,
    write_tiny_model,
)
from tests.ranks.matrix_walk import walk_cells
from tests.ranks.spawn import on_ranks
from tests.reference_loop import PlainStep
from training.engine.step import StepResult
from training.errors import MetierError

CPU_ADAM: Settings = (("strategy", "zero2_offload"), ("optimizer", "adamw_cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    write_tiny_model(made)
    return made


@functools.cache
def expected(learnt: Settings, folder: Path) -> list[PlainStep]:
    return walk_reference(learnt, folder)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_cell_has_the_losses_and_gradient_norms_of_the_plain_loop(ranks: int, folder: Path) -> None:
    cells = list(list_cells(ranks))
    answers = on_ranks(ranks, walk_cells, cells, folder, timeout_seconds=900)

    for cell, *per_rank in zip(cells, *answers, strict=True):
        assert all(reported == per_rank[0] for reported in per_rank), f"ranks differ: {cell}"
        check_cell(cell, per_rank[0], expected(cell.learnt, folder))


def check_cell(cell: Cell, reported: list[StepResult], plain: list[PlainStep]) -> None:
    loss, grad_norm = (FP32, FP32) if cell.precision == "fp32" else (BF16_LOSS, BF16_GRAD_NORM)
    assert [step.loss for step in reported] == pytest.approx([step.loss for step in plain], rel=loss), cell
    assert [step.grad_norm for step in reported] == pytest.approx(
        [step.grad_norm for step in plain], rel=grad_norm
    ), cell


def ask_for_what_is_missing(extensions: str) -> str:
    """Ask for DeepSpeed's CPU Adam where nothing can be compiled."""
    import os

    from torch import nn

    from training.optimizers.build import build_optimizer

    os.environ |= {"TORCH_EXTENSIONS_DIR": extensions, "CXX": "/bin/false", "PATH": "/nowhere"}
    try:
        build_optimizer(nn.Linear(2, 2), compose(Path(), CPU_ADAM).optimizer)
    except MetierError as error:
        return str(error)
    return ""


def test_what_a_machine_lacks_is_told_in_one_line_with_what_to_use_instead(tmp_path: Path) -> None:
    [answer] = on_ranks(1, ask_for_what_is_missing, str(tmp_path))

    assert "DeepSpeed's CPU Adam cannot be compiled here" in answer
    assert "use optimizer=adamw" in answer
    assert "\n" not in answer
