"""The learning rate: a pure function of the step."""

import math
from itertools import pairwise

import pytest

from training.config.learning import OptimizerConfig, ScheduleConfig
from training.schedule import learning_rate_at

PEAK = 2e-4
OPTIMIZER = OptimizerConfig(
    kind="adamw",
    learning_rate=PEAK,
    beta1=0.9,
    beta2=0.95,
    momentum=0.95,
    epsilon=1e-8,
    weight_decay=0.1,
    max_grad_norm=1.0,
    rate_factors={},
)


def rates(kind: str, *, warmup: int = 4, steps: int = 20, **changes: float | None) -> list[float]:
    names = {"decay": "decay_steps", "final": "final_fraction"}
    settings = {"decay_steps": 0, "final_fraction": 0.1, "first_step": 0, "total_steps": None}
    settings |= {names.get(name, name): value for name, value in changes.items()}
    schedule = ScheduleConfig.model_validate({"kind": kind, "warmup_steps": warmup, **settings})
    return [
        learning_rate_at(step, optimizer=OPTIMIZER, schedule=schedule, max_steps=steps)
        for step in range(steps)
    ]


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
def test_the_warm_up_rises_evenly_and_reaches_the_peak_with_its_last_step(kind: str) -> None:
    assert rates(kind, decay=5)[:4] == pytest.approx([PEAK / 4, PEAK / 2, PEAK * 3 / 4, PEAK])


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_linear_has_at_each_step_its_share_of_the_way_that_is_left(final: float) -> None:
    # transformers' linear schedule, N - s over N - W, on the way from the final fraction to the peak.
    wanted = [final + (1 - final) * (20 - step) / (20 - 4) for step in range(4, 20)]

    assert rates("linear", final=final)[4:] == pytest.approx([PEAK * each for each in wanted])


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_goes_the_same_way_along_half_a_cosine(final: float) -> None:
    wanted = [
        final + (1 - final) * math.cos(math.pi / 2 * (step - 4) / (20 - 4)) ** 2 for step in range(4, 20)
    ]

    assert rates("cosine", final=final)[4:] == pytest.approx([PEAK * each for each in wanted])


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_wsd_stays_at_the_peak_until_its_last_steps_and_falls_evenly_over_them(final: float) -> None:
    values = rates("wsd", decay=5, final=final)

    assert values[3:15] == [PEAK] * 12
    wanted = [PEAK * (final + (1 - final) * (20 - step) / 5) for step in range(15, 20)]
    assert values[15:] == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 15])
def test_the_decay_falls_with_every_step_and_throws_none_away(kind: str, warmup: int) -> None:
    values = rates(kind, warmup=warmup, decay=5, final=0.0)

    falling = values[15:] if kind == "wsd" else values[warmup:]
    assert all(later < earlier for earlier, later in pairwise(falling))
    assert min(values) > 0


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_a_run_of_one_step_takes_it_at_the_peak(kind: str, final: float) -> None:
    assert rates(kind, warmup=0, decay=1, steps=1, final=final) == [PEAK]


def test_cosine_and_linear_meet_in_the_middle_of_the_decay() -> None:
    assert rates("cosine", warmup=0)[10] == pytest.approx(rates("linear", warmup=0)[10])


def test_constant_stays() -> None:
    assert rates("constant", warmup=0) == [PEAK] * 20


def test_inverse_sqrt_halves_whenever_the_steps_are_four_times_as_many() -> None:
    values = rates("inverse_sqrt", warmup=4, steps=64, final=0.0)

    assert values[3] == pytest.approx(PEAK)
    assert [values[15], values[63]] == pytest.approx([PEAK / 2, PEAK / 4])


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd", "inverse_sqrt"])
def test_two_runs_that_share_a_schedule_have_the_rates_of_one(kind: str) -> None:
    whole = rates(kind, decay=5, steps=20)

    first = rates(kind, decay=5, steps=12, total_steps=20)
    second = rates(kind, decay=5, steps=8, first_step=12, total_steps=20)
    assert first + second == whole


def test_a_run_that_goes_on_from_a_stable_phase_has_no_second_warm_up_and_its_own_decay() -> None:
    values = rates("wsd", decay=4, steps=10, first_step=100)

    assert values[:6] == [PEAK] * 6
    assert values[6:] == pytest.approx([PEAK * (0.1 + 0.9 * k / 4) for k in (4, 3, 2, 1)])
