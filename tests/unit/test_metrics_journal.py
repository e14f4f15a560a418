"""The journal: whole lines, whatever happens to the process or the disk."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.metrics.journal import Events, Journal
from training.metrics.lines import read_lines


@pytest.mark.parametrize("whole", [b'{"step": 1, "loss": 3.0}\n', b""])
@pytest.mark.parametrize("size", [1, 200_000])
def test_the_end_of_a_line_that_a_kill_tore_is_cut_off(tmp_path: Path, whole: bytes, size: int) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(whole + b'{"step": 2, "lo' + b"x" * size)
    journal = Journal(path)
    assert journal.append({"step": 2, "loss": 2.5})
    journal.close()
    assert path.read_bytes() == whole + b'{"step": 2, "loss": 2.5}\n'
    assert journal.torn == 1


def test_a_missing_journal_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == []


def test_two_writers_never_mix_their_lines(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from training.metrics.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for step in range(500): journal.append({'writer': sys.argv[2], 'step': step, 'pad': 'x' * 300})\n"
    )
    path = tmp_path / "metrics.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(path), name], cwd=Path.cwd()) for name in "ab"
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for name in "ab":
        assert [line["step"] for line in lines if line["writer"] == name] == list(range(500))


def test_lines_wait_for_a_full_disk_and_are_written_in_order_when_it_has_space(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = {"step": 0, "pad": "x" * 80}
    size = len(json.dumps(line)) + 1
    journal = Journal(path)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # Room for two lines and a half: the kernel takes half of the third, then refuses.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * 5 // 2, former[1]))
        kept = [journal.append(line | {"step": step}) for step in range(5)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)
    assert kept == [True, True, False, False, False]
    assert journal.lost_lines == 3
    assert journal.append(line | {"step": 5})
    journal.close()
    assert journal.lost_lines == 0
    assert [json.loads(found)["step"] for found in path.read_text().splitlines()] == [0, 1, 2, 3, 4, 5]


def test_no_more_than_so_many_lines_wait_and_the_oldest_are_lost_by_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.metrics.journal.WAITING_BYTES", 3 * len('{"step": 0}\n'))
    (tmp_path / "runs").write_text("no folder")
    journal = Journal(tmp_path / "runs" / "metrics.jsonl")
    assert not any(journal.append({"step": step}) for step in range(5))
    (tmp_path / "runs").unlink()
    assert journal.append({"step": 5})
    journal.close()
    assert journal.lost_lines == 3
    assert [found["step"] for found in read_lines(tmp_path / "runs" / "metrics.jsonl")] == [3, 4, 5]


def test_a_journal_that_cannot_be_opened_counts_its_losses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    journal = Journal(tmp_path / "file" / "metrics.jsonl")
    assert not journal.append({"step": 1})
    assert (journal.lost_lines, journal.last_error) == (1, os.strerror(17))
    journal.close()


def test_an_event_has_its_kind_its_time_and_its_facts(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    events.record("save_failed", step=20, reason="no space left")
    events.close()
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert event.pop("time") > 1.7e9
    assert event == {"event": "save_failed", "step": 20, "reason": "no space left"}
