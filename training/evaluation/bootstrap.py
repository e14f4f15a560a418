"""Confidence intervals by the bootstrap: percentile, over families, paired where two are compared.

Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979); resampling whole
groups of related observations: Davison and Hinkley, "Bootstrap Methods and their Application", section 3.8.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number measured on a sample of documents, and the interval of its confidence."""

    value: float
    low: float
    high: float

    def exp(self) -> "Estimate":
        """Map loss to perplexity; an interval survives any monotone map."""
        return Estimate(value=math.exp(self.value), low=math.exp(self.low), high=math.exp(self.high))

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly on one side of zero."""
        return self.low > 0 or self.high < 0


class Resampler:
    """Draws documents with replacement, all documents of a family together, always the same draws.

    Documents of one family resemble each other (four questions about one code): drawing them one by
    one would pretend that there are more independent ones, and give too narrow intervals.
    """

    def __init__(self, families: Sequence[str], *, samples: int, confidence: float, seed: int) -> None:
        """Draw once; every estimate of this resampler uses the same draws, so that pairs stay pairs.

        Args:
            families: Of each document; documents with the same one are drawn together.
            samples: How many resamples.
            confidence: Coverage of the intervals, 0..1.
            seed: Of the draws.
        """
        names, self._group_of = np.unique(np.asarray(families), return_inverse=True)
        self.groups = len(names)
        self._confidence = confidence
        generator = np.random.default_rng(seed)
        uniform = np.full(self.groups, 1 / self.groups)
        self._draws = generator.multinomial(self.groups, uniform, size=samples).astype(np.float64)

    def ratio(self, numerators: Floats, denominators: Floats) -> Estimate:
        """Estimate sum(numerators) / sum(denominators): nats per target, or right answers per question."""
        return self._estimate(
            float(numerators.sum() / denominators.sum()), self._resample(numerators, denominators)
        )

    def change(self, before: Floats, after: Floats, denominators: Floats) -> Estimate:
        """Estimate the difference after - before of two ratios on the same documents, paired."""
        drawn = self._resample(after, denominators) - self._resample(before, denominators)
        return self._estimate(float((after.sum() - before.sum()) / denominators.sum()), drawn)

    def relative_change(self, before: Floats, after: Floats) -> Estimate | None:
        """Estimate after / before - 1, paired; None when there was nothing before."""
        if before.sum() == 0:
            return None
        sums_before = self._draws @ self._by_group(before)
        sums_after = self._draws @ self._by_group(after)
        drawn = sums_after[sums_before > 0] / sums_before[sums_before > 0] - 1
        return self._estimate(float(after.sum() / before.sum() - 1), drawn)

    def _resample(self, numerators: Floats, denominators: Floats) -> Floats:
        top, bottom = self._draws @ self._by_group(numerators), self._draws @ self._by_group(denominators)
        # A draw of documents without any target has no ratio.
        return np.asarray(top[bottom > 0] / bottom[bottom > 0], dtype=np.float64)

    def _by_group(self, values: Floats) -> Floats:
        sums = np.bincount(self._group_of, weights=values, minlength=self.groups)
        return sums.astype(np.float64)

    def _estimate(self, value: float, drawn: Floats) -> Estimate:
        tail = (1 - self._confidence) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail])
        return Estimate(value=value, low=float(low), high=float(high))
