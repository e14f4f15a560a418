"""What the loop holds: one sink that writes on the lead rank, and one that does nothing elsewhere."""

import io
from pathlib import Path

import pytest

from training.layout import RunLayout
from training.metrics.journal import read_journal, read_lines
from training.metrics.progress import PlainScreen
from training.metrics.record import Hardware, StepRecord
from training.metrics.sink import LeadSink

HARDWARE = Hardware(world_size=2, flops_per_token=None, peak_flops=None)
FIELDS = {
    "step", "samples_seen", "loss", "loss_by_source", "learning_rate", "grad_norm", "tokens", "targets",
    "step_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds", "evaluation_seconds",
    "logging_seconds", "compile_seconds", "collectives_seconds", "skipped_steps", "data_wait_seconds",
    "checkpoint_stall_seconds", "memory_peak_bytes",
    "tokens_per_second",
    "tokens_per_second_per_gpu", "time", "incarnation",
}  # fmt: skip


def record_at(step: int) -> StepRecord:
    return StepRecord(
        step=step,
        samples_seen=step * 2,
        loss=3.0,
        loss_by_source={"law": 2.0, "replay": 4.0},
        learning_rate=1e-3,
        grad_norm=1.0,
        tokens=100,
        targets=50,
        step_seconds=2.0,
        data_wait_seconds=0.0,
        checkpoint_stall_seconds=0.0,
        memory_peak_bytes=0,
    )


def open_sink(root: Path, stream: io.StringIO) -> LeadSink:
    screen = PlainScreen(stream, max_steps=9, every_steps=1)
    return LeadSink(RunLayout(root), HARDWARE, incarnation=3, screen=screen, tracker=None)


def test_a_step_has_every_word_in_the_journal(tmp_path: Path) -> None:
    sink = open_sink(tmp_path, io.StringIO())
    sink.log(record_at(1))
    sink.event("finished", step=1)
    sink.close()
    (line,) = read_journal(RunLayout(tmp_path).metrics)
    assert set(line) == FIELDS
    assert (line["tokens_per_second"], line["tokens_per_second_per_gpu"], line["incarnation"]) == (50, 25, 3)
    assert line["loss_by_source"] == {"law": 2.0, "replay": 4.0}
    (event,) = read_lines(RunLayout(tmp_path).events)
    assert (event["event"], event["step"], event["incarnation"]) == ("finished", 1, 3)


def test_a_note_is_kept_and_shown(tmp_path: Path) -> None:
    stream = io.StringIO()
    sink = open_sink(tmp_path, stream)
    sink.event("note", text="weights are rounded")
    sink.close()
    (event,) = read_lines(RunLayout(tmp_path).events)
    assert event["text"] == "weights are rounded"
    assert "weights are rounded" in stream.getvalue()


def test_a_disk_that_refuses_is_told_once_and_counted_and_ends_nothing(tmp_path: Path) -> None:
    stream = io.StringIO()
    RunLayout(tmp_path).metrics.mkdir()  # cannot be opened as a file
    sink = open_sink(tmp_path, stream)
    for step in (1, 2, 3):
        sink.log(record_at(step))
    sink.close()
    said = stream.getvalue()
    assert said.count("a line could not be written") == 1
    assert "3 steps could not be written" in said
    told = [(event["event"], event.get("lines")) for event in read_lines(RunLayout(tmp_path).events)]
    assert told == [("metrics_waiting", None), ("metrics_lost", 3)]


@pytest.mark.parametrize("kind", ["started", "resumed", "saved", "save_failed", "preempted", "failed"])
def test_events_come_back_with_their_kind(tmp_path: Path, kind: str) -> None:
    sink = open_sink(tmp_path, io.StringIO())
    sink.event(kind, reason="because")
    sink.close()
    assert [event["event"] for event in read_lines(RunLayout(tmp_path).events)] == [kind]
