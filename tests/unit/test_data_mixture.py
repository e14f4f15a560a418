"""Mixtures: every source has its share of every window, to the sample."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config.sources import MixtureConfig
from training.data.order.mixture import EVERYTHING, Mixture, build_mixture, spread_word
from training.data.order.packing import PackingCounts
from training.errors import DataError


def packed(rows: int, tokens: int | None = None) -> PackingCounts:
    return PackingCounts(
        documents=rows,
        rows=rows,
        tokens=rows * 100 if tokens is None else tokens,
        split=0,
        truncated=0,
        dropped=0,
        tokens_left_out=0,
        sequence_length=128,
    )


SOURCES = {"law": packed(1000), "medicine": packed(3000), "general": packed(500)}


def build(by: str, shares: dict[str, float], *phases: tuple[int, float], **changes: Any) -> Mixture:
    replay = None
    if phases:
        replay = {
            "source": "general",
            "phases": [{"from_step": step, "ratio": ratio} for step, ratio in phases],
        }
    config = MixtureConfig.model_validate({"by": by, "shares": shares, "replay": replay})
    settings = {"global_batch_size": 8, "max_steps": 1000, **changes}
    return build_mixture(config, SOURCES, **settings)


def drift(mixture: Mixture, phase: int, stop: int) -> float:
    """Give the furthest that any stream is from position x weight in a phase, up to position ``stop``."""
    begin = mixture.phases[phase]
    counts = np.asarray([mixture.counts(position) for position in range(begin.start, stop)])
    wanted = np.arange(stop - begin.start)[:, None] * np.asarray(begin.weights)
    return float(np.abs(counts - counts[0] - wanted).max())


@settings(deadline=None, derandomize=True, max_examples=200)
@given(counts=st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any))
def test_every_prefix_has_its_quota_rounded_up_or_down(counts: list[int]) -> None:
    word = spread_word(counts)

    period = sum(counts)
    seen = [0] * len(counts)
    for place, number in enumerate(word, start=1):
        seen[number] += 1
        assert all(
            abs(Fraction(place * count, period) - have) < 1 for count, have in zip(counts, seen, strict=True)
        )
    assert seen == counts


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    hundredths=st.lists(st.integers(1, 100), min_size=2, max_size=2),
    begin=st.integers(0, 10**12),
    size=st.integers(0, 10**6),
)
def test_any_window_is_within_two_samples_of_its_shares(hundredths: list[int], begin: int, size: int) -> None:
    law, medicine = hundredths
    mixture = build("weights", {"law": law / 100, "medicine": medicine / 100})

    first, last = mixture.counts(begin), mixture.counts(begin + size)

    assert sum(last) - sum(first) == size
    for before, after, share in zip(first, last, hundredths, strict=True):
        assert abs(after - before - size * share / sum(hundredths)) < 2


def test_whole_periods_are_exact_anywhere() -> None:
    mixture = build("weights", {"law": 0.7, "medicine": 0.3})

    for begin in range(40):
        first, last = mixture.counts(begin), mixture.counts(begin + 1000)
        assert [b - a for a, b in zip(first, last, strict=True)] == [700, 300]
    assert mixture.notes == ()


def test_weights_need_not_add_up_to_one() -> None:
    assert build("weights", {"law": 3, "medicine": 1}).counts(4000) == (3000, 1000)


def test_weights_without_a_small_common_denominator_are_rounded_and_it_is_said() -> None:
    mixture = build("weights", {"law": 0.123456789, "medicine": 1.0})

    assert sum(mixture.counts(10_000)) == 10_000
    assert mixture.counts(10_000)[0] == round(10_000 * 0.123456789 / 1.123456789)
    assert len(mixture.notes) == 1
    assert "weights are rounded to 1/10,000" in mixture.notes[0]


def test_the_smallest_share_is_not_rounded_away() -> None:
    mixture = build("weights", {"law": 0.0000001, "medicine": 1.0})

    assert mixture.counts(10_000) == (1, 9_999)


def test_all_sources_together_are_one_stream() -> None:
    mixture = build("documents", {})

    assert mixture.streams == (EVERYTHING,)
    assert mixture.counts(12345) == (12345,)


def test_replay_has_its_ratio_in_each_phase() -> None:
    mixture = build("weights", {"law": 1, "medicine": 3}, (0, 0.2), (100, 0.0), (300, 0.5))

    assert mixture.streams == ("law", "medicine", "general")
    at = [mixture.counts(8 * step) for step in (0, 100, 300, 500)]
    assert at == [(0, 0, 0), (160, 480, 160), (560, 1680, 160), (760, 2280, 960)]
    for phase, stop in ((0, 800), (1, 2400), (2, 4000)):
        assert drift(mixture, phase, stop) < 1


def test_replay_goes_with_all_other_documents_as_one_stream() -> None:
    mixture = build("documents", {}, (0, 0.25))

    assert mixture.streams == (EVERYTHING, "general")
    assert mixture.counts(8000) == (6000, 2000)


def test_a_phase_may_be_replay_alone() -> None:
    mixture = build("documents", {}, (0, 1.0), (1, 0.0))

    assert [mixture.counts(position) for position in (8, 16)] == [(0, 8), (8, 8)]


def test_epochs_are_passes_over_each_source() -> None:
    # 2 x 1,000 + 1 x 3,000 rows in 625 steps of 8: each is read as often as asked for.
    mixture = build("epochs", {"law": 2, "medicine": 1, "general": 0.5}, max_steps=5250 // 8)

    assert mixture.counts(5250) == (2000, 3000, 250)
    assert mixture.notes == ()


def test_tokens_are_counted_in_each_sources_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # The rows of medicine hold half as many tokens: twice as many of them are needed.
    monkeypatch.setitem(SOURCES, "medicine", packed(3000, tokens=150_000))

    mixture = build("tokens", {"law": 40_000, "medicine": 40_000, "general": 40_000}, max_steps=200)

    assert mixture.counts(1600) == (400, 800, 400)
    assert mixture.notes == ()


def test_shares_that_the_run_does_not_add_up_to_are_said() -> None:
    mixture = build("epochs", {"law": 2, "medicine": 1, "general": 1}, max_steps=1375)

    (note,) = mixture.notes
    assert "shares by epochs ask for 5,500 samples, the run reads 11,000" in note
    assert "each is read 2.00 times as much" in note


def test_replay_takes_its_part_of_the_run_from_the_epochs() -> None:
    mixture = build("epochs", {"law": 1, "medicine": 1}, (0, 0.2), max_steps=625)

    assert mixture.counts(5000) == (1000, 3000, 1000)
    assert mixture.notes == ()


@pytest.mark.parametrize(
    ("by", "shares", "phases", "missing"),
    [
        ("weights", {"law": 1, "absent": 1}, (), "absent"),
        ("epochs", {"law": 1, "empty": 1}, (), "empty"),
        ("tokens", {"law": 1, "empty": 1}, (), "empty"),
    ],
)
def test_a_source_without_rows_is_named(
    by: str, shares: dict[str, float], phases: tuple[()], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "empty", packed(0))

    with pytest.raises(DataError, match=f"the source {missing} has no training document") as caught:
        build(by, shares, *phases)
    assert "\n" not in str(caught.value)


def test_replay_needs_something_to_be_mixed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("law", "medicine"):
        monkeypatch.setitem(SOURCES, name, packed(0))

    with pytest.raises(DataError, match="only the replay source general has training documents"):
        build("documents", {}, (0, 0.5))
