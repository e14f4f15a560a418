"""`metier run` under Slurm: prepare, train, evaluate and export as jobs that wait for each other."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.run_directory import find_layout, freeze_run
from launcher.slurm.call import call_slurm
from launcher.slurm.journal import append_line
from launcher.slurm.request import plan_command, plan_directives, plan_setup, plan_srun
from launcher.slurm.script import for_array, quote_always, render
from launcher.slurm.submit import (
    DONE,
    find_dependency,
    find_last_step,
    hold_submission,
    refuse_second,
    submit,
    submit_held,
    wait_for,
)
from launcher.tables import lay_out
from launcher.versions import find_versions
from training.config.freeze import write_frozen
from training.config.schema import RunConfig
from training.errors import MetierError
from training.files import write_text
from training.layout import RunLayout

_MODULES = {"prepare": "training.prepare", "evaluate": "training.evaluation", "export": "training.export"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A job beside the training's."""

    verb: str
    name: str
    """Of its script and of its job."""

    frozen: tuple[Path, ...]
    """What it works on; several: one for each task of an array."""

    config: RunConfig
    """What its job asks for: one node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """One line of the table."""

    job: str
    what: str
    after: str | None
    nodes: int


def submit_stages(config: RunConfig, *, prepares: bool, after: str | None) -> list[Submitted]:
    """Submit a run from its documents to its report; give the jobs in the order in which they begin.

    Where the training is finished already there is no job for it, and none waits for it.

    Args:
        config: The run; its corpus is prepared in ``prepare.tasks`` jobs side by side.
        prepares: Whether the corpus and the model's folder have still to be made.
        after: A job, by number, or a run, by name, that must have ended well before the first one begins.

    Raises:
        ClusterError: The run has a job already, or Slurm refuses one.
        StorageError: Another command is submitting the run.
    """
    with hold_submission([find_layout(config)]):
        return _submit_held(config, prepares=prepares, after=after)


def _submit_held(config: RunConfig, *, prepares: bool, after: str | None) -> list[Submitted]:
    refuse_second(find_layout(config))
    rows: list[Submitted] = []
    try:
        _submit_all(config, find_dependency(after, Path(config.run_root)), rows, prepares=prepares)
    except MetierError:
        # What was submitted waits for what never comes.
        if jobs := [row.job.partition("_")[0] for row in rows if row.job != DONE]:
            call_slurm(["scancel", *jobs])
        raise
    return rows


def _submit_all(config: RunConfig, last: str | None, rows: list[Submitted], *, prepares: bool) -> None:
    layout = find_layout(config)
    for stage in plan_preparation(config) if prepares else ():
        last = _submit_stage(stage, layout, last, rows)
    if find_last_step(layout) is not None:
        freeze_run(config)
        rows.append(Submitted(job=DONE, what="train", after=None, nodes=0))
    else:
        train = submit_held(config, after=last)
        rows.append(Submitted(job=train, what="train", after=last, nodes=config.cluster.nodes))
        last = train
    for stage in plan_fruits(config):
        _submit_stage(stage, layout, last, rows)


def describe_scripts(config: RunConfig, *, prepares: bool, training: str) -> str:
    """Give all scripts, in order.

    Args:
        config: The run.
        prepares: Whether the corpus has still to be made.
        training: What is said of the training's own.

    Raises:
        ConfigError: A further option of sbatch is owned by a setting.
    """
    layout = find_layout(config)

    def show(stages: Iterable[Stage]) -> str:
        return "".join(
            f"The script, {find_script(stage, layout)}\n{write_stage(stage, layout)}\n" for stage in stages
        )

    return f"{show(plan_preparation(config) if prepares else ())}{training}\n{show(plan_fruits(config))}"


def plan_preparation(config: RunConfig) -> Iterator[Stage]:
    """Plan what comes before the training: an array of shares, where there are several, and their end."""
    folder, tasks = find_folder(find_layout(config)), config.prepare.tasks
    node = _one_node(config, gpus=0)
    if tasks > 1:
        shares = tuple(folder / f"share_{task}.json" for task in range(tasks))
        yield Stage(verb="prepare", name="prepare_shares", frozen=shares, config=node)
    yield Stage(verb="prepare", name="prepare", frozen=(folder / "prepare.json",), config=node)


def plan_fruits(config: RunConfig) -> Iterator[Stage]:
    """Plan what comes after the training."""
    layout = find_layout(config)
    yield Stage(
        verb="evaluate",
        name="evaluate",
        frozen=(layout.config,),
        config=_one_node(config, gpus=min(1, config.cluster.gpus_per_node)),
    )
    yield Stage(verb="export", name="export", frozen=(layout.config,), config=_one_node(config, gpus=0))


def find_folder(layout: RunLayout) -> Path:
    """Name the folder of the scripts of a run's other jobs."""
    return layout.root / "jobs"


