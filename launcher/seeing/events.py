"""An event of events.jsonl as one line for a person: pure."""

import time
from collections.abc import Mapping
from typing import Any

_SILENT = frozenset({"self_test", "memory"})
_LONGEST = 200
_TIMES = frozenset({"event", "time", "incarnation"})


def say_event(event: Mapping[str, Any]) -> str:
    """Write when, what, and its facts; nothing for what only the file needs."""
    kind = str(event.get("event", ""))
    if not kind or kind in _SILENT:
        return ""
    said = ", ".join(f"{key} {_plain(value)}" for key, value in event.items() if key not in _TIMES)
    line = f"{say_time(event.get('time'))} {kind}{': ' if said else ''}{said}"
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def say_time(moment: object) -> str:
    """Write a time of day of this machine's zone; blanks where there is none."""
    if not isinstance(moment, int | float) or isinstance(moment, bool):
        return "--:--:--"
    return time.strftime("%H:%M:%S", time.localtime(moment))


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
