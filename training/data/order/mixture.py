"""Which source gives how many of the first samples of a run: exact, without chance and without drift.

Weights with a common denominator P become a word of P places, repeated. In every prefix of it each source has
its quota, rounded up or down: the difference to position x weight is below one sample at every position of a
phase, so in every window of a phase below two. Places are given to the source whose quota falls due first
(Steiner and Yeomans 1993, "Level schedules for mixed-model, just-in-time processes").
"""

import heapq
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from training.config.sources import MixtureConfig
from training.data.order.packing import PackingCounts
from training.errors import DataError

MAX_PERIOD = 10_000
"""Weights without so small a common denominator are rounded to multiples of 1 / 10,000."""

EVERYTHING = ""
"""The stream of all sources together (the replay source aside), each document once an epoch."""

NOTABLE = 0.01
"""Shares that ask for this much more or less than the run reads are worth a note."""


@dataclass(frozen=True, slots=True, eq=False)
class MixturePhase:
    """The same weights from one position on."""

    start: int
    counts_before: tuple[int, ...]
    """Samples of each stream before ``start``."""

    table: npt.NDArray[np.int32]
    """int32 [P + 1, K]: samples of each stream in the first 0..P places of the word."""

    def counts(self, position: int) -> tuple[int, ...]:
        """Count each stream's samples among the first ``position`` of the run, if the phase holds so long."""
        periods, rest = divmod(position - self.start, len(self.table) - 1)
        whole, part = self.table[-1].tolist(), self.table[rest].tolist()
        return tuple(
            before + periods * count + more
            for before, count, more in zip(self.counts_before, whole, part, strict=True)
        )

    @property
    def weights(self) -> tuple[float, ...]:
        """Each stream's share of the samples."""
        period = len(self.table) - 1
        return tuple(count / period for count in self.table[-1].tolist())


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Mixture:
    """How many samples each stream has given at any position."""

    streams: tuple[str, ...]
    """A source's name, or ``EVERYTHING``."""

    phases: tuple[MixturePhase, ...]
    notes: tuple[str, ...]
    """What the user should know: rounded weights, shares that the run does not add up to."""

    def counts(self, position: int) -> tuple[int, ...]:
        """Count each stream's samples among the first ``position`` of the run."""
        return self.phases[bisect_right(self.phases, position, key=_start) - 1].counts(position)

    def most_per_batch(self, global_batch_size: int) -> tuple[int, ...]:
        """Count each stream's samples in a global batch of the phase that has most of it; at least 1."""
        most = [max(weights) for weights in zip(*(phase.weights for phase in self.phases), strict=True)]
        return tuple(max(1, round(global_batch_size * weight)) for weight in most)


def build_mixture(
    config: MixtureConfig, sources: Mapping[str, PackingCounts], *, global_batch_size: int, max_steps: int
) -> Mixture:
    """Turn shares into weights and lay them out over the run.

    ``epochs`` and ``tokens`` say how often, or how many tokens, of each source the run shall read. As
    ``loop.max_steps`` says already how much is read in all, only their proportions count; a note tells by
    how much the two differ.

    Args:
        config: The rules of ``training.rules.check`` hold for it.
        sources: What was packed of each source.
        global_batch_size: Samples per step.
        max_steps: Steps of the run.

    Raises:
        DataError: A source that shall be read has no row.
    """
    notes: list[str] = []
    wanted = _weigh_sources(config, sources)
    total = sum(wanted.values())
    weights = [weight / total for weight in wanted.values()]
    replay = config.replay
    streams = tuple(wanted) if replay is None else (*wanted, _find_rows(replay.source, sources))
    ratios = {0: Fraction(0)}
    if replay is not None:
        ratios = {phase.from_step * global_batch_size: _exact(phase.ratio) for phase in replay.phases}
    phases: list[MixturePhase] = []
    for start, ratio in ratios.items():
        shares = [weight * (1 - ratio) for weight in weights] + ([ratio] if replay else [])
        before = phases[-1].counts(start) if phases else (0,) * len(streams)
        phases.append(MixturePhase(start, before, _tabulate(_find_period(shares, streams, notes))))
    mixture = Mixture(streams=streams, phases=tuple(phases), notes=tuple(notes))
    if config.by in {"documents", "weights"}:
        return mixture
    given = sum(mixture.counts(global_batch_size * max_steps)[: len(weights)])
    return replace(mixture, notes=(*notes, *_compare(config.by, asked=float(total), given=given)))


