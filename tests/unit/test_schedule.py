"""The learning rate: a pure function of the step."""

from itertools import pairwise

import pytest

from training.config.schema import OptimizerConfig, ScheduleConfig
from training.schedule import learning_rate_at

PEAK = 2e-4
OPTIMIZER = OptimizerConfig(
    kind="adamw",
    learning_rate=PEAK,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-8,
    weight_decay=0.1,
    max_grad_norm=1.0,
)


def rates(kind: str, *, warmup: int = 4, decay: int = 0, final: float = 0.1, steps: int = 20) -> list[float]:
    schedule = ScheduleConfig.model_validate(
        {"kind": kind, "warmup_steps": warmup, "decay_steps": decay, "final_fraction": final}
    )
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
