"""How long the parts of a step took, by a clock that is set by hand."""

import time
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.callback import CallbackTrigger, callback_handler

from training.engine.compile_clock import CompileClock
from training.engine.stopwatch import Stopwatch


class Clock:
    """Seconds that pass when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.fixture
def compiling(clock: Clock) -> Iterator[CompileClock]:
    compiling = CompileClock()
    yield compiling
    compiling.close()


def compile_for(seconds: float, clock: Clock, trigger: CallbackTrigger = CallbackTrigger.DYNAMO) -> None:
    with callback_handler.install_callbacks(trigger, "0/0"):
        clock.now += seconds / 2
        with callback_handler.install_callbacks(trigger, "0/1"):
            clock.now += seconds / 2


def test_compiling_is_counted_once_whatever_is_compiled_inside_of_it(
    clock: Clock, compiling: CompileClock
) -> None:
    compile_for(60, clock)
    compile_for(4, clock, CallbackTrigger.LAZY_BACKWARD)
    clock.now += 9
    assert compiling.seconds == 64


def test_a_clock_that_was_closed_listens_no_longer(clock: Clock, compiling: CompileClock) -> None:
    other = CompileClock()
    other.close()
    compile_for(8, clock)
    assert (other.seconds, compiling.seconds) == (0, 8)


def test_compiling_is_no_part_of_the_laps_in_which_it_happened(clock: Clock, compiling: CompileClock) -> None:
    compile_for(5, clock)  # before the step
    watch = Stopwatch(torch.device("cpu"), lambda: compiling.seconds)
    compile_for(60, clock)
    clock.now += 2
    watch.lap("forward")
    compile_for(30, clock)
    clock.now += 3
    watch.lap("backward")
    clock.now += 7
    watch.lap(None)
    clock.now += 1
    watch.lap("forward")

    assert watch.seconds() == {"forward": 3, "backward": 3, "compile": 90}
