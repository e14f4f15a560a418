"""A folder is put in place whole, by however many processes at once."""

import multiprocessing
from pathlib import Path

import pytest

from training.errors import StorageError
from training.model.folder import write_folder

WRITERS, TIMES = 4, 25


def write_often(folder: Path, start: "multiprocessing.synchronize.Event") -> None:
    start.wait()
    for _ in range(TIMES):
        write_folder(folder, lambda staged: (staged / "config.json").write_text("whole") and None)


def test_processes_that_write_the_same_folder_at_once_leave_a_whole_one_and_nothing_else(
    tmp_path: Path,
) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Event()
    writers = [context.Process(target=write_often, args=(tmp_path / "model", start)) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    start.set()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    assert (tmp_path / "model" / "config.json").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_cannot_be_replaced_is_a_line_and_the_older_one_stays(tmp_path: Path) -> None:
    def fail(staged: Path) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "model"
    write_folder(folder, lambda staged: (staged / "a").write_text("older") and None)
    with pytest.raises(StorageError, match="No space left"):
        write_folder(folder, fail)
    assert (folder / "a").read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
