"""Columns of a matrix as runs of its elements: found again in any other cut, and missed when missing."""

import random
from pathlib import Path

import numpy as np
import pytest

from training.errors import CheckpointError
from training.fragments.index import INDEX, Piece, build_index, dump_index, lay_out, read_index
from training.fragments.reader import FragmentReader
from training.fragments.runs import Overlap, Runs, Stretch, find_overlaps

LINES, WIDTH = 7, 12
NUMEL = LINES * WIDTH


def columns(size: int, index: int) -> Runs:
    return Runs(index * WIDTH // size, WIDTH // size, WIDTH)


def elements(stretch: Stretch) -> list[int]:
    """List the numbers of a stretch's elements, one by one."""
    if stretch.runs is None:
        return list(range(stretch.start, stretch.stop))
    first, run, stride = stretch.runs
    return [first + place // run * stride + place % run for place in range(stretch.start, stretch.stop)]


def draw(dice: random.Random) -> Stretch:
    size = dice.choice([1, 2, 3, 4])
    runs = columns(size, dice.randrange(size)) if size > 1 else None
    start, stop = sorted(dice.randrange(NUMEL // size + 1) for _ in range(2))
    return Stretch(start, stop, runs)


def pairs(part: Overlap) -> list[tuple[int, int]]:
    return [
        (part.place + row * part.pitch + column, part.other_place + row * part.other_pitch + column)
        for row in range(part.rows)
        for column in range(part.width)
    ]


def test_two_stretches_overlap_in_the_elements_that_both_have_and_in_few_pieces() -> None:
    dice = random.Random(3)
    for _ in range(2000):
        one, other = draw(dice), draw(dice)
        here, there = elements(one), elements(other)
        parts = list(find_overlaps(one, other, NUMEL))
        found = [pair for part in parts for pair in pairs(part)]
        assert all(here[place] == there[other_place] for place, other_place in found)
        assert sorted(here[place] for place, _ in found) == sorted(set(here) & set(there))
        assert len(parts) <= 9


def write(folder: Path, stretches: list[Stretch]) -> list[Piece]:
    """Write each stretch of 0, 1, 2 ... into a file of its own."""
    pieces = []
    for number, (start, stop, runs) in enumerate(stretches):
        keys = {"weight": "F32", "exp_avg": "F64"}
        values = np.array(elements(Stretch(start, stop, runs)))
        places, size = lay_out(stop - start, keys, 0)
        data = bytearray(size)
        for key, dtype in (("weight", np.float32), ("exp_avg", np.float64)):
            part = values.astype(dtype).tobytes()
            data[places[key] : places[key] + len(part)] = part
        (folder / f"{number}.bin").write_bytes(data)
        pieces.append(
            Piece(
                name="w",
                shape=(LINES, WIDTH),
                keys=keys,
                scalars={},
                start=start,
                stop=stop,
                offset=0,
                runs=runs,
            )
        )
    return pieces


HALVES = [Stretch(0, 20, columns(2, 0)), Stretch(20, 42, columns(2, 0)), Stretch(0, 42, columns(2, 1))]


def test_a_reader_finds_every_element_of_any_cut_in_the_files_of_another(tmp_path: Path) -> None:
    pieces = write(tmp_path, HALVES)
    index = build_index([f"{number}.bin" for number in range(3)], [[piece] for piece in pieces])
    (tmp_path / INDEX).write_bytes(dump_index(index))
    assert read_index(tmp_path) == index
    dice = random.Random(4)
    with FragmentReader(tmp_path) as reader:
        for _ in range(300):
            wanted, key = draw(dice), dice.choice(["weight", "exp_avg"])
            found = np.full(wanted.stop - wanted.start, -1.0)
            for part, data in reader.read("w", key, wanted):
                values = np.ascontiguousarray(data).view(np.float32 if key == "weight" else np.float64)
                for place, value in zip((here for here, _ in pairs(part)), values.ravel(), strict=True):
                    found[place] = value
            assert found.tolist() == elements(wanted)


@pytest.mark.parametrize(
    "held",
    [
        HALVES[1:],
        [HALVES[0], HALVES[2]],
        HALVES[:2],
        HALVES[2:],
        [*HALVES[:2], Stretch(0, 28, columns(3, 2))],
        [*HALVES[:2], Stretch(0, 84)],
    ],
    ids=["first run", "later runs", "last columns", "first columns", "columns between", "two kinds"],
)
def test_a_checkpoint_that_lacks_some_columns_is_refused(tmp_path: Path, held: list[Stretch]) -> None:
    pieces = write(tmp_path, held)
    with pytest.raises(CheckpointError, match=r"^w: .* is held by no rank; please report this$"):
        build_index([f"{number}.bin" for number in range(len(held))], [[piece] for piece in pieces])


def test_ordinary_rows_are_written_as_four_numbers_and_columns_as_seven(tmp_path: Path) -> None:
    plain = build_index(["0.bin"], [write(tmp_path, [Stretch(0, NUMEL)])])
    assert b'"rows": [[0, 84, 0, 0]]' in dump_index(plain)
    cut = build_index(["0.bin", "1.bin", "2.bin"], [[piece] for piece in write(tmp_path, HALVES)])
    assert b"[0, 42, 2, 0, 6, 6, 12]" in dump_index(cut)
