"""JSON lines: one object per line. What has no end yet, or never got one, is no line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NEWLINE = b"\n"


def encode_line(value: Mapping[str, Any]) -> bytes:
    """Lay out one object, without the end of the line."""
    return json.dumps(value, ensure_ascii=False, default=str).encode()


def decode_line(line: bytes) -> dict[str, Any] | None:
    """Read one object; None of what is none."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def parse_lines(content: bytes) -> list[dict[str, Any]]:
    """Parse complete lines; what is torn is no record and is skipped."""
    return [value for line in content.split(NEWLINE) if (value := decode_line(line)) is not None]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read every whole line; none when the file is missing. A line that is just being written is skipped."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return parse_lines(content)
