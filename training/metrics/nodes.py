"""The readings of all nodes, handed out with the steps during which they were taken."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from training.layout import RunLayout
from training.metrics.lines import NEWLINE, parse_lines

_NO_READINGS = frozenset({"time", "node"})


class NodeReadings:
    """Reads every node's file as it grows."""

    def __init__(self, layout: RunLayout) -> None:
        """Read from the beginning."""
        self._layout = layout
        self._places: dict[Path, int] = {}
        self._waiting: list[dict[str, Any]] = []

    def read(self) -> None:
        """Look what has come."""
        for path in self._layout.system_files():
            place = self._places.get(path, 0)
            try:
                with path.open("rb") as stream:
                    stream.seek(place)
                    content = stream.read()
            except OSError:
                continue
            whole = content.rfind(NEWLINE) + 1
            self._places[path] = place + whole
            lines = parse_lines(content[:whole])
            self._waiting += [line for line in lines if isinstance(line.get("time"), int | float)]

    def take(self, until: float) -> dict[str, float]:
        """Give the means of what was read up to a moment and not given yet, as ``system/NODE/NAME``."""
        taken = [line for line in self._waiting if line["time"] <= until]
        self._waiting = [line for line in self._waiting if line["time"] > until]
        return find_means(taken)


def find_means(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Take the mean of each of a node's readings."""
    values: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in _NO_READINGS and isinstance(value, int | float):
                values.setdefault(f"system/{line.get('node', 'node')}/{name}", []).append(float(value))
    return {name: sum(each) / len(each) for name, each in values.items()}
