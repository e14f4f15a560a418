"""Which steps are applied: a pure function of logged numbers, which survives a resume."""

import json
import random
import statistics

import pytest

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from training.config.schema import LoopConfig
from training.engine.step import StepResult
from training.guard import find_spike_limit, judge, remember, roll_back_memory
from training.progress import Memory

FRESH = Memory()


def config(**settings: object) -> LoopConfig:
    words = ["experiment=tiny_smoke", *(f"loop.{key}={value}" for key, value in settings.items())]
    return compose_run(words, ConfigTree.open(None)).config.loop


def step(loss: float = 1.0, grad_norm: float = 1.0) -> StepResult:
    return StepResult(loss=loss, grad_norm=grad_norm, samples=8, tokens=64, targets=32, by_source=())


def walk(losses: list[float], settings: LoopConfig, memory: Memory = FRESH) -> tuple[list[str], Memory]:
    """Judge one step after the other; give the verdicts and the last memory."""
    actions = []
    for number, loss in enumerate(losses, start=memory.furthest_step + 1):
        verdict = judge(step(loss), memory, settings)
        actions.append(verdict.action)
        memory = remember(memory, number, step(loss), verdict, settings)
    return actions, memory


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", ["loss", "grad_norm"])
def test_what_is_not_finite_is_skipped_whatever_the_spike_guard_says(value: float, which: str) -> None:
    for spike in ("none", "roll_back"):
        verdict = judge(step(**{which: value}), Memory(), config(spike=spike))
        assert verdict.action == "skip"
        assert verdict.reason == f"the {'loss' if which == 'loss' else 'gradient'} is not finite"


def test_too_many_skipped_in_a_row_stop_the_run_and_an_applied_one_between_them_starts_the_count_anew() -> (
    None
):
    nan, settings = float("nan"), config(max_skipped_in_a_row=2)
    assert walk([nan, nan, 1.0, nan, nan], settings)[0] == ["skip", "skip", "apply", "skip", "skip"]
    assert walk([nan, nan, nan], settings)[0][-1] == "stop"
    assert walk([nan], config(max_skipped_in_a_row=0))[0] == ["stop"]


def test_the_limit_is_the_median_and_so_many_scaled_deviations_and_no_lower_than_a_share_of_it() -> None:
    assert find_spike_limit((1.0, 2.0, 3.0, 4.0, 100.0), 2) == pytest.approx(3 + 2 * 1.4826 * 1)
    assert find_spike_limit((2.0, 2.0, 2.0), 10) == pytest.approx(2 + 10 * 0.02)


def test_of_normal_noise_nearly_nothing_is_a_spike_and_a_jump_is_one() -> None:
    dice = random.Random(1)
    losses = [3 + dice.gauss(0, 0.1) for _ in range(2000)]
    settings = config(spike="skip", spike_window_steps=32, spike_deviations=8)
    actions, memory = walk(losses, settings)
    assert actions.count("apply") == len(losses)
    assert statistics.median(memory.recent) == pytest.approx(3, abs=0.1)
    assert judge(step(5.0), memory, settings).action == "skip"
    assert judge(step(1.0), memory, settings).action == "apply", "a loss that falls is no spike"


@pytest.mark.parametrize("spike", ["stop", "skip", "roll_back"])
def test_a_spike_meets_what_the_setting_says_once_the_window_is_full(spike: str) -> None:
    settings = config(spike=spike, spike_window_steps=4)
    assert walk([1.0, 1.0, 1.0, 9.0], settings)[0] == ["apply"] * 4
    assert walk([1.0, 1.0, 1.0, 1.0, 9.0], settings)[0] == ["apply"] * 4 + [spike]


def test_the_gradient_is_watched_when_asked() -> None:
    settings = config(spike="skip", spike_window_steps=2, spike_measure="grad_norm")
    memory = Memory(recent=(1.0, 1.0), furthest_step=2)
    assert judge(step(99.0, 1.0), memory, settings).action == "apply"
    assert judge(step(1.0, 99.0), memory, settings).action == "skip"


def test_what_was_skipped_is_not_in_the_window() -> None:
    _, memory = walk([1.0, 1.0, 9.0, 1.1], config(spike="skip", spike_window_steps=2))
    assert memory.recent == (1.0, 1.1)
    assert (memory.skipped_steps, memory.skipped_in_a_row) == (1, 0)


def test_a_memory_that_went_through_a_file_decides_the_same() -> None:
    dice = random.Random(2)
    losses = [3 + dice.gauss(0, 0.1) + (dice.random() < 0.05) * 9 for _ in range(200)]
    settings = config(spike="skip", spike_window_steps=16)
    whole, end = walk(losses, settings)
    for cut in range(0, 200, 7):
        first, memory = walk(losses[:cut], settings)
        again = Memory.from_json(json.loads(json.dumps(memory.as_json())))
        assert again == memory
        rest, last = walk(losses[cut:], settings, again)
        assert first + rest == whole
        assert last == end


def test_a_run_that_is_rolled_back_again_and_again_is_stopped_though_it_applies_steps_in_between() -> None:
    settings = config(spike="roll_back", spike_window_steps=2, max_skipped_in_a_row=2)
    saved, actions = Memory(recent=(1.0, 1.0), furthest_step=2), []
    memory = saved
    for _ in range(3):  # step 3 is applied each time, step 4 is a spike each time
        for number, loss in ((3, 1.0), (4, 9.0)):
            verdict = judge(step(loss), memory, settings)
            actions.append(verdict.action)
            memory = remember(memory, number, step(loss), verdict, settings)
        memory = roll_back_memory(saved, memory)
    assert actions == ["apply", "roll_back", "apply", "roll_back", "apply", "stop"]
    assert verdict.reason.endswith("after 2 skipped steps since the run last came further than ever before")
