"""Slurm's times, both ways."""

import pytest

from launcher.slurm.times import format_time, parse_time, say_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("12:00:00", 43200),
        ("36:00:00", 129600),
        ("2-00", 172800),
        ("2-12:30", 217800),
        ("2-00:00:01", 172801),
        ("0", None),
        ("00:00:00", None),
        ("00:00:01", 1),
        ("0-00", None),
        ("0-01", 3600),
        ("UNLIMITED", None),
        ("INFINITE", None),
    ],
)
def test_a_time_is_read_as_the_manual_says(text: str, seconds: int | None) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "-1", "1-", "1-2:3:4:5", "12.5"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no time as Slurm writes it"):
        parse_time(text)


@pytest.mark.parametrize("seconds", [None, 1, 59, 60, 3600, 86399, 86400, 1_000_001])
def test_a_time_that_was_written_reads_the_same(seconds: int | None) -> None:
    assert parse_time(format_time(seconds)) == seconds


def test_a_time_without_limit_says_so() -> None:
    assert say_time("0") == "0 (no time limit)"
    assert say_time("12:00:00") == "12:00:00"


def test_days_are_written_where_there_are_any() -> None:
    assert format_time(86399) == "23:59:59"
    assert format_time(86400 * 2 + 1) == "2-00:00:01"
