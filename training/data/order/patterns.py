"""Finds rows as patterns: a row is a sum of lengths, so some hundred patterns stand for thousands of rows.

Which lengths wait is one large integer, bit by bit: what fits beside what is found by shifting it.
"""

import numpy as np
import numpy.typing as npt

REUSE = 3
"""A pattern is used at once for a third of what its scarcest length allows: later rows keep their choice."""

TRIPLE_TRIES = 4
"""First pieces that are tried when three shall fill a row to its last token."""

FEW_LENGTHS = 12
"""So few lengths that fit are tried in all their sums; among more, the longest is nearly always as good."""

REACH_STEPS = 24
"""Pieces that are added up in those sums, at most."""

FAR = 3
"""More room than so many of the next piece: it goes in, there will still be a choice of pairs."""


def find_patterns(lengths: npt.NDArray[np.int64], sequence_length: int) -> tuple[list[list[int]], list[int]]:
    """Fill rows of ``sequence_length`` with pieces of ``lengths`` int64 [P], each 1 <= length < row.

    A piece of half a row or more begins a row, the longest first, since it has the least choice. Short pieces
    follow as they come in ``lengths``, so that the mixture of what waits stays what it was; the last two
    or three are chosen to fill the row to its last token.

    Returns:
        The patterns, each the lengths of one row, and for each the number of rows that have it.
    """
    waiting = _Waiting(lengths, sequence_length)
    patterns: list[list[int]] = []
    times: list[int] = []
    while waiting.present:
        pattern = waiting.fill_row()
        patterns.append(pattern)
        times.append(1 + waiting.repeat(pattern))
    return patterns, times


class _Waiting:
    """The pieces that have no row yet, by length."""

    def __init__(self, lengths: npt.NDArray[np.int64], room: int) -> None:
        counts = np.bincount(lengths)
        self._room = room
        self._counts: list[int] = counts.tolist()
        self._longest = len(self._counts) - 1
        self.present = _pack_bits(counts > 0)  # bit l: pieces of length l wait
        self._mirror = _pack_bits(counts[::-1] > 0)  # the same, backwards: bit longest - l
        self._mixture: list[int] = lengths.tolist()

    def fill_row(self) -> list[int]:
        """Choose and take the pieces of one row."""
        counts, left = self._counts, self._room
        longest = self.present.bit_length() - 1
        size = longest if 2 * longest >= left else self._choose(left)
        row: list[int] = []
        while size:
            row.append(size)
            left -= size
            counts[size] -= 1
            if not counts[size]:
                self.present ^= 1 << size
                self._mirror ^= 1 << (self._longest - size)
            fills = left <= self._longest and counts[left]
            size = left if fills or not left else self._choose(left)
        return row

    def repeat(self, row: list[int]) -> int:
        """Take the pieces of further rows of the same pattern; give how many rows."""
        counts = self._counts
        for size in row:
            if counts[size] < REUSE:
                return 0
        more = min([counts[size] // row.count(size) for size in set(row)]) // REUSE
        for size in row:
            counts[size] -= more
        return more

    def _choose(self, left: int) -> int:
        """Choose the next length of a row with ``left`` tokens of room, which no piece fills alone."""
        present = self.present
        wanted = self._mixture.pop() if self._mixture else 1
        if left > FAR * wanted:
            size = _nearest(present, wanted)
            return size if 0 < size < left else 0  # nothing waits: -1
        pairs = present & self._partners(left)
        if not left & 1 and pairs >> (left // 2) & 1 and self._counts[left // 2] == 1:
            pairs ^= 1 << (left // 2)  # its partner would be itself
        if pairs:
            return _nearest(pairs, wanted)
        fits = present & ((1 << left) - 1)
        return self._find_first_of_three(fits, left) or self._find_fullest(fits, left) if fits else 0

    def _partners(self, total: int) -> int:
        """Give, as bits, the lengths that one waiting piece makes up to ``total``."""
        shift = self._longest - total
        return self._mirror >> shift if shift >= 0 else self._mirror << -shift

    def _find_first_of_three(self, fits: int, left: int) -> int:
        if 3 * _lowest(fits) > left:
            return 0
        for wanted in self._mixture[-TRIPLE_TRIES:]:
            size = _nearest(fits, wanted)
            if self.present & self._partners(left - size):
                return size
        return 0

    def _find_fullest(self, fits: int, left: int) -> int:
        """Choose a piece of the largest sum up to ``left``; the longest where there is much choice."""
        longest = fits.bit_length() - 1
        if fits.bit_count() > FEW_LENGTHS or 2 * _lowest(fits) > left:
            return longest
        lengths: list[int] = []
        while fits:
            lengths.append(fits.bit_length() - 1)
            fits ^= 1 << lengths[-1]
        sums, mask = 1, (2 << left) - 1  # bit s: pieces that add up to s wait
        for size in lengths:
            for _ in range(min(self._counts[size], left // size, REACH_STEPS // len(lengths))):
                sums |= sums << size & mask
        best = sums.bit_length() - 1
        return next((size for size in lengths if size <= best and sums >> (best - size) & 1), longest)


def _nearest(among: int, wanted: int) -> int:
    """Find the highest bit not above ``wanted``, else the lowest above."""
    lower = among & ((2 << wanted) - 1)
    return lower.bit_length() - 1 if lower else _lowest(among)


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def _pack_bits(flags: npt.NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")
