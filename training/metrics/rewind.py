"""Takes back the lines of steps that the weights do not remember: lost by a kill, or rolled back.

A file of steps then holds each step once. What is taken away was real work: it goes to the file beside it,
and comes back from there when the run goes on from a later checkpoint after all.

A kill at any moment loses no line: the file beside is complete before the file itself is replaced, and what
is in both meanwhile is told apart at the next start, since a line has its time and is never written twice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.files import write_atomically
from training.layout import redone_beside
from training.metrics.lines import NEWLINE, decode_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Where a run goes on."""

    step: int
    samples_seen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewound:
    """What became of a file's lines."""

    taken: int
    """Lines that are now in the file beside it."""

    given_back: int
    """Lines that came from there."""

    torn: int
    """Pieces of lines that were dropped."""

    @property
    def changed(self) -> bool:
        """Whether anything was to be done."""
        return bool(self.taken or self.given_back or self.torn)


def rewind(path: Path, moment: Moment, unwritten: Sequence[bytes] = ()) -> Rewound:
    """Leave in ``path`` the lines that lead to ``moment``, in order; the others go to the file beside it.

    Args:
        path: JSON lines with ``step`` and ``samples_seen``.
        moment: Where the run goes on.
        unwritten: Lines that have never reached ``path``, and are no longer to.

    Raises:
        StorageError: The disk is full or refuses; ``path`` has not changed.
    """
    beside = redone_beside(path)
    for file in (path, beside):
        for leftover in path.parent.glob(f".{file.name}.*.partial"):
            leftover.unlink(missing_ok=True)
    lines, torn = _read_whole(path)
    earlier, torn_beside = _read_whole(beside)
    known = dict.fromkeys([*earlier, *lines, *unwritten])
    kept = find_lines(known, moment)
    taken = [line for line in known if line not in kept and line not in earlier]
    if taken or torn_beside:
        _write(beside, [*earlier, *taken])
    if torn or list(kept) != list(lines):
        _write(path, kept)
    if any(line in kept for line in earlier):
        _write(beside, [line for line in known if line not in kept])
    given_back = sum(line not in lines for line in kept)
    return Rewound(taken=len(taken), given_back=given_back, torn=torn + torn_beside)


def find_lines(lines: Iterable[bytes], moment: Moment) -> dict[bytes, None]:
    """Find the lines of the steps that lead to ``moment``, in order.

    The position in the data only goes up. So a step's line is the one of the highest position below that of
    the step after it: a step that was rolled back has a lower one, or one beyond ``moment``. Of equal ones,
    which a killed start and the next have both written, the last counts.

    Args:
        lines: All that there are.
        moment: The last step wanted.

    Returns:
        They are the keys.
    """
    by_step: dict[int, dict[int, dict[Any, bytes]]] = {}
    for line in lines:
        value = decode_line(line) or {}
        by_position = by_step.setdefault(value["step"], {})
        # Of answers there are several after one step, each of another document.
        by_position.setdefault(value["samples_seen"], {})[value.get("id")] = line
    found: list[list[bytes]] = []
    limit = moment.samples_seen
    for step in sorted((step for step in by_step if step <= moment.step), reverse=True):
        if step == moment.step:
            fitting = by_step[step].keys() & {limit}
        else:
            fitting = {position for position in by_step[step] if position < limit}
        if fitting:
            limit = max(fitting)
            found.append(list(by_step[step][limit].values()))
    return dict.fromkeys(line for group in reversed(found) for line in group)


def _read_whole(path: Path) -> tuple[dict[bytes, None], int]:
    """Read the lines of a file, each once, and count what is torn."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}, 0
    pieces = [piece for piece in content.split(NEWLINE) if piece]
    whole = [piece for piece in pieces if {"step", "samples_seen"} <= (decode_line(piece) or {}).keys()]
    return dict.fromkeys(whole), len(pieces) - len(whole)


def _write(path: Path, lines: Iterable[bytes]) -> None:
    content = b"".join(line + NEWLINE for line in lines)

    def write(partial: Path) -> None:
        partial.write_bytes(content)

    write_atomically(path, write)
