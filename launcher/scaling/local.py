"""Runs an experiment's trainings one after another, each as `metier train` would."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace

from launcher.local import Ending
from launcher.scaling.collect import is_complete
from launcher.scaling.record import Experiment, ScaleLayout, write_experiment
from training.errors import EXIT_OK, MetierError


def run_one_after_another(
    experiment: Experiment, layout: ScaleLayout, train: Callable[[str], Ending]
) -> tuple[Experiment, bool]:
    """Train what is not complete. A run that fails is noted, and the next one starts.

    Args:
        experiment: The experiment.
        layout: Its files.
        train: Trains the run of this name.

    Returns:
        The experiment with what became of each run, and whether it was stopped.
    """
    todo = [each for each in experiment.attempts if not each.refused and not is_complete(layout, each)]
    for number, attempt in enumerate(todo, start=1):
        sys.stdout.write(f"[{number}/{len(todo)}] {attempt.name}\n")
        sys.stdout.flush()
        stopped = False
        try:
            ending = train(attempt.name)
        except MetierError as error:
            ended: str | None = str(error)
            sys.stderr.write(f"metier scale: {error}\n")
        else:
            stopped = ending.state == "STOPPED"
            ended = None if ending.exit_code == EXIT_OK else ending.line
        experiment = experiment.with_attempt(replace(attempt, ended=ended))
        write_experiment(layout, experiment)
        if stopped:
            return experiment, True
        drop_checkpoints(experiment, layout)
    return experiment, False


def drop_checkpoints(experiment: Experiment, layout: ScaleLayout) -> None:
    """Let go of what complete runs have saved: nobody goes on from a measurement, and a model is large."""
    for attempt in experiment.attempts:
        if is_complete(layout, attempt):
            shutil.rmtree(layout.run(attempt).checkpoints, ignore_errors=True)
