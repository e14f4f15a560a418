"""Hands a run to Slurm: its directory, its script, its job."""

import contextlib
import errno
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from launcher.run_directory import find_layout, freeze_run
from launcher.seeing.slurm import SCRIPT_WORDS, find_by_script
from launcher.seeing.state import look_at
from launcher.slurm.call import SlurmAwayError, SlurmError, call_slurm, sbatch_words
from launcher.slurm.facts import find_job_state, find_living_job, newest_step
from launcher.slurm.journal import append_line, newest_job, read_journal
from launcher.slurm.script import write_script
from launcher.slurm.times import say_time
from training.config.schema import RunConfig
from training.errors import ClusterError, ConfigError
from training.files import hold_lock, write_text
from training.layout import RunLayout

DONE = "finished already"
"""Stands for the job of a run that needs none."""

_ATTEMPTS = 3
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})
"""How flock(2) fails on a file system without locks, as Lustre mounted without ``flock``."""


def submit_run(config: RunConfig, *, after: str | None = None, behind: str | None = None) -> str:
    """Submit a run, or let it go on, and give the job's id.

    Args:
        config: The run; ``run.json`` is written where it is missing.
        after: A job, by number, or a run, by name, that must have ended well before.
        behind: A job, by number, that must have ended before, no matter how.

    Raises:
        ClusterError: A job of this run waits or runs already, or Slurm refuses it.
        ConfigError: ``after`` names neither.
        StorageError: Another command is submitting the run.
    """
    with hold_submission([find_layout(config)]):
        return submit_held(config, after=after, behind=behind)


@contextlib.contextmanager
def hold_submission(layouts: Iterable[RunLayout]) -> Iterator[None]:
    """Be the only command that looks for jobs of these runs and submits them.

    Raises:
        StorageError: Another one does so now.
    """
    with contextlib.ExitStack() as held:
        for layout in layouts:
            name = layout.root.name
            busy = f"{name} is being submitted by another command; `metier status {name}` shows its job"
            try:
                held.enter_context(hold_lock(layout.submission_lock, busy=busy))
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
        yield


def submit_held(config: RunConfig, *, after: str | None = None, behind: str | None = None) -> str:
    """Do what ``submit_run`` does, for a caller that holds the run's submission."""
    layout = find_layout(config)
    refuse_second(layout)
    dependency = find_dependency(after, Path(config.run_root))
    freeze_run(config)
    prepare_script(config, layout)
    layout.stop_request.unlink(missing_ok=True)
    job = submit(layout.job_script, *wait_for(dependency, behind))
    append_line(layout.jobs, "submitted", job=job, after=dependency, nodes=config.cluster.nodes)
    return job


def prepare_script(config: RunConfig, layout: RunLayout) -> None:
    """Write the run's batch script, and the folder that its log goes to.

    Raises:
        StorageError: They cannot be written.
    """
    text = write_script(config, layout)
    layout.logs.mkdir(parents=True, exist_ok=True)
    write_text(layout.job_script, text)
    layout.job_script.chmod(0o755)


def wait_for(job: str | None, behind: str | None = None) -> list[str]:
    """Give sbatch's options by which a job begins when ``job`` has ended well, and is cancelled else.

    It also waits until ``behind`` has ended, no matter how.
    """
    waits = [f"afterok:{job}"] if job else []
    waits += [f"afterany:{behind}"] if behind else []
    options = [f"--dependency={','.join(waits)}"] if waits else []
    return [*options, "--kill-on-invalid-dep=yes"] if job else options


def submit(script: Path, *options: str) -> str:
    """Submit a script with sbatch, and give the job's id.

    Raises:
        SlurmError: It was refused.
    """
    words = sbatch_words(script, "--parsable", *options)
    return call_slurm(words, attempts=_ATTEMPTS).strip().partition(";")[0]


def refuse_second(layout: RunLayout) -> None:
    """Refuse a second job of a run that has one: they would fight over it.

    Raises:
        ClusterError: One waits or runs.
    """
    name = layout.root.name
    lines = read_journal(layout.jobs)
    if living := find_living_job(lines):
        job, state = living
        raise ClusterError(
            f"job {job} of {name} is {state.lower()} already; `metier stop {name}` ends it, `metier watch "
            f"{name}` looks at it"
        )
    if newest_job(lines) is None:
        _refuse_unknown(layout)


