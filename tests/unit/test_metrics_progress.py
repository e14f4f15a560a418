"""Rates, the journal's words, and what a person sees."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from training.layout import RunLayout, redone_beside
from training.metrics.accounts import read_accounts
from training.metrics.goodput import find_goodput, read_first_start
from training.metrics.journal import Journal
from training.metrics.lines import read_lines
from training.metrics.progress import LiveScreen, PlainScreen, open_screen, say_event
from training.metrics.rates import find_mfu, find_tokens_per_second, say_duration
from training.metrics.record import Hardware, StepRecord, journal_line
from training.metrics.rewind import Moment

RECORD = StepRecord(
    step=12,
    samples_seen=24,
    loss=3.2141,
    loss_by_source={"law": 2.5, "replay": 3.5},
    learning_rate=9.1e-4,
    grad_norm=0.8123,
    tokens=918,
    targets=300,
    step_seconds=6.0,
    data_wait_seconds=0.1,
    checkpoint_stall_seconds=0.0,
    memory_peak_bytes=1 << 30,
)
CPU = Hardware(world_size=2, flops_per_token=8e8, peak_flops=None)


def line_at(step: int, **changes: float) -> dict[str, object]:
    return journal_line(replace(RECORD, step=step, **changes), CPU, time=1.0, incarnation=1)


def test_mfu_is_the_share_of_all_devices_peak_that_real_tokens_use() -> None:
    # 1,000 tokens/s x 6 GFLOP = 6 TFLOP/s on two devices of 10 TFLOP/s each.
    assert find_mfu(1000, 6e9, 10e12, 2) == pytest.approx(0.3)


def test_mfu_is_absent_where_the_peak_is_unknown() -> None:
    assert find_mfu(1000, 6e9, None, 2) is None
    assert "mfu" not in line_at(12)
    known = journal_line(RECORD, replace(CPU, peak_flops=1e12), time=1.0, incarnation=1)
    assert known["mfu"] == pytest.approx(153 * 8e8 / 2e12)


def test_rates_are_told_for_all_ranks_and_for_one() -> None:
    line = line_at(12)
    assert line["tokens_per_second"] == find_tokens_per_second(918, 6.0) == 153
    assert line["tokens_per_second_per_gpu"] == 76.5


def test_a_number_that_is_not_finite_is_null_in_the_journal_and_told_on_the_screen() -> None:
    line = line_at(12, loss=float("nan"))
    assert line["loss"] is None
    stream = io.StringIO()
    PlainScreen(stream, max_steps=30, every_steps=1).show(line)
    assert "loss not finite" in stream.getvalue()


def test_a_sources_loss_that_is_not_finite_is_null_in_the_journal() -> None:
    line = journal_line(
        replace(RECORD, loss_by_source={"law": float("inf"), "replay": 3.5}), CPU, time=1.0, incarnation=1
    )
    assert line["loss_by_source"] == {"law": None, "replay": 3.5}


def test_plain_lines_come_every_so_many_steps_and_for_the_last() -> None:
    stream = io.StringIO()
    screen = PlainScreen(stream, max_steps=30, every_steps=12)
    for step in range(1, 31):
        screen.show(line_at(step))
    assert stream.getvalue().splitlines() == [
        "step 12/30  loss 3.214  lr 9.1e-04  grad_norm 0.81  153 tokens/s  1m48s left",
        "step 24/30  loss 3.214  lr 9.1e-04  grad_norm 0.81  153 tokens/s  36s left",
        "step 30/30  loss 3.214  lr 9.1e-04  grad_norm 0.81  153 tokens/s  done",
    ]


def test_the_time_left_counts_checkpoints_and_forgets_slow_beginnings() -> None:
    stream = io.StringIO()
    screen = PlainScreen(stream, max_steps=200, every_steps=100)
    screen.show(line_at(1, step_seconds=500.0))
    for step in range(2, 101):
        screen.show(line_at(step, step_seconds=1.0, checkpoint_stall_seconds=1.0))
    assert stream.getvalue().rstrip().endswith("3m20s left")


def test_a_terminal_gets_a_live_bar_and_a_file_plain_lines() -> None:
    assert isinstance(open_screen(io.StringIO(), max_steps=3, log_every_steps=1), PlainScreen)
    stream = io.StringIO()
    screen = LiveScreen(Console(file=stream, force_terminal=True, width=120), max_steps=30)
    screen.show(line_at(12))
    screen.say("saved step 12")
    screen.close()
    text = stream.getvalue()
    assert "12/30" in text
    assert "saved step 12" in text
    assert "153 tokens/s" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (125, "2m05s"), (11220, "3h07m"), (367200, "4d06h")],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert say_duration(seconds) == text


PARTS = dict.fromkeys(
    ("weights", "gradients", "optimizer", "buckets", "transit", "buffers", "host", "disk"), 0
)


@pytest.mark.parametrize(
    ("kind", "facts", "text"),
    [
        ("note", {"text": "weights are rounded"}, "weights are rounded"),
        ("saved", {"step": 3}, ""),
        (
            "rolled_back",
            {"step": 9, "reason": "loss 9 is above 3", "to_step": 6},
            "step 9 was not applied: loss 9 is above 3; back to step 6, on past its data",
        ),
        (
            "memory",
            {
                "ranks": [
                    PARTS | {"weights": 2**31, "optimizer": 2**20},
                    PARTS | {"weights": 2**30, "optimizer": 2**21, "host": 2**21},
                ]
            },
            "memory of a rank: weights 2.00 GiB, optimizer 2.0 MiB; 2.0 MiB of it on the host",
        ),
        (
            "memory",
            {
                "ranks": [PARTS | {"gradients": 2**20, "buckets": 2**21, "transit": 2**22, "disk": 2**30}],
            },
            "memory of a rank: gradients 1.0 MiB, buckets for reducing gradients 2.0 MiB, offload's own "
            "copies and buffers 4.0 MiB; 1.00 GiB on its disk",
        ),
        (
            "finished",
            {"step": 9, "goodput": 0.932, "wall_seconds": 125.0},
            "goodput 93.2%: so much of 2m05s since the first start was useful steps",
        ),
    ],
)
def test_events_that_a_person_should_see_are_one_line(kind: str, facts: dict[str, Any], text: str) -> None:
    assert say_event(kind, facts) == text


def test_goodput_does_not_count_a_skipped_step(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    for incarnation, step, extra in [(1, 1, {}), (2, 2, {}), (2, 3, {"skipped": "no number"})]:
        journal.append({"step": step, "step_seconds": 3.0, "incarnation": incarnation, **extra})
    journal.close()
    (tmp_path / "000001.json").write_text('{"time": 1000.0}')
    (tmp_path / "000002.json").write_text('{"time": 1008.0}')

    found = find_goodput(read_lines(journal.path), started=read_first_start(tmp_path), now=1010.0)

    assert (found.useful_seconds, found.wall_seconds, found.goodput) == (6.0, 10.0, 0.6)


def test_the_accounts_of_a_run_add_up_to_its_wall_time_over_all_starts(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    journal = Journal(layout.metrics)
    seconds = {"step_seconds": 3.0, "forward_seconds": 1.0, "backward_seconds": 1.5, "logging_seconds": 0.5}
    seconds["compile_seconds"] = 0.25
    for incarnation, step, extra in [(1, 1, {}), (1, 2, {}), (2, 2, {}), (2, 3, {"skipped": "no number"})]:
        if (incarnation, step) == (2, 2):
            journal.rewind(Moment(step=1, samples_seen=8))
        at = {"step": step, "samples_seen": 8 * step, "incarnation": incarnation, "time": 1000 + step}
        journal.append({**at, **seconds, **extra})
    journal.close()
    # Killed after the line of a step was copied into the file beside, before it was taken away.
    beside = redone_beside(layout.metrics)
    beside.write_bytes(beside.read_bytes() + layout.metrics.read_bytes().splitlines(keepends=True)[0])
    events = Journal(layout.events)
    for incarnation, kind, stall in [
        (1, "started", {}),
        (2, "resumed", {}),
        (2, "saved", {"stall_seconds": 4}),
    ]:
        events.append({"event": kind, "incarnation": incarnation, "time": 1030.0, **stall})
    events.close()
    layout.incarnations.mkdir()
    (layout.incarnations / "000001.json").write_text('{"time": 1000.0}')

    accounts = read_accounts(layout)

    assert accounts.starts == 2
    assert sum(accounts.seconds.values()) == accounts.goodput.wall_seconds == 30.0
    assert accounts.seconds["forward"] == 2.0
    assert accounts.seconds["rest of the steps"] == 1.0
    assert accounts.seconds["steps done again, or not applied"] == 6.0
    assert accounts.seconds["checkpoints"] == 4.0
    assert accounts.seconds["logging"] == 2.0
    assert accounts.seconds["compiling"] == 1.0
    assert accounts.seconds["starts, pauses and the rest"] == 11.0
