"""Under Slurm: every run is a job of its own."""

from collections.abc import Mapping

from launcher.compose import Composed
from launcher.scaling.record import Experiment, ScaleLayout


def submit_all(
    experiment: Experiment, runs: Mapping[str, Composed], layout: ScaleLayout, *, again: bool
) -> Experiment:
    """Submit what was not submitted yet."""
    raise NotImplementedError


def is_alive(job: str) -> bool:
    """Whether Slurm still has the job."""
    raise NotImplementedError


def wait_for_all(experiment: Experiment, layout: ScaleLayout) -> None:
    """Return when no run's job is left."""
    raise NotImplementedError
