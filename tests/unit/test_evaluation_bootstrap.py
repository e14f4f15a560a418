"""Intervals that cover the truth as often as they say, and pairs that stay pairs."""

import math

import numpy as np
import pytest

from training.evaluation.bootstrap import Estimate, Floats, Resampler

DOCUMENTS = 60
TRUE_LOSS = 3.0


def draw_losses(
    generator: np.random.Generator, documents: int, family_spread: float = 0.0
) -> tuple[Floats, Floats]:
    """Draw nats and targets of documents in families of four; the true ratio is TRUE_LOSS."""
    targets = generator.integers(5, 40, documents).astype(np.float64)
    shared = np.repeat(generator.normal(0, family_spread, -(-documents // 4)), 4)[:documents]
    return targets * (TRUE_LOSS + shared + generator.normal(0, 0.8, documents)), targets


def alone(documents: int) -> list[str]:
    return [str(index) for index in range(documents)]


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_an_interval_covers_the_truth_as_often_as_it_says(confidence: float) -> None:
    generator, covered, repeats = np.random.default_rng(0), 0, 200
    for repeat in range(repeats):
        nats, targets = draw_losses(generator, DOCUMENTS)
        resampler = Resampler(alone(DOCUMENTS), samples=200, confidence=confidence, seed=repeat)
        found = resampler.ratio(nats, targets)
        covered += found.low <= TRUE_LOSS <= found.high
    # Three standard errors of a share of 200, and a percentile interval's small optimism.
    allowed = 3 * math.sqrt(confidence * (1 - confidence) / repeats) + 0.015
    assert covered / repeats == pytest.approx(confidence, abs=allowed)


def test_related_documents_are_drawn_as_a_family_and_widen_the_interval() -> None:
    generator, together, apart, repeats = np.random.default_rng(1), 0, 0, 100
    families = [str(index // 4) for index in range(DOCUMENTS)]
    for repeat in range(repeats):
        nats, targets = draw_losses(generator, DOCUMENTS, family_spread=1.5)
        by_family = Resampler(families, samples=200, confidence=0.95, seed=repeat).ratio(nats, targets)
        by_document = Resampler(alone(DOCUMENTS), samples=200, confidence=0.95, seed=repeat).ratio(
            nats, targets
        )
        together += by_family.low <= TRUE_LOSS <= by_family.high
        apart += by_document.low <= TRUE_LOSS <= by_document.high
    assert together / repeats > 0.85
    assert apart / repeats < 0.8  # what pretending independence would cost


def test_a_paired_change_is_surer_than_two_intervals_suggest() -> None:
    before, targets = draw_losses(np.random.default_rng(2), DOCUMENTS)
    after = before - targets * np.random.default_rng(3).normal(0.1, 0.02, DOCUMENTS)
    resampler = Resampler(alone(DOCUMENTS), samples=1000, confidence=0.95, seed=0)
    change = resampler.change(before, after, targets)
    assert change.excludes_zero
    assert change.value == pytest.approx(after.sum() / targets.sum() - before.sum() / targets.sum())
    first, second = resampler.ratio(before, targets), resampler.ratio(after, targets)
    assert second.high > first.low  # unpaired, nothing could be said
    assert change.high - change.low < 0.2 * (first.high - first.low)


def test_no_change_has_an_interval_of_nothing() -> None:
    nats, targets = draw_losses(np.random.default_rng(4), DOCUMENTS)
    change = Resampler(alone(DOCUMENTS), samples=100, confidence=0.95, seed=0).change(nats, nats, targets)
    assert (change.value, change.low, change.high) == (0, 0, 0)
    assert not change.excludes_zero


def test_a_relative_change_of_nothing_is_not_told() -> None:
    resampler = Resampler(alone(3), samples=100, confidence=0.95, seed=0)
    assert resampler.relative_change(np.zeros(3), np.ones(3)) is None
    halved = resampler.relative_change(np.full(3, 4.0), np.full(3, 2.0))
    assert halved == Estimate(value=-0.5, low=-0.5, high=-0.5)


def test_the_same_seed_gives_the_same_interval() -> None:
    nats, targets = draw_losses(np.random.default_rng(5), DOCUMENTS)
    first, second = (
        Resampler(alone(DOCUMENTS), samples=100, confidence=0.9, seed=7).ratio(nats, targets)
        for _ in range(2)
    )
    assert first == second


def test_perplexity_keeps_the_interval_of_the_loss() -> None:
    assert Estimate(value=0.0, low=math.log(0.5), high=math.log(2)).exp() == Estimate(
        value=1.0, low=0.5, high=pytest.approx(2.0)
    )
