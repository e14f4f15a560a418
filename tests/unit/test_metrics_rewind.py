"""A file of steps holds each step once: what a kill or a roll back has undone lies beside it."""

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from training.layout import redone_beside
from training.metrics.journal import Journal
from training.metrics.lines import read_lines
from training.metrics.rewind import Moment, Rewound, rewind

Place = tuple[int, int]
"""Step and position."""


def write(path: Path, *places: Place, incarnation: int = 1) -> None:
    journal = Journal(path)
    for step, position in places:
        journal.append({"step": step, "samples_seen": position, "incarnation": incarnation})
    journal.close()


def places(path: Path) -> list[Place]:
    return [(line["step"], line["samples_seen"]) for line in read_lines(path)]


def at(step: int, position: int) -> Moment:
    return Moment(step=step, samples_seen=position)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_what_was_done_after_the_checkpoint_goes_beside_and_the_torn_end_goes(path: Path) -> None:
    write(path, (1, 8), (2, 16), (3, 24), (4, 32))
    path.write_bytes(path.read_bytes() + b'{"step": 5, "samp')

    assert rewind(path, at(2, 16)) == Rewound(taken=2, given_back=0, torn=1)

    assert places(path) == [(1, 8), (2, 16)]
    assert places(redone_beside(path)) == [(3, 24), (4, 32)]
    before = path.stat()
    assert not rewind(path, at(2, 16)).changed
    assert path.stat() == before, "a file that is right is not written"


def test_a_run_that_had_no_checkpoint_begins_with_an_empty_file(path: Path) -> None:
    write(path, (1, 8), (2, 16))
    rewind(path, at(0, 0))
    assert (places(path), places(redone_beside(path))) == ([], [(1, 8), (2, 16)])


def test_a_step_that_was_lost_twice_is_beside_twice_with_the_start_that_did_it(path: Path) -> None:
    for incarnation in (1, 2, 3):
        rewind(path, at(1, 8) if incarnation > 1 else at(0, 0))
        write(path, *([(1, 8)] if incarnation == 1 else []), (2, 16), incarnation=incarnation)
    assert [line["incarnation"] for line in read_lines(path)] == [1, 3]
    assert [line["incarnation"] for line in read_lines(redone_beside(path))] == [1, 2]


def test_steps_that_were_rolled_back_do_not_come_back_with_a_later_checkpoint(path: Path) -> None:
    write(path, (1, 8), (2, 16), (3, 24))
    rewind(path, at(1, 8))  # rolled back, and on past the data
    write(path, (2, 32), (3, 40), (4, 48))

    rewind(path, at(3, 40))

    assert places(path) == [(1, 8), (2, 32), (3, 40)]
    assert places(redone_beside(path)) == [(2, 16), (3, 24), (4, 48)]


def test_the_lines_of_a_checkpoint_that_was_passed_over_come_back_with_it(path: Path) -> None:
    write(path, (1, 8), (2, 16), (3, 24), (4, 32))
    rewind(path, at(1, 8))
    write(path, (2, 40), incarnation=2)

    # The run goes on from the checkpoint of before the roll back after all.
    assert rewind(path, at(3, 24)) == Rewound(taken=1, given_back=2, torn=0)

    assert places(path) == [(1, 8), (2, 16), (3, 24)]
    assert sorted(places(redone_beside(path))) == [(2, 40), (4, 32)]


def test_answers_to_several_documents_after_one_step_stay_together(path: Path) -> None:
    journal = Journal(path)
    for step, name in ((2, "a"), (2, "b"), (4, "a"), (4, "b")):
        journal.append({"step": step, "samples_seen": 8 * step, "id": name})
    journal.close()
    rewind(path, at(3, 24))
    assert [(line["step"], line["id"]) for line in read_lines(path)] == [(2, "a"), (2, "b")]


class KilledError(Exception):
    """Stands for the end of the process."""


@contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let the process die before its so-many-th call that changes the disk."""
    calls: list[str] = []

    def dying(name: str, real: object) -> object:
        def call(*words: object, **named: object) -> object:
            calls.append(name)
            if len(calls) == number:
                raise KilledError
            return real(*words, **named)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", dying("write", Path.write_bytes))
        patch.setattr(Path, "replace", dying("rename", Path.replace))
        patch.setattr(os, "fsync", dying("fsync", os.fsync))
        # A process that is dead removes nothing.
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        yield calls


def test_a_kill_at_any_moment_loses_no_line_and_the_next_start_doubles_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = redone_beside(path)
    moments = 0
    for number in range(1, 100):
        for file in path.parent.iterdir():
            file.unlink()
        write(path, (1, 8), (2, 16), (3, 24))
        rewind(path, at(1, 8))
        write(path, (2, 32), (3, 40))
        every = {*places(path), *places(beside)}
        try:
            with killed_at(number, monkeypatch):
                rewind(path, at(2, 16))  # moves lines there and back
        except KilledError:
            moments += 1
            assert {*places(path), *places(beside)} == every
        else:
            break
        rewind(path, at(2, 16))
        assert places(path) == [(1, 8), (2, 16)]
        assert sorted(places(beside)) == [(2, 32), (3, 24), (3, 40)]
        assert sorted(file.name for file in path.parent.iterdir()) == [path.name, beside.name]
    # Three files are written, each by a write, two syncs and a rename.
    assert moments == 12


def test_a_full_disk_lets_the_lines_wait_until_the_file_can_be_rewound(path: Path) -> None:
    write(path, (1, 8), (2, 16), (3, 24))
    journal = Journal(path)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, former[1]))
        assert journal.rewind(at(1, 8)) is None
        assert not journal.append({"step": 2, "samples_seen": 32})
        assert not journal.append({"step": 3, "samples_seen": 40})
        # Rolled back once more: what was never written is not to be written now.
        assert journal.rewind(at(2, 32)) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)
    assert places(path) == [(1, 8), (2, 16), (3, 24)]
    assert journal.append({"step": 3, "samples_seen": 48})
    journal.close()
    assert places(path) == [(1, 8), (2, 32), (3, 48)]
    assert sorted(places(redone_beside(path))) == [(2, 16), (3, 24), (3, 40)]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