def _refuse_unknown(layout: RunLayout) -> None:
    """Refuse a run that lives although jobs.jsonl names no job of it: somebody has removed that file."""
    name = layout.root.name
    said = call_slurm(SCRIPT_WORDS, attempts=_ATTEMPTS).splitlines()
    if (job := find_by_script(said, layout.job_script)) is not None:
        raise ClusterError(
            f"job {job} is of {name} and lives, and {layout.jobs} does not name it; `metier stop {name}` "
            "lets it save and end, then give this command again"
        )
    views, _ = look_at([layout])
    if views[0].state == "RUNNING":
        raise ClusterError(
            f"{name} lives ({views[0].note}), and {layout.jobs} names no job of it; `metier stop {name}` "
            "lets it save and end, then give this command again"
        )


def find_dependency(after: str | None, run_root: Path) -> str | None:
    """Find the job that is meant by a number or a run's name; None where there is nothing to wait for.

    Raises:
        ConfigError: There is no such run, or it was never submitted.
    """
    if after is None or re.fullmatch(r"\d+(_\d+)?", after):
        return after if after is None else _check_known(after)
    layout = RunLayout(run_root.absolute() / after)
    job = newest_job(read_journal(layout.jobs))
    if job is None:
        raise ConfigError(
            f"after={after}: neither a job's number nor a run in {run_root} that was submitted to Slurm"
        )
    if find_job_state(job) is None:
        if is_complete(layout):
            return None
        raise ConfigError(
            f"after={after}: its job {job} is gone and the run is not finished; submit it first"
        )
    return job


def _check_known(job: str) -> str:
    """Make sure that there is such a job: Slurm takes an unknown one for one that has ended well."""
    for words in (["scontrol", "show", "job", job], ["sacct", "--noheader", "-X", f"--jobs={job}"]):
        try:
            if call_slurm(words, attempts=_ATTEMPTS).strip():
                return job
        except SlurmAwayError:
            raise
        except SlurmError:
            continue
    raise ConfigError(f"after={job}: Slurm knows no such job; give the number that sbatch or squeue printed")


def describe_submission(config: RunConfig, job: str, *, after: str | None) -> str:
    """Say what was submitted, where its words go, and what one can do next."""
    layout, cluster, slurm = find_layout(config), config.cluster, config.cluster.slurm
    each = (
        f"{cluster.gpus_per_node} GPU{'s' * (cluster.gpus_per_node > 1)}"
        if cluster.gpus_per_node
        else f"{cluster.processes_per_node} process{'es' * (cluster.processes_per_node > 1)}"
    )
    spare = f" + {slurm.spare_nodes} spare" if slurm.spare_nodes else ""
    named = (("partition", slurm.partition), ("account", slurm.account), ("qos", slurm.qos))
    where = "".join(f", {name} {value}" for name, value in named if value)
    job_again = "the same job" if slurm.requeue else "a following job"
    name = shlex.quote(config.name)
    return f"""\
job        {job}{f", after {after}" if after else ""}
asked for  {cluster.nodes} node{"s" * (cluster.nodes > 1)}{spare} x {each}, {say_time(slurm.time)}{where}
           at its time's end, a preemption or a node's death the run goes on in {job_again}
run        {layout.root}
log        {layout.job_log(job)}
next       metier watch {name} | metier logs {name} | metier stop {name} | metier why {name}
"""


def say_submission(config: RunConfig, job: str, *, after: str | None) -> None:
    """Print ``describe_submission``."""
    sys.stdout.write(describe_submission(config, job, after=after))
    sys.stdout.flush()


def is_complete(layout: RunLayout) -> bool:
    """Whether a run is finished."""
    return _read_finish(layout) is not None


def find_last_step(layout: RunLayout) -> int | None:
    """Find the step after which a run was finished; None where it is not, or has lost that checkpoint."""
    step = _read_finish(layout)
    return step if step == newest_step(layout) else None


def _read_finish(layout: RunLayout) -> int | None:
    try:
        outcome = json.loads(layout.outcome.read_text(encoding="utf-8"))
        return int(outcome["step"]) if outcome["state"] == "COMPLETED" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
