"""Who is stuck and who is slow: pure functions of what ranks say they are at."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ranks.pulse_case import WATCH, new_run
from training.pulse.dump import clear_pulse, find_request, is_here
from training.pulse.heart import PHASES, Heart, Phase, find_beat_seconds, read_born, read_heart, write_heart
from training.pulse.limits import (
    Hang,
    Seen,
    Watching,
    find_hang,
    find_limit,
    find_percentile,
    find_stuck,
    say_hang,
)
from training.pulse.slow import find_factors
from training.pulse.watch import View

WATCHING = Watching(**{**WATCH, "start_seconds": 1800.0, "step_seconds": 300.0})
HEART = Heart(
    rank=0, node="node1", pid=10, born=5, incarnation=1, phase="step", step=12, since=0.0, time=0.0,
    first=False, entered=40, inside=True,
)  # fmt: skip


def seen(*hearts: Heart | None, held: float = 1000.0, silent: Sequence[float] = ()) -> list[Seen]:
    return [
        Seen(rank=rank, heart=heart, held=held, silent=silent[rank] if silent else 0.5)
        for rank, heart in enumerate(hearts)
    ]


def stuck(ranks: list[Seen]) -> list[int]:
    return [each.rank for each in find_stuck(ranks, silent_seconds=5.0)]


def test_a_heart_is_read_as_it_was_written_and_replaces_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "heart_0.json"
    for step in (1, 2):
        assert write_heart(path, replace(HEART, step=step, own_seconds=0.25))
        assert read_heart(path) == replace(HEART, step=step, own_seconds=0.25)
    assert [each.name for each in tmp_path.iterdir()] == ["heart_0.json"]


def test_on_a_full_disk_a_heart_is_written_over_its_old_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "heart_0.json"
    write_heart(path, HEART)

    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert write_heart(path, replace(HEART, step=13))
    assert read_heart(path) == replace(HEART, step=13)
    assert not write_heart(tmp_path / "heart_1.json", HEART)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rank": 1}'])
def test_half_a_heart_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "heart_0.json").write_text(content)
    assert read_heart(tmp_path / "heart_0.json") is None


def test_all_ranks_together_change_the_disk_a_bounded_number_of_times_a_second() -> None:
    assert [find_beat_seconds(size) for size in (1, 64)] == [1.0, 1.0]
    assert 1024 / find_beat_seconds(1024) <= 64


def test_a_watch_that_is_switched_off_or_unknown_is_none(tmp_path: Path) -> None:
    layout = new_run(tmp_path, enabled=False)
    assert Watching.read(layout.config) is None
    layout.config.write_text('{"config": {"cluster": {}}}')
    assert Watching.read(layout.config) is None
    assert Watching.read(tmp_path / "absent.json") is None


@pytest.mark.parametrize(
    ("phase", "first", "usual", "limit"),
    [
        ("imports", True, None, 1800),
        ("start", True, None, 1800),
        ("step", True, None, 1800),  # it may compile
        ("step", False, None, 300),
        ("step", False, 10.0, 300),
        ("step", False, 100.0, 500),
        ("evaluate", False, 100.0, 60),
        ("save", False, 100.0, 60),
        ("finish", False, 100.0, 60),
    ],
)
def test_each_phase_has_its_limit(phase: Phase, first: bool, usual: float | None, limit: float) -> None:
    assert find_limit(replace(HEART, phase=phase, first=first), WATCHING, usual) == limit


def test_the_limit_of_steps_is_learnt_from_five_of_them() -> None:
    assert find_percentile([1.0] * 4) is None
    assert find_percentile([1.0] * 5) == 1.0
    assert find_percentile([*[1.0] * 95, *[9.0] * 5]) == pytest.approx(1.4, abs=1.0)
    assert find_percentile([*[1.0] * 50, *[9.0] * 50]) == 9.0


def test_who_is_behind_is_stuck_and_nobody_who_waits_for_it() -> None:
    behind = replace(HEART, step=11)
    assert stuck(seen(HEART, behind, HEART)) == [1]
    assert stuck(seen(replace(HEART, phase="save"), HEART, replace(HEART, phase="save"))) == [1]
    assert stuck(seen(HEART, HEART, replace(HEART, entered=39))) == [2]
    assert stuck(seen(HEART, replace(HEART, inside=False), HEART)) == [1]
    assert stuck(seen(HEART, HEART)) == [0, 1]


def test_phases_follow_each_other_as_the_loop_has_them() -> None:
    places = [replace(HEART, phase=phase).place for phase in PHASES]
    assert places == sorted(places)
    assert replace(HEART, phase="finish").place < replace(HEART, phase="step", step=13).place


def test_who_never_had_a_heart_is_stuck() -> None:
    assert stuck(seen(HEART, None, replace(HEART, step=0))) == [1]


def test_who_stopped_beating_while_others_beat_is_stuck_also_where_another_is_behind() -> None:
    assert stuck(seen(replace(HEART, entered=2), HEART, HEART, silent=[0.5, 60, 0.5])) == [1]


def test_when_all_have_stopped_beating_that_tells_nobody_apart() -> None:
    assert stuck(seen(HEART, replace(HEART, step=11), silent=[60, 60])) == [1]


def test_a_rank_whose_heart_cannot_be_written_is_not_stuck_as_long_as_the_others_go_on() -> None:
    view, told = View(2, 0.0), []
    for now in range(1, 1000):
        # Rank 1's disk refuses from second 3 on, in the middle of the lead's steps.
        hearts = [replace(HEART, step=now, time=now), replace(HEART, step=min(now, 3), time=min(now, 3))]
        ranks = view.look(hearts, float(now), beat_seconds=1)
        told.append(find_hang(ranks, WATCHING, beat_seconds=1))
    assert set(told) == {None}
    assert stuck(ranks) == [0]


def test_a_rank_that_stopped_many_short_steps_after_its_last_beat_is_stuck_all_the_same() -> None:
    view = View(2, 0.0)
    for now in range(1, 400):
        lead = replace(HEART, step=min(100 * now, 250), time=now)
        ranks = view.look([lead, replace(HEART, phase="start", step=0, time=1)], float(now), beat_seconds=1)
    hang = find_hang(ranks, WATCHING, beat_seconds=1)
    assert hang == Hang(ranks=(1,), held=398.0, limit=300, silent=True)


def test_only_the_time_of_who_is_behind_counts() -> None:
    # The lead answers samples alone: the others wait for it in the next step, longer than a step may take.
    watching = replace(WATCHING, evaluate_seconds=3600.0)
    ranks = seen(replace(HEART, phase="evaluate"), replace(HEART, step=13), held=1000)
    assert find_hang(ranks, watching, beat_seconds=1) is None
    hang = find_hang(ranks, WATCHING, beat_seconds=1)
    assert hang == Hang(ranks=(0,), held=1000, limit=60, silent=False)


def test_the_leads_steps_decide_how_long_a_step_may_take() -> None:
    slow = replace(HEART, usual_step_seconds=400.0)
    assert find_hang(seen(slow, replace(HEART, step=11)), WATCHING, beat_seconds=1) is None
    assert find_hang(seen(HEART, replace(slow, step=11)), WATCHING, beat_seconds=1) is not None


@pytest.mark.parametrize(
    ("ranks", "hang", "found", "words"),
    [
        (
            seen(HEART, replace(HEART, rank=1, node="node2", inside=False)),
            Hang(ranks=(1,), held=95.2, limit=60, silent=False),
            {},
            "rank 1 on node2 has been at step 12 for 95 s, the limit was 60 s; stacks are in logs/rank_*.log",
        ),
        (
            seen(HEART, HEART),
            Hang(ranks=(0, 1), held=95.2, limit=60, silent=False),
            {},
            "all 2 ranks have been in a collective of step 12 for 95 s, the limit was 60 s; ",
        ),
        (
            seen(HEART, HEART, replace(HEART, phase="save")),
            Hang(ranks=(2,), held=95.2, limit=60, silent=True),
            {2: "its process is stopped by a signal"},
            "rank 2 on node1 has not beaten for 95 s, last seen saving step 12, the limit was 60 s (its",
        ),
        (
            seen(HEART, None),
            Hang(ranks=(1,), held=1801, limit=1800, silent=True),
            {},
            "rank 1 has been without a sign of life for 1801 s, the limit was 1800 s; stacks",
        ),
    ],
)
def test_a_hang_is_said_in_one_line(ranks: list[Seen], hang: Hang, found: dict[int, str], words: str) -> None:
    said = say_hang(hang, ranks, found)
    assert said.startswith(words)
    assert "\n" not in said


def test_time_is_counted_by_what_changed_and_not_by_the_nodes_clocks() -> None:
    view = View(2, 0.0)
    here, there = HEART, replace(HEART, rank=1, time=1e9)
    view.look([here, there], 1.0, beat_seconds=1)
    for now in (2.0, 3.0, 4.0):
        found = view.look([replace(here, time=now), there], now, beat_seconds=1)
    assert [each.held for each in found] == [3.0, 3.0]
    assert [each.silent for each in found] == [0.0, 3.0]
    found = view.look([replace(here, time=5.0, step=13), None], 5.0, beat_seconds=1)
    assert [each.held for each in found] == [0.0, 4.0]


def test_imports_and_start_are_one_time() -> None:
    view = View(1, 0.0)
    view.look([replace(HEART, phase="imports", step=0)], 1.0, beat_seconds=1)
    (found,) = view.look([replace(HEART, phase="start", step=0, time=2.0)], 2.0, beat_seconds=1)
    assert found.held == 1.0
    (found,) = view.look([replace(HEART, phase="step", step=1, time=3.0)], 3.0, beat_seconds=1)
    assert found.held == 0.0


def test_a_machine_that_stood_still_accuses_nobody() -> None:
    view = View(1, 0.0)
    view.look([HEART], 1.0, beat_seconds=1)
    (found,) = view.look([HEART], 1001.0, beat_seconds=1)
    assert found.held == found.silent == 1.0


def test_hearts_of_a_start_that_was_overtaken_are_not_looked_at() -> None:
    view = View(2, 0.0)
    new, old = replace(HEART, incarnation=2), replace(HEART, incarnation=1, step=3)
    found = view.look([new, old], 1.0, beat_seconds=1)
    assert [each.heart for each in found] == [new, None]


def test_the_lead_clears_what_earlier_starts_left_and_not_what_is_of_now(tmp_path: Path) -> None:
    layout = new_run(tmp_path)
    layout.pulse.mkdir()
    for rank in (0, 1):
        write_heart(layout.heart(rank), HEART)
    (layout.pulse / "dump.request").write_text("an old one")
    os.utime(layout.heart(0), (100, 100))
    clear_pulse(layout, began=200)
    assert [each.name for each in layout.pulse.iterdir()] == ["heart_1.json"]
    assert find_request(layout) is None


def test_a_process_is_known_by_its_beginning_and_not_by_its_number_alone() -> None:
    born = read_born("self")
    assert born is not None
    mine = replace(HEART, node=os.uname().nodename, pid=os.getpid(), born=born)
    assert is_here(mine)
    assert not is_here(replace(mine, born=born - 1))
    assert not is_here(replace(mine, node="elsewhere"))


def test_the_watcher_imports_nothing_heavy() -> None:
    heavy = ("torch", "pydantic", "numpy")
    code = f"import sys, training.pulse.watch; print([name for name in {heavy} if name in sys.modules])"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert child.stdout.strip() == "[]"


def test_the_watcher_ends_with_its_parent(tmp_path: Path) -> None:
    layout = new_run(tmp_path)
    code = (
        "import sys, pathlib; from training.layout import RunLayout\n"
        "from training.pulse.watch import Watcher\n"
        "watcher = Watcher(RunLayout(pathlib.Path(sys.argv[1])), 1); print(watcher.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(layout.root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert read_born(pid) is not None
        os.kill(pid, signal.SIGTERM)
        parent.kill()
        watcher = os.pidfd_open(pid)
    try:
        assert select.select([watcher], [], [], 30)[0], "the watcher lives on"
    finally:
        os.close(watcher)


def test_with_two_ranks_each_is_compared_with_the_other() -> None:
    slowest, other = find_factors([1.0, 3.0])
    assert (slowest.rank, slowest.factor, other.rank) == (1, 3.0, 0)
    assert other.factor == pytest.approx(1 / 3)


def test_one_slow_rank_does_not_make_the_others_fast_and_fast_ones_are_not_named() -> None:
    factors = {each.rank: each.factor for each in find_factors([1.0, 1.1, 0.9, 1.0, 2.0])}
    assert max(factors, key=lambda rank: factors[rank]) == 4
    assert factors[4] == 2.0
    assert all(factor < 1.2 for rank, factor in factors.items() if rank != 4)


@pytest.mark.parametrize("own", [[], [1.0], [0.0, 1.0]])
def test_nobody_is_compared_where_there_is_nothing_to_compare(own: list[float]) -> None:
    assert find_factors(own) == []
