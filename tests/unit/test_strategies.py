"""The rules of strategies decide every combination, and the page that is written from them is current."""

import itertools
from pathlib import Path

import pytest

from launcher.strategies import (
    FURTHER,
    MATRIX,
    METHODS,
    OPTIMIZERS,
    PRECISIONS,
    STRATEGIES,
    make_combination,
    write_page,
)
from launcher.tree import ConfigTree
from training.rules.strategies import Method, effective_stage, judge

PAGE = Path(__file__).resolve().parents[2] / "docs" / "strategies.md"
ALL = list(itertools.product(METHODS, STRATEGIES, OPTIMIZERS, PRECISIONS))


def test_every_combination_has_a_verdict_and_every_refusal_is_one_line_that_says_what_to_do() -> None:
    for cell in ALL:
        verdict = judge(make_combination(*cell))
        assert "\n" not in verdict.reason
        if verdict.kind == "refused":
            assert "; use " in verdict.reason or " needs strategy." in verdict.reason, cell
        assert bool(verdict.reason) == (verdict.kind != "works"), cell


def test_what_the_page_calls_tested_is_let_through_by_the_rules() -> None:
    for tested in (MATRIX, *FURTHER):
        for cell in itertools.product(
            tested.methods, tested.strategies, tested.optimizers, tested.precisions
        ):
            assert judge(make_combination(*cell)).kind == "works", cell


def test_the_optimizers_of_the_page_are_those_that_can_be_chosen() -> None:
    assert set(OPTIMIZERS) == set(ConfigTree(None).choices("optimizer"))


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == write_page()


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (("none", "0", "adafactor", "fp32"), "works"),
        (("none", "0", "adafactor", "bf16"), "refused"),
        (("none", "2", "adafactor", "fp32"), "refused"),
        (("lora", "2", "adamw_cpu", "bf16"), "refused"),
        (("lora", "2, optimizer on CPU", "adamw_cpu", "bf16"), "works"),
        (("lora", "2, optimizer on CPU", "adamw_8bit", "bf16"), "refused"),
        (("none", "3", "adamw_paged", "bf16"), "needs a GPU"),
        (("none", "3, both on NVMe", "adamw", "bf16"), "works"),
        (("none", "2, optimizer on NVMe", "adamw", "bf16"), "refused"),
        (("none", "3, ZeRO++", "adamw", "bf16"), "needs a GPU"),
        (("none", "2, AutoTP", "lion", "bf16"), "works"),
        (("none", "2, AutoTP", "adamw_8bit", "bf16"), "refused"),
        (("none", "3, AutoTP", "adamw", "fp32"), "refused"),
        (("lora", "2, AutoTP", "adamw", "fp32"), "refused"),
    ],
)
def test_a_combination_has_the_verdict_that_its_facts_give(
    cell: tuple[Method, str, str, str], kind: str
) -> None:
    assert judge(make_combination(*cell)).kind == kind


def test_bf16_is_never_summed_in_bf16() -> None:
    assert [effective_stage(stage, "bf16") for stage in range(4)] == [1, 1, 2, 3]
    assert [effective_stage(stage, "fp32") for stage in range(4)] == [0, 1, 2, 3]
