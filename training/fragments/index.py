"""The map of a checkpoint's tensors: parameter -> [start, stop) of its elements -> file and byte offset.

A parameter is one line of elements, in the order in which they lie in memory. Each rank writes those that it
alone holds, with all that belongs to them (fp32 weight, optimizer moments), so a cut of the model over ranks
is no property of the checkpoint: whoever loads it asks for the elements that its own cut needs. A rank that
holds some columns of a matrix writes a stretch of these, and the map has one row for it as for any other.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from training.errors import CheckpointError
from training.fragments.runs import Runs, Stretch

INDEX = "index.json"
WEIGHT = "weight"
"""The key of a parameter's own value, in fp32 where the optimizer keeps it so; others are the optimizer's."""

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes per element, by the names that safetensors gives to dtypes."""

_ALIGNMENT = 64  # bytes: what any dtype and vector instruction asks for


class Row(NamedTuple):
    """A stretch of a parameter's elements lies in file number ``file``, from byte ``offset`` on."""

    start: int
    stop: int
    file: int
    offset: int
    runs: Runs | None = None

    @property
    def stretch(self) -> Stretch:
        """Which elements these are."""
        return Stretch(self.start, self.stop, self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a checkpoint."""

    shape: tuple[int, ...]
    keys: dict[str, str]
    """What is kept of each element, with its dtype, in the order in which it lies in the files."""

    scalars: dict[str, float]
    """What the optimizer keeps once per parameter: the number of its steps."""

    rows: tuple[Row, ...] = ()
    """By ``start``."""

    @property
    def numel(self) -> int:
        """Elements of the whole parameter."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one rank has written of one parameter; ``offset`` counts from the beginning of its file."""

    name: str
    shape: tuple[int, ...]
    keys: dict[str, str]
    scalars: dict[str, float]
    start: int
    stop: int
    offset: int
    runs: Runs | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """All parameters of a checkpoint, by name, and the files that they lie in."""

    files: tuple[str, ...]
    parameters: dict[str, Parameter]


def lay_out(length: int, keys: Mapping[str, str], offset: int) -> tuple[dict[str, int], int]:
    """Place the keys of ``length`` elements behind one another from byte ``offset`` on, each aligned.

    Returns:
        The first byte of each key, and the first byte that is free behind them.
    """
    places = {}
    for key, dtype in keys.items():
        offset = -(-offset // _ALIGNMENT) * _ALIGNMENT
        places[key] = offset
        offset += length * ITEM_BYTES[dtype]
    return places, offset


def build_index(files: Sequence[str], pieces: Sequence[Iterable[Piece]]) -> Index:
    """Merge what the ranks have written; ``pieces[n]`` lie in ``files[n]``.

    Raises:
        CheckpointError: Some elements were written by nobody, or two ranks disagree about a parameter.
    """
    known: dict[str, Piece] = {}
    rows: dict[str, list[Row]] = {}
    for number, written in enumerate(pieces):
        for piece in written:
            first = known.setdefault(piece.name, piece)
            if (first.shape, first.keys, first.scalars) != (piece.shape, piece.keys, piece.scalars):
                raise CheckpointError(
                    f"{piece.name}: two ranks hold other states of it ({first.scalars}, {piece.scalars}); "
                    "please report this"
                )
            rows.setdefault(piece.name, []).append(
                Row(piece.start, piece.stop, number, piece.offset, piece.runs)
            )
    parameters = {
        name: Parameter(
            shape=piece.shape, keys=piece.keys, scalars=piece.scalars, rows=tuple(sorted(rows[name]))
        )
        for name, piece in known.items()
    }
    for name, parameter in parameters.items():
        _check_whole(name, parameter)
    return Index(tuple(files), parameters)


def _check_whole(name: str, parameter: Parameter) -> None:
    """Make sure that the columns held are all columns, and that of each all elements are held."""
    numel = parameter.numel
    by_columns: dict[Runs, list[Row]] = defaultdict(list)
    for row in parameter.rows:
        by_columns[row.runs or Runs(0, numel, numel)].append(row)
    column, stride = 0, max(runs.stride for runs in by_columns)
    for runs, rows in sorted(by_columns.items()):
        reached = 0
        for row in rows:
            if row.start > reached:
                break
            reached = max(reached, row.stop)
        if runs.stride != stride or runs.first != column or reached * stride != numel * runs.run:
            raise CheckpointError(
                f"{name}: element {reached} of {numel} is held by no rank; please report this"
            )
        column += runs.run
    if column != stride:
        raise CheckpointError(f"{name}: column {column} of {stride} is held by no rank; please report this")


def dump_index(index: Index) -> bytes:
    """Write an index as JSON, one line per parameter."""
    lines = [f"{json.dumps(name)}: {json.dumps(_plain(entry))}" for name, entry in index.parameters.items()]
    parameters = ",\n".join(lines)
    return f'{{"files": {json.dumps(index.files)}, "parameters": {{\n{parameters}\n}}}}\n'.encode()


def _plain(parameter: Parameter) -> dict[str, Any]:
    return {
        "shape": parameter.shape,
        "keys": parameter.keys,
        "scalars": parameter.scalars,
        # Four numbers, and three more where these are columns of a matrix.
        "rows": [(*row[:-1], *(row.runs or ())) for row in parameter.rows],
    }


def read_index(folder: Path) -> Index:
    """Read the index of a checkpoint.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        values: Any = json.loads((folder / INDEX).read_bytes())
        parameters = {
            name: Parameter(
                shape=tuple(entry["shape"]),
                keys=entry["keys"],
                scalars=entry["scalars"],
                rows=tuple(_read_row(*row) for row in entry["rows"]),
            )
            for name, entry in values["parameters"].items()
        }
        return Index(tuple(values["files"]), parameters)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{folder}: {INDEX} is missing or damaged") from None


def _read_row(start: int, stop: int, file: int, offset: int, *runs: int) -> Row:
    return Row(start, stop, file, offset, Runs(*runs) if runs else None)
