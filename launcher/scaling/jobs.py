"""Under Slurm: every run of an experiment is a job; as many at the same time as array_limit says."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from launcher.checks import check_prepared, look_ahead
from launcher.compose import Composed
from launcher.scaling.collect import is_complete
from launcher.scaling.record import Attempt, Experiment, ScaleLayout, write_experiment
from launcher.slurm.call import SlurmAwayError
from launcher.slurm.facts import find_living_job
from launcher.slurm.journal import newest_job, read_journal
from launcher.slurm.login import check_slurm
from launcher.slurm.submit import submit_run
from training.errors import MetierError
from training.layout import RunLayout

_ASK_EVERY_SECONDS = 5.0


def submit_all(
    experiment: Experiment, runs: Mapping[str, Composed], layout: ScaleLayout, *, again: bool
) -> Experiment:
    """Submit what was never submitted; what Slurm refuses is noted, and the next one is submitted.

    Args:
        experiment: The experiment.
        runs: Its runs, by name.
        layout: Its files.
        again: Also what has failed.
    """
    alive = [job for each in experiment.attempts if (job := find_alive(layout.run(each)))]
    noted: set[str] = set()
    for attempt in experiment.attempts:
        run = layout.run(attempt)
        had = newest_job(read_journal(run.jobs)) is not None
        if attempt.name not in runs or is_complete(layout, attempt) or find_alive(run) or (had and not again):
            continue
        config = runs[attempt.name].config
        limit = config.cluster.slurm.array_limit
        try:
            check_prepared(config)
            look_ahead(config, write=True)
            # Else a size that the partition does not have would wait in the queue for ever.
            _note(check_slurm(config), noted)
            job = submit_run(config, behind=alive[-limit] if len(alive) >= limit else None)
        except SlurmAwayError:
            raise
        except MetierError as error:
            ended: str | None = str(error)
            sys.stderr.write(f"metier scale: {attempt.name}: {error}\n")
        else:
            ended = None
            alive.append(job)
            sys.stdout.write(f"job {job}  {attempt.name}\n")
            sys.stdout.flush()
        experiment = experiment.with_attempt(replace(attempt, ended=ended))
        write_experiment(layout, experiment)
    return experiment


def _note(notes: Sequence[str], noted: set[str]) -> None:
    """Say what may go wrong, once for all runs."""
    for note in notes:
        if note not in noted:
            sys.stderr.write(f"metier scale: note: {note}\n")
            noted.add(note)


def find_alive(run: RunLayout) -> str | None:
    """Find the job of a run that waits, runs or ends; None when there is none."""
    living = find_living_job(read_journal(run.jobs))
    return living[0] if living else None


def was_submitted(run: RunLayout) -> bool:
    """Whether a run ever had a job."""
    return newest_job(read_journal(run.jobs)) is not None


def wait_for_all(experiment: Experiment, layout: ScaleLayout) -> None:
    """Return when no run's job is left; Ctrl-C leaves the jobs alone."""
    left = {attempt.name: attempt for attempt in experiment.attempts if was_submitted(layout.run(attempt))}
    try:
        while left:
            for attempt in [each for each in left.values() if _has_ended(each, layout)]:
                del left[attempt.name]
                ending = "is complete" if is_complete(layout, attempt) else "has failed"
                sys.stdout.write(f"{attempt.name} {ending}, {len(left)} to come\n")
                sys.stdout.flush()
            time.sleep(_ASK_EVERY_SECONDS if left else 0)
    except KeyboardInterrupt:
        sys.stderr.write(f"the jobs go on; `metier scale collect {experiment.name} --wait` waits again\n")
        raise


def _has_ended(attempt: Attempt, layout: ScaleLayout) -> bool:
    try:
        return find_alive(layout.run(attempt)) is None
    except SlurmAwayError:
        return False  # the jobs go on without their controller
