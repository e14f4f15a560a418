"""What `metier scale` computes: from single runs' journals to efficiency, a step's parts and the knee."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.scaling.collect import Job, Table, build_tables, look_at
from launcher.scaling.figures import Row, Size, build_rows, compare, find_knee, split_step
from launcher.scaling.journal import Speed, choose_lines, find_speed, read_journal
from launcher.scaling.page import build_page
from launcher.scaling.record import Attempt, Experiment, ScaleLayout, read_experiment, write_experiment
from launcher.scaling.words import say_doubt, say_knee, say_table, say_trouble
from training.errors import ConfigError


def step(number: int, seconds: float, tokens: int = 100, **more: object) -> dict[str, Any]:
    return {"step": number, "step_seconds": seconds, "tokens": tokens, "incarnation": 1, **more}


def speed(rate: float, **more: Any) -> Speed:
    values: dict[str, Any] = {
        "steps": 10,
        "tokens_per_second": rate,
        "mfu": None,
        "step_seconds": 1.0,
        "data_wait_seconds": 0.0,
        "forward_seconds": 0.3,
        "backward_seconds": 0.5,
        "optimizer_seconds": 0.1,
        "collectives_seconds": 0.0,
        "checkpoint_stall_seconds": 0.0,
        "memory_peak_bytes": 1_000_000,
    }
    return Speed(**{**values, **more})


def size(number: int, *rates: float, **more: Any) -> Size:
    values: dict[str, Any] = {
        "size": number,
        "devices": number,
        "global_batch_size": 8,
        "passes": 8 // number,
        "speeds": tuple(speed(rate) for rate in rates),
        "asked": len(rates),
        "waiting": 0,
        "reason": None,
    }
    return Size(**{**values, **more})


def experiment(*attempts: Attempt, **more: Any) -> Experiment:
    values: dict[str, Any] = {
        "name": "mine",
        "axis": "processes",
        "modes": ("strong",),
        "kind": "local",
        "device": "process",
        "steps": 2,
        "warmup": 1,
        "repeats": 1,
        "knee": 0.8,
        "shards_optimizer": True,
        "settings": {"command": "experiment=<mine>"},
        "versions": {"torch": "2"},
        "began": "2026-01-01T00:00:00+00:00",
        "attempts": attempts,
    }
    return Experiment(**{**values, **more})


def attempt(number: int, **more: Any) -> Attempt:
    values: dict[str, Any] = {
        "name": f"mine.scale-strong-p{number}-r1",
        "modes": ("strong",),
        "size": number,
        "repeat": 1,
        "devices": number,
        "global_batch_size": 8,
        "passes": 8 // number,
    }
    return Attempt(**{**values, **more})


def write_run(folder: Path, name: str, lines: list[dict[str, Any]], **outcome: object) -> None:
    run = folder / name
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if outcome:
        (run / "outcome.json").write_text(json.dumps(outcome))


def test_the_warm_up_of_every_start_is_left_out() -> None:
    lines = [step(number, 9.0 if number in {1, 4} else 1.0) for number in range(1, 7)]
    for line in lines[3:]:
        line["incarnation"] = 2

    chosen = choose_lines(lines, warmup=1)

    assert [line["step"] for line in chosen] == [2, 3, 5, 6]
    found = find_speed(chosen)
    assert found is not None
    assert found.tokens_per_second == 100.0


def test_a_rate_is_all_tokens_over_all_seconds_and_no_mean_of_rates() -> None:
    found = find_speed([step(1, 1.0, 100, mfu=0.4), step(2, 3.0, 100, mfu=0.2)])

    assert found is not None
    assert found.tokens_per_second == 50.0  # the mean of 100 and 33 would be 67
    assert found.mfu == pytest.approx(0.25)
    assert find_speed([]) is None


def test_a_torn_last_line_is_no_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(step(1, 1.0)) + "\n" + '{"step": 2, "step_sec')
    assert [line["step"] for line in read_journal(path)] == [1]
    assert read_journal(tmp_path / "none") == []


@given(
    base=st.lists(st.floats(1, 1e6), min_size=1, max_size=5),
    values=st.lists(st.floats(1, 1e6), min_size=1, max_size=5),
    devices=st.integers(2, 64),
)
def test_an_efficiency_lies_within_its_range_which_holds_every_pair_of_repeats(
    base: list[float], values: list[float], devices: int
) -> None:
    found = compare(values, base, devices)

    assert found.low <= found.median <= found.high
    for here in values:
        for there in base:
            assert found.low * 0.999999 <= here / there / devices <= found.high * 1.000001


def test_perfect_scaling_has_an_efficiency_of_one_at_every_size() -> None:
    rows = build_rows([size(n, 100.0 * n, 100.0 * n) for n in (1, 2, 4)], shards_optimizer=True)

    assert [row.efficiency.median for row in rows if row.efficiency] == [1.0, 1.0, 1.0]
    assert [row.speed_up for row in rows] == [1.0, 2.0, 4.0]
    assert {row.device_hours_per_billion_tokens for row in rows} == {1e9 / 100 / 3600}


def test_a_failed_smallest_size_leaves_the_next_one_to_compare_with() -> None:
    failed = size(1, reason="out of memory", asked=1)
    rows = build_rows([failed, size(2, 100.0), size(4, 150.0)], shards_optimizer=True)

    assert [row.state for row in rows] == ["failed", "measured", "measured"]
    assert rows[2].efficiency is not None
    assert rows[2].efficiency.median == 0.75
    # Of two devices nobody knows how much of their time they talk.
    assert rows[2].parts is not None
    assert rows[2].parts.communication_seconds is None
    assert say_trouble(rows[0]) == "failed: out of memory"


def test_communication_is_what_the_same_work_takes_longer_than_alone() -> None:
    # Alone: 8 passes in 0.8 s, an update of 0.1 s. On four devices 2 passes are 0.2 s, the update 0.025 s.
    four = replace(speed(300.0), forward_seconds=0.1, backward_seconds=0.25, optimizer_seconds=0.05)
    parts = split_step(
        size(4, speeds=(replace(four, step_seconds=0.5, data_wait_seconds=0.04),)),
        size(1, 100.0),
        shards_optimizer=True,
    )

    assert parts.communication_seconds == pytest.approx(0.4 - 0.225)
    assert parts.compute_seconds == pytest.approx(0.225)
    assert parts.rest_seconds == pytest.approx(0.06)
    whole = parts.compute_seconds + (parts.communication_seconds or 0) + parts.data_wait_seconds
    assert whole + parts.rest_seconds == pytest.approx(parts.step_seconds)


def rows_of(*efficiencies: float | None) -> list[Row]:
    sizes = [
        size(2**place, *([] if value is None else [100.0 * 2**place * value]), reason="it broke", asked=1)
        for place, value in enumerate(efficiencies)
    ]
    return build_rows(sizes, shards_optimizer=True)


def test_an_efficiency_well_above_one_is_doubted() -> None:
    for efficiencies, doubted in (((1.0, 1.05), False), ((1.0, 1.2, None), True)):
        found = Table(mode="strong", rows=tuple(rows_of(*efficiencies)), knee=None)
        assert ("measure again" in (say_doubt(found) or "")) == doubted


@pytest.mark.parametrize(
    ("efficiencies", "knee"),
    [
        ((1.0, 0.9, 0.85, 0.6), 4),
        ((1.0, 0.9, None, 0.85), 8),  # a size that failed says nothing
        ((1.0, 0.7, 0.9), 1),  # what comes after a bad size does not count
        ((1.0, 0.95), 2),
        ((None, None), None),
    ],
)
def test_the_knee_is_the_last_size_before_the_first_that_is_not_worth_it(
    efficiencies: tuple[float | None, ...], knee: int | None
) -> None:
    found = find_knee(rows_of(*efficiencies), 0.8)
    assert (found.size if found else None) == knee


def test_an_experiment_reads_as_it_was_written(tmp_path: Path) -> None:
    layout = ScaleLayout.of(str(tmp_path), "mine")
    written = experiment(attempt(1), attempt(2, refused="too large"), modes=("strong", "weak"))
    write_experiment(layout, written)
    assert read_experiment(layout) == written
    layout.plan.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_experiment(layout)


def test_what_is_done_is_measured_what_failed_says_why_and_what_runs_is_waited_for(tmp_path: Path) -> None:
    layout = ScaleLayout.of(str(tmp_path), "mine")
    attempts = [attempt(1), attempt(2), attempt(4), attempt(8), attempt(16, refused="too large", passes=1)]
    done = [step(1, 9.0), step(2, 1.0), step(3, 1.0)]
    write_run(tmp_path, attempts[0].name, done, state="COMPLETED")
    write_run(
        tmp_path, attempts[1].name, done, state="FAILED", error_class="OutOfMemory", message="no room\nleft"
    )
    write_run(tmp_path, attempts[2].name, done[:2])
    write_run(tmp_path, attempts[3].name, [])
    whole = experiment(*attempts)
    jobs = {attempts[2].name: Job(number="7", alive=True), attempts[3].name: Job(number="8", alive=False)}

    found = look_at(whole, layout, lambda run: jobs.get(run.root.name))

    assert [each.speed is not None for each in found] == [True, False, False, False, False]
    assert [each.reason for each in found] == [
        None,
        f"OutOfMemory: no room; see `metier why {attempts[1].name}`",
        None,
        "job 8 is gone and the run is not complete; see `metier why mine.scale-strong-p8-r1`",
        "too large",
    ]
    [table] = build_tables(whole, found)
    assert [row.state for row in table.rows] == ["measured", "failed", "waiting", "failed", "failed"]
    told = say_table(whole, table)
    assert "processes=4  has not ended yet" in told
    assert "processes=2  failed: OutOfMemory: no room" in told
    assert "1 of 5 sizes measured" in say_knee(table, whole)


def test_the_page_opens_offline_and_escapes_what_it_shows(tmp_path: Path) -> None:
    layout = ScaleLayout.of(str(tmp_path), "mine")
    whole = experiment(attempt(1), attempt(2, refused="<b>too large</b>"))
    write_run(tmp_path, whole.attempts[0].name, [step(1, 1.0), step(2, 1.0)], state="COMPLETED")

    page = build_page(whole, build_tables(whole, look_at(whole, layout, lambda _: None)), b"PNG")

    assert "experiment=&lt;mine&gt;" in page
    assert "&lt;b&gt;too large&lt;/b&gt;" in page
    assert "data:image/png;base64,UE5H" in page
    assert "http" not in page
