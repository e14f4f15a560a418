"""Which node a rank is on, by what the launcher says: a rank that never answers cannot tell it."""

import itertools
import os
import re
from collections.abc import Iterator, Mapping

_NODE_NAME = "METIER_NODE_NAME"
_BRACKETS = re.compile(r"\[([^\]]*)\]")


def find_node(environ: Mapping[str, str]) -> str:
    """Name this node as the scheduler knows it, so that it can be excluded by that name."""
    return environ.get(_NODE_NAME) or environ.get("SLURMD_NODENAME") or os.uname().nodename


def place_ranks(environ: Mapping[str, str], world_size: int) -> list[str | None]:
    """Name the node of each rank, where Slurm says it; ranks fill one node after the other."""
    nodes = expand_nodes(environ.get("SLURM_STEP_NODELIST", ""))
    counts = list(_counts(environ.get("SLURM_STEP_TASKS_PER_NODE", "")))
    placed = [node for node, count in zip(nodes, counts, strict=False) for _ in range(count)]
    return list(placed) if len(placed) == world_size else [None] * world_size


def expand_nodes(text: str) -> list[str]:
    """Write out Slurm's list of nodes: a[1-2,4],b gives a1 a2 a4 b."""
    return [name for part in _split(text) for name in _expand(part)]


def _counts(text: str) -> Iterator[int]:
    # 2(x3),1 means 2 2 2 1.
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        yield from itertools.repeat(int(count), int(times or 1))


def _split(text: str) -> list[str]:
    """Cut at the commas that are in no brackets."""
    return [part for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text) if part]


def _expand(part: str) -> list[str]:
    found = _BRACKETS.search(part)
    if found is None:
        return [part]
    before, rest = part[: found.start()], _expand(part[found.end() :])
    numbers = [number for piece in found[1].split(",") for number in _range(piece)]
    return [f"{before}{number}{after}" for number in numbers for after in rest]


def _range(piece: str) -> list[str]:
    first, dash, last = piece.partition("-")
    if not dash:
        return [first]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
