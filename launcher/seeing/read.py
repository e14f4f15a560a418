"""Reads what a living, a killed or an old run has written: whatever is torn or missing is nothing."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from training.metrics.lines import read_lines

_TAIL_BYTES = 1 << 18


def read_object(path: Path) -> dict[str, Any]:
    """Read one JSON object; an empty one where there is none."""
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    return {}


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a file of JSON lines; none where it cannot be read."""
    with contextlib.suppress(OSError):
        return read_lines(path)
    return []


def read_tail(path: Path, lines: int | None = None, most_bytes: int = _TAIL_BYTES) -> list[str]:
    """Read the last lines of a text; none where it cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        start = max(0, size - most_bytes)
        stream.seek(start)
        found = stream.read().decode("utf-8", "replace").splitlines()
        whole = found[1:] if start else found
        return whole if lines is None else whole[len(whole) - min(lines, len(whole)) :]
    return []


def number(values: dict[str, Any], key: str) -> float | None:
    """Give a number of a record; None where it has none."""
    value = values.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def whole_number(values: dict[str, Any], key: str) -> int | None:
    """Give a whole number of a record; None where it has none."""
    found = number(values, key)
    return None if found is None else int(found)


def text(values: dict[str, Any], key: str) -> str:
    """Give a text of a record; nothing where it has none."""
    value = values.get(key)
    return value if isinstance(value, str) else ""


def inner(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Go down into a record; an empty one where it does not lead that far."""
    for key in keys:
        value = values.get(key)
        if not isinstance(value, dict):
            return {}
        values = value
    return values


def modified(path: Path) -> float:
    """Give when a file was last written, seconds since 1970; 0 where there is none."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