def write_stage(stage: Stage, layout: RunLayout) -> str:
    """Write a stage's script.

    Raises:
        ConfigError: A further option of sbatch is owned by a setting.
    """
    config = stage.config
    # The script has no trap: a notice would end it.
    own = ("--signal=", "--job-name=")
    directives = [each for each in plan_directives(config, layout) if not each.startswith(own)]
    directives.insert(0, f"--job-name={shlex.quote(f'{config.name}.{stage.name}')}")
    if len(stage.frozen) > 1:
        directives = for_array(directives, len(stage.frozen), limit=config.cluster.slurm.array_limit)
        directives = [each.replace("%A", "%A_%a") for each in directives]
    command = plan_command(config, _MODULES[stage.verb], "FROZEN")
    return render(
        "stage.sbatch.j2",
        title=f"{stage.verb.capitalize()}s {config.name}",
        name=config.name,
        verb=stage.verb,
        directives=directives,
        script=shlex.quote(str(find_script(stage, layout))),
        runs=[quote_always(str(path)) for path in stage.frozen] if len(stage.frozen) > 1 else [],
        frozen=shlex.quote(str(stage.frozen[0])),
        wants_finished=stage.verb != "prepare",
        outcome=shlex.quote(str(layout.outcome)),
        setup=plan_setup(config),
        srun=shlex.join(["--nodes=1", "--ntasks=1", "--ntasks-per-node=1", *plan_srun(config)]),
        command=f'{shlex.join(command[:-1])} "$frozen"',
    )


def find_script(stage: Stage, layout: RunLayout) -> Path:
    """Name a stage's script."""
    return find_folder(layout) / f"{stage.name}.sh"


def _submit_stage(stage: Stage, layout: RunLayout, after: str | None, rows: list[Submitted]) -> str:
    script = find_script(stage, layout)
    layout.logs.mkdir(parents=True, exist_ok=True)
    if stage.verb == "prepare":
        tasks = len(stage.frozen)
        for task, path in enumerate(stage.frozen):
            _freeze_share(stage.config, path, tasks=tasks, task=task)
    write_text(script, write_stage(stage, layout))
    job = submit(script, *wait_for(after))
    append_line(layout.jobs, "stage", job=job, stage=stage.name, after=after)
    last = len(stage.frozen) - 1
    rows.append(Submitted(job=f"{job}_[0-{last}]" if last else job, what=stage.verb, after=after, nodes=1))
    return job


def _freeze_share(config: RunConfig, path: Path, *, tasks: int, task: int) -> None:
    share = config.prepare.model_copy(update={"tasks": tasks, "task": task})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_frozen(path, config.model_copy(update={"prepare": share}), find_versions())


def _one_node(config: RunConfig, *, gpus: int) -> RunConfig:
    cluster = config.cluster
    per_node = cluster.gpus_per_node or cluster.processes_per_node
    cpus = cluster.slurm.cpus_per_process
    slurm = cluster.slurm.model_copy(update={"spare_nodes": 0, "cpus_per_process": cpus and cpus * per_node})
    node = cluster.model_copy(
        update={"nodes": 1, "gpus_per_node": gpus, "processes_per_node": 1, "slurm": slurm}
    )
    return config.model_copy(update={"cluster": node})


def describe_stages(rows: Sequence[Submitted], config: RunConfig) -> str:
    """Say which job does what, and what it waits for."""
    layout = find_layout(config)
    head = ("job", "what", "after", "nodes")
    table = [head, *((row.job, row.what, row.after or "", str(row.nodes)) for row in rows)]
    name = shlex.quote(config.name)
    return (
        "".join(f"{line}\n" for line in lay_out(table))
        + "each begins when the one before has ended well; when that fails, what waits for it is cancelled\n"
        f"run   {layout.root}\n"
        f"logs  {layout.job_log('JOB')}\n"
        f"next  metier watch {name} | metier stop {name} | metier why {name}\n"
    )
