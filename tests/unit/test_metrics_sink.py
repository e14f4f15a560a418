"""What the loop holds: one sink that writes on the lead rank, and one that does nothing elsewhere."""

import io
import json
from pathlib import Path

import pytest

from training.fence import claim_incarnation
from training.layout import RunLayout, redone_beside
from training.metrics.lines import read_lines
from training.metrics.progress import PlainScreen
from training.metrics.record import Hardware, StepRecord
from training.metrics.sink import LeadSink
from training.progress import Progress

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


def open_sink(root: Path, stream: io.StringIO, incarnation: int = 3) -> LeadSink:
    screen = PlainScreen(stream, max_steps=9, every_steps=1)
    return LeadSink(RunLayout(root), HARDWARE, incarnation=incarnation, screen=screen, tracker=None)


def test_a_step_has_every_word_in_the_journal(tmp_path: Path) -> None:
    sink = open_sink(tmp_path, io.StringIO())
    sink.log(record_at(1))
    sink.event("finished", step=1)
    sink.close()
    (line,) = read_lines(RunLayout(tmp_path).metrics)
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


def test_a_run_that_goes_on_takes_back_what_its_weights_do_not_remember_and_says_so(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    sink = open_sink(tmp_path, io.StringIO())
    for step in (1, 2, 3):
        sink.log(record_at(step))
        sink.answer(Progress(step=step, samples_seen=step * 2), {"id": "d1", "answer": "E11"})
    sink.event("started")
    sink.close()
    for file in (layout.metrics, layout.events):
        file.write_bytes(file.read_bytes() + b'{"step": 4, "ti')

    sink = open_sink(tmp_path, io.StringIO())
    sink.event("self_test")
    sink.rewind(Progress(step=1, samples_seen=2))
    sink.log(record_at(2))
    sink.close()

    for file in (layout.metrics, layout.samples):
        assert [line["step"] for line in read_lines(redone_beside(file))] == [2, 3]
    assert [line["step"] for line in read_lines(layout.metrics)] == [1, 2]
    assert [line["step"] for line in read_lines(layout.samples)] == [1]
    lines = [json.loads(line) for line in layout.events.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", "self_test", "rewound"]
    told = {key: value for key, value in lines[-1].items() if key not in {"event", "time", "incarnation"}}
    assert told == {
        "step": 1,
        "metrics.jsonl": {"taken": 2, "given_back": 0, "torn": 1},
        "samples.jsonl": {"taken": 2, "given_back": 0, "torn": 0},
        "events.jsonl": {"torn": 1},
    }


def test_a_start_that_was_overtaken_writes_nothing_more(tmp_path: Path) -> None:
    layout, stream = RunLayout(tmp_path), io.StringIO()
    incarnation = [claim_incarnation(layout.incarnations) for _ in range(3)][-1]
    sink = open_sink(tmp_path, stream, incarnation)
    sink.log(record_at(1))
    sink.event("started")
    claim_incarnation(layout.incarnations)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}

    sink.log(record_at(2))
    sink.answer(Progress(step=2, samples_seen=4), {"id": "d1"})
    sink.event("save_failed", reason="fenced")
    sink.rewind(Progress(step=0, samples_seen=0))
    sink.close()

    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == before
    assert stream.getvalue().count("a newer start of this run has taken over") == 1


@pytest.mark.parametrize("kind", ["started", "resumed", "saved", "save_failed", "stopped", "failed"])
def test_events_come_back_with_their_kind(tmp_path: Path, kind: str) -> None:
    sink = open_sink(tmp_path, io.StringIO())
    sink.event(kind, reason="because")
    sink.close()
    assert [event["event"] for event in read_lines(RunLayout(tmp_path).events)] == [kind]
