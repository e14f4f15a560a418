"""Without a scheduler: the commands that the hosts are to run, one size after another."""

import sys
from collections.abc import Mapping

from launcher.compose import Composed
from launcher.dry_run import describe_hosts
from launcher.run_directory import freeze_run
from launcher.scaling.collect import is_complete
from launcher.scaling.record import Experiment, ScaleLayout


def print_commands(experiment: Experiment, runs: Mapping[str, Composed], layout: ScaleLayout) -> None:
    """Write the run directories that are still wanted, and say what starts them.

    Raises:
        MetierError: A run directory cannot be written.
    """
    todo = [each for each in experiment.attempts if each.name in runs and not is_complete(layout, each)]
    for number, attempt in enumerate(todo, start=1):
        config = runs[attempt.name].config
        freeze_run(config)
        sys.stdout.write(f"[{number}/{len(todo)}] {attempt.name}\n{describe_hosts(config)}\n")
    if todo:
        sys.stdout.write(f"then: metier scale collect {experiment.name}\n")
