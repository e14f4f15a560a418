"""The map of a checkpoint's tensors: parameter -> [start, stop) of its elements -> file and byte offset.

A parameter is one line of elements, in the order in which they lie in memory. Each rank writes those that it
alone holds, with all that belongs to them (fp32 weight, optimizer moments), so a cut of the model over ranks
is no property of the checkpoint: whoever loads it asks for the elements that its own cut needs.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from training.errors import CheckpointError

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
    """Elements [start, stop) of a parameter lie in file number ``file``, from byte ``offset`` on."""

    start: int
    stop: int
    file: int
    offset: int


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
            rows.setdefault(piece.name, []).append(Row(piece.start, piece.stop, number, piece.offset))
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
    reached = 0
    for row in parameter.rows:
        if row.start > reached:
            break
        reached = max(reached, row.stop)
    if reached != parameter.numel:
        raise CheckpointError(
            f"{name}: element {reached} of {parameter.numel} is held by no rank; please report this"
        )


def find_rows(parameter: Parameter, start: int, stop: int) -> Iterator[tuple[int, int, Row]]:
    """Say which rows hold the elements [start, stop): each time [from, to) and the row, without overlap."""
    for row in parameter.rows:
        begin, end = max(start, row.start), min(stop, row.stop)
        if begin < end:
            yield begin, end, row
            start = end


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
        "rows": parameter.rows,
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
                rows=tuple(Row(*row) for row in entry["rows"]),
            )
            for name, entry in values["parameters"].items()
        }
        return Index(tuple(values["files"]), parameters)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{folder}: {INDEX} is missing or damaged") from None
