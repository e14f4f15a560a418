"""The learning rate: a pure function of the step."""

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


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_the_decay_falls_steadily_and_ends_at_the_final_fraction_with_the_last_step(kind: str) -> None:
    values = rates(kind, decay=16)[4:]

    assert values[-1] == pytest.approx(0.1 * PEAK)
    assert all(later < earlier for earlier, later in pairwise(values))


def test_cosine_and_linear_meet_in_the_middle_of_the_decay() -> None:
    assert rates("cosine", warmup=0)[9] == pytest.approx(rates("linear", warmup=0)[9])


def test_wsd_stays_at_the_peak_until_its_decay() -> None:
    values = rates("wsd", decay=5)

    assert values[3:15] == [PEAK] * 12
    assert values[15:] == pytest.approx([PEAK * (1 - 0.9 * k / 5) for k in (1, 2, 3, 4, 5)])


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
    assert values[-1] == pytest.approx(0.1 * PEAK)
