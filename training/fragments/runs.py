"""Which elements of a parameter a rank holds: a stretch of its line of elements, or of some of its columns.

Tensor parallelism cuts some matrices by columns. In the line of all elements, row after row, a rank's columns
are *runs* at even distances; laid end to end they are a line again, of which ZeRO cuts stretches.
"""

from collections.abc import Iterator
from typing import NamedTuple


class Runs(NamedTuple):
    """Elements first + k x stride + [0, run) of a flattened parameter, k = 0, 1, ...: a matrix' columns."""

    first: int
    run: int
    stride: int


class Stretch(NamedTuple):
    """Elements [start, stop) of a flattened parameter or, laid end to end, of those that ``runs`` picks."""

    start: int
    stop: int
    runs: Runs | None = None


class Overlap(NamedTuple):
    """What two stretches share: ``rows`` pieces of ``width`` elements, evenly apart in both."""

    rows: int
    width: int
    place: int
    """Of the first piece in the one stretch, counted from its start."""

    pitch: int
    """From one piece to the next there."""

    other_place: int
    other_pitch: int


class _Block(NamedTuple):
    """A rectangle of a parameter that is looked at as lines of ``stride`` elements."""

    place: int
    line: int
    lines: int
    column: int
    width: int


def find_overlaps(one: Stretch, other: Stretch, numel: int) -> Iterator[Overlap]:
    """Say where two stretches of a parameter of ``numel`` elements hold the same ones, and where these lie.

    At most nine rectangles, however many runs there are: each stretch is the end of a run, whole runs, and
    the beginning of one. Where both have runs they are equally far apart: as far as the matrix is wide.
    """
    stride = (one.runs or other.runs or Runs(0, numel, numel)).stride
    whole = Runs(0, stride, stride)
    mine, theirs = one.runs or whole, other.runs or whole
    for here in _cut(one, mine):
        for there in _cut(other, theirs):
            line, column = max(here.line, there.line), max(here.column, there.column)
            lines = min(here.line + here.lines, there.line + there.lines) - line
            width = min(here.column + here.width, there.column + there.width) - column
            if lines > 0 and width > 0:
                yield Overlap(
                    rows=lines,
                    width=width,
                    place=here.place + (line - here.line) * mine.run + column - here.column,
                    pitch=mine.run,
                    other_place=there.place + (line - there.line) * theirs.run + column - there.column,
                    other_pitch=theirs.run,
                )


def _cut(stretch: Stretch, runs: Runs) -> Iterator[_Block]:
    reached = stretch.start
    while reached < stretch.stop:
        line, column = divmod(reached, runs.run)
        rest = stretch.stop - reached
        whole_runs = 0 if column else rest // runs.run
        width = runs.run if whole_runs else min(runs.run - column, rest)
        yield _Block(reached - stretch.start, line, whole_runs or 1, runs.first + column, width)
        reached += width * (whole_runs or 1)
