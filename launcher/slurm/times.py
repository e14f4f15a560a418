"""Slurm's way of writing a time limit, both ways: the only file that knows it."""

import re

UNLIMITED = ("UNLIMITED", "INFINITE", "infinite")
"""How scontrol and sinfo write that there is no limit."""

_FORM = re.compile(r"(?P<days>\d+)-(?P<clock>\d+(?::\d+){0,2})|(?P<parts>\d+(?::\d+){0,2})")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def parse_time(text: str) -> int | None:
    """Read a time limit in seconds; None where there is no limit.

    One number is minutes, two are minutes:seconds, three are hours:minutes:seconds; behind a dash they are
    hours, hours:minutes and hours:minutes:seconds. Zero asks for no limit (man sbatch, --time).

    Raises:
        ValueError: It is none.
    """
    if text in UNLIMITED:
        return None
    form = _FORM.fullmatch(text)
    if form is None:
        raise ValueError(f"{text} is no time as Slurm writes it: 90, 12:00:00 or 2-00:00:00")
    parts = [int(part) for part in (form["clock"] or form["parts"]).split(":")]
    if form["days"]:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 1:
        hours, minutes, seconds = 0, parts[0], 0
    else:
        hours, minutes, seconds = (0, *parts)[-3:]
    return int(form["days"] or 0) * _DAY + hours * _HOUR + minutes * _MINUTE + seconds or None


def say_time(text: str) -> str:
    """Write a time limit for people, as it was given."""
    return text if parse_time(text) is not None else f"{text} (no time limit)"


def format_time(seconds: int | None) -> str:
    """Write a time limit as Slurm does: hours:minutes:seconds, with days in front where there are any."""
    if seconds is None:
        return "UNLIMITED"
    days, rest = divmod(seconds, _DAY)
    hours, rest = divmod(rest, _HOUR)
    minutes, rest = divmod(rest, _MINUTE)
    clock = f"{hours:02}:{minutes:02}:{rest:02}"
    return f"{days}-{clock}" if days else clock
