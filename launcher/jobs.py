"""Runs one job, or a sweep's jobs one after another, and says how they went."""

import sys
import time
from collections.abc import Sequence

import yaml

from launcher.compose import Composed, compose_run, compose_values, overridden_paths
from launcher.local import Ending
from launcher.sweep import Job, plan_jobs
from launcher.tables import lay_out
from launcher.tree import ConfigTree
from launcher.verbs import run_verb, submit_jobs
from launcher.whole import run_whole
from training.errors import EXIT_OK, ConfigError, MetierError

Row = tuple[str, str, str, str]
_HEAD: Row = ("job", "state", "step", "time")


def run_jobs(
    verb: str,
    overrides: Sequence[str],
    tree: ConfigTree,
    *,
    multirun: bool,
    follow: bool = False,
    node_rank: int | None = None,
) -> int:
    """Compose and check all jobs, then run them; stop at the first that does not complete.

    Returns:
        The exit code of the last job that ran.

    Raises:
        MetierError: Something that the user can mend; in a sweep, the job is named.
    """
    jobs = plan_jobs(overrides, tree, multirun=multirun)
    runs = [compose_run(job.overrides, tree, job.suffix) for job in jobs]
    _check_names(runs)
    if not multirun:
        overridden = overridden_paths(jobs[0].overrides, tree)
        if verb == "run":
            return run_whole(runs[0], overridden, jobs[0].overrides, follow=follow).exit_code
        return run_verb(verb, runs[0], overridden, follow=follow, node_rank=node_rank).exit_code

    on_slurm = any(run.config.cluster.kind == "slurm" for run in runs)
    if verb == "run" and on_slurm:
        raise ConfigError(
            "metier run -m goes one after another on one machine; under Slurm use `metier prepare`, then "
            "`metier train -m`"
        )
    if verb == "train" and on_slurm:
        _check_array(runs, follow=follow)
        return submit_jobs(runs, runs[0].config.name.removesuffix(jobs[0].suffix)).exit_code
    rows: list[Row] = []
    code = EXIT_OK
    for number, (job, run) in enumerate(zip(jobs, runs, strict=True), start=1):
        name = run.config.name
        sys.stdout.write(f"[{number}/{len(jobs)}] {name}\n")
        sys.stdout.flush()
        started = time.monotonic()
        ending = _run_job(verb, job, run, tree, node_rank)
        rows.append((name, ending.state, str(ending.step or ""), f"{time.monotonic() - started:.0f} s"))
        code = ending.exit_code
        if code != EXIT_OK or ending.state == "STOPPED":
            break
    sys.stdout.write("".join(f"{line}\n" for line in lay_out([_HEAD, *rows])))
    if len(rows) < len(jobs):
        sys.stderr.write(
            f"metier {verb}: job {len(rows)} of {len(jobs)}, {rows[-1][0]}, ended as {rows[-1][1]}; "
            f"{len(jobs) - len(rows)} not started; the same command goes on\n"
        )
    return code


def show_configs(overrides: Sequence[str], tree: ConfigTree, *, multirun: bool) -> int:
    """Print what is composed, unchecked, as YAML; one document per job."""
    jobs = plan_jobs(overrides, tree, multirun=multirun)
    for job in jobs:
        values = compose_values(job.overrides, tree)
        values["name"] = f"{values['name']}{job.suffix}" if job.suffix else values["name"]
        separator = "---\n" if len(jobs) > 1 else ""
        sys.stdout.write(separator + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return EXIT_OK


def _run_job(verb: str, job: Job, run: Composed, tree: ConfigTree, node_rank: int | None) -> Ending:
    overridden = overridden_paths(job.overrides, tree)
    try:
        if verb == "run":
            return run_whole(run, overridden, job.overrides)
        return run_verb(verb, run, overridden, node_rank=node_rank)
    except MetierError as error:
        raise type(error)(f"job {run.config.name}: {error}") from error


def _check_array(runs: Sequence[Composed], *, follow: bool) -> None:
    if follow:
        raise ConfigError("--follow shows one run; for a sweep's there is `metier watch RUN`")
    for run in runs:
        if run.config.cluster.kind != runs[0].config.cluster.kind:
            raise ConfigError(
                f"cluster.kind differs between {runs[0].config.name} and {run.config.name}; a sweep goes to "
                "one cluster"
            )


def _check_names(runs: Sequence[Composed]) -> None:
    names = [run.config.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(
            f"two jobs of this sweep would be named {twice}; sweep name=... along with the rest"
        )