def spread_word(counts: Sequence[int]) -> list[int]:
    """Arrange ``counts[i]`` copies of each i so that every prefix of length t has t * counts[i] / P, +-1.

    The x-th copy (from 0) may stand where it is not ahead of its quota, from x * P / counts[i] on, and must
    before it is behind, at ceil((x + 1) * P / counts[i]); the earliest due goes first.
    """
    period = sum(counts)
    coming = [(1, number, 0) for number, count in enumerate(counts) if count]
    due: list[tuple[int, int, int]] = []
    word: list[int] = []
    for place in range(1, period + 1):
        while coming and coming[0][0] <= place:
            _, number, copy = heapq.heappop(coming)
            heapq.heappush(due, (-(-(copy + 1) * period // counts[number]), number, copy))
        _, number, copy = heapq.heappop(due)
        word.append(number)
        if copy + 1 < counts[number]:
            heapq.heappush(coming, ((copy + 1) * period // counts[number] + 1, number, copy + 1))
    return word


def _weigh_sources(config: MixtureConfig, sources: Mapping[str, PackingCounts]) -> dict[str, Fraction]:
    match config.by:
        case "documents":
            replayed = config.replay.source if config.replay else None
            if not any(counts.rows for name, counts in sources.items() if name != replayed):
                raise DataError(
                    f"data.mixture: only the replay source {replayed} has training documents; there is "
                    "nothing to mix it with"
                )
            return {EVERYTHING: Fraction(1)}
        case "weights":
            return {_find_rows(name, sources): _exact(share) for name, share in config.shares.items()}
        case "epochs":
            return {
                name: _exact(share) * sources[_find_rows(name, sources)].rows
                for name, share in config.shares.items()
            }
        case "tokens":
            return {
                name: _exact(share) * sources[_find_rows(name, sources)].rows / sources[name].tokens
                for name, share in config.shares.items()
            }


def _find_rows(name: str, sources: Mapping[str, PackingCounts]) -> str:
    if name not in sources or not sources[name].rows:
        raise DataError(
            f"data.mixture: the source {name} has no training document that is packed; take it out of "
            "data.sources and data.mixture, or see `metier audit` for what became of its documents"
        )
    return name


def _start(phase: MixturePhase) -> int:
    return phase.start


def _exact(number: float) -> Fraction:
    # As the user wrote it: 0.1 is a tenth.
    return Fraction(str(number))


def _find_period(shares: Sequence[Fraction], streams: Sequence[str], notes: list[str]) -> tuple[int, ...]:
    """Write shares that add up to 1 as counts over one period."""
    period = math.lcm(*(share.denominator for share in shares))
    if period <= MAX_PERIOD:
        return tuple(int(share * period) for share in shares)
    # Largest remainders; no source that has a share goes without.
    exact = [share * MAX_PERIOD for share in shares]
    counts = [max(int(count), 1 if count else 0) for count in exact]
    while (missing := MAX_PERIOD - sum(counts)) != 0:
        gaps = [wanted - count for wanted, count in zip(exact, counts, strict=True)]
        if missing > 0:
            counts[gaps.index(max(gaps))] += 1
        else:
            counts[counts.index(max(counts))] -= 1
    worst = max(range(len(shares)), key=lambda i: abs(counts[i] - shares[i] * MAX_PERIOD))
    notes.append(
        f"data.mixture: weights are rounded to 1/{MAX_PERIOD:,}; {streams[worst]} has "
        f"{counts[worst] / MAX_PERIOD:.4f} instead of {float(shares[worst]):.6f}"
    )
    return tuple(counts)


@lru_cache(maxsize=16)
def _tabulate(counts: tuple[int, ...]) -> npt.NDArray[np.int32]:
    word = np.asarray(spread_word(counts))
    table = np.zeros((len(word) + 1, len(counts)), dtype=np.int32)
    np.cumsum(word[:, None] == np.arange(len(counts)), axis=0, out=table[1:])
    return table


def _compare(by: str, *, asked: float, given: int) -> list[str]:
    if abs(asked - given) <= NOTABLE * given:
        return []
    return [
        f"data.mixture: shares by {by} ask for {asked:,.0f} samples, the run reads {given:,} of these "
        f"sources: their proportions count, each is read {given / asked:.2f} times as much as it says"
    ]
