"""Slurm's way of writing a time limit, both ways: the only file that knows it."""

import re

UNLIMITED = ("UNLIMITED", "INFINITE", "infinite")
"""How scontrol and sinfo write that there is no limit."""

_FORM = re.compile(
    r"(?:(?P<days>\d+)-(?P<day_hours>\d+)(?::(?P<day_minutes>\d+))?(?::(?P<day_seconds>\d+))?"
    r"|(?P<parts>\d+(?::\d+){0,2}))"
)
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def parse_time(text: str) -> int | None:
    """Read a time limit in seconds; None where there is no limit.

    One number is minutes, two are minutes:seconds, three are hours:minutes:seconds; behind a dash they are
    hours, hours:minutes and hours:minutes:seconds (man sbatch, --time).

    Raises:
        ValueError: It is none.
    """
    if text in UNLIMITED:
        return None
    form = _FORM.fullmatch(text)
    if form is None:
        raise ValueError(f"{text} is no time as Slurm writes it: 90, 12:00:00 or 2-00:00:00")
    if form["days"]:
        return (
            int(form["days"]) * _DAY
            + int(form["day_hours"]) * _HOUR
            + int(form["day_minutes"] or 0) * _MINUTE
            + int(form["day_seconds"] or 0)
        )
    match [int(part) for part in form["parts"].split(":")]:
        case [minutes]:
            return minutes * _MINUTE
        case [minutes, seconds]:
            return minutes * _MINUTE + seconds
        case [hours, minutes, seconds]:
            return hours * _HOUR + minutes * _MINUTE + seconds
    raise AssertionError(text)


def format_time(seconds: int | None) -> str:
    """Write a time limit as Slurm does: hours:minutes:seconds, with days in front where there are any."""
    if seconds is None:
        return "UNLIMITED"
    days, rest = divmod(seconds, _DAY)
    hours, rest = divmod(rest, _HOUR)
    minutes, rest = divmod(rest, _MINUTE)
    clock = f"{hours:02}:{minutes:02}:{rest:02}"
    return f"{days}-{clock}" if days else clock
