"""A sweep: each job trains a run of its own, some at a time, and fails alone.

One job array, whose limit Slurm keeps. Where no job may requeue, a task's run would go on in a job that is
none of the array's, and the limit would not count that one: there every run has a job of its own, which
waits for the one that is ``array_limit`` places before it, and for whatever that one's run goes on in
(successor.py).
"""

from collections.abc import Sequence
from pathlib import Path

from launcher.run_directory import find_differences, find_layout, freeze_run
from launcher.slurm.journal import append_line
from launcher.slurm.script import write_script
from launcher.slurm.submit import (
    DONE,
    find_dependency,
    find_last_step,
    hold_submission,
    prepare_script,
    refuse_second,
    submit,
    submit_held,
    wait_for,
)
from training.config.schema import RunConfig
from training.errors import ClusterError
from training.files import write_text
from training.layout import RunLayout

Row = tuple[str, str]
"""A job and the run that it trains, or that this one is finished already."""


def submit_sweep(configs: Sequence[RunConfig], name: str, *, after: str | None = None) -> list[Row]:
    """Submit the runs of a sweep that are not finished; give each run's job.

    What the tasks need lies in the run directories and in the script itself: nothing is composed on a node,
    and a later sweep of the same name changes nothing of this one.

    Args:
        configs: The runs.
        name: The sweep's: its script and its log are in ``run_root/NAME.sweep``.
        after: A job, by number, or a run, by name, that must have ended well before.

    Raises:
        ClusterError: A run has a job already, the runs ask for different nodes, or Slurm refuses.
        StorageError: Another command is submitting one of the runs.
    """
    layouts = [find_layout(config) for config in configs]
    with hold_submission(layouts):
        return _submit_held(configs, layouts, name, after)


def _submit_held(
    configs: Sequence[RunConfig], layouts: Sequence[RunLayout], name: str, after: str | None
) -> list[Row]:
    for layout in layouts:
        refuse_second(layout)
    script, text = plan_sweep(configs, name)
    todo = [number for number, layout in enumerate(layouts) if find_last_step(layout) is None]
    if not configs[0].cluster.slurm.requeue:
        jobs = dict(zip(todo, _submit_one_by_one([configs[each] for each in todo], after), strict=True))
        return [(jobs.get(number, DONE), layout.root.name) for number, layout in enumerate(layouts)]
    dependency = find_dependency(after, Path(configs[0].run_root))
    for number in todo:
        freeze_run(configs[number])
        prepare_script(configs[number], layouts[number])
        layouts[number].stop_request.unlink(missing_ok=True)
    if not todo:
        return [(DONE, layout.root.name) for layout in layouts]
    script.logs.mkdir(parents=True, exist_ok=True)
    write_text(script.job_script, text)
    limit = configs[0].cluster.slurm.array_limit
    tasks = ",".join(map(str, todo))
    array = submit(script.job_script, f"--array={tasks}%{limit}", *wait_for(dependency))
    for number in todo:
        job = f"{array}_{number}"
        append_line(
            layouts[number].jobs, "submitted", job=job, after=dependency, nodes=configs[number].cluster.nodes
        )
    return [
        (f"{array}_{number}" if number in todo else DONE, layout.root.name)
        for number, layout in enumerate(layouts)
    ]


def _submit_one_by_one(configs: Sequence[RunConfig], after: str | None) -> list[str]:
    jobs: list[str] = []
    for config in configs:
        place = len(jobs) - config.cluster.slurm.array_limit
        jobs.append(submit_held(config, after=after, behind=jobs[place] if place >= 0 else None))
    return jobs


def plan_sweep(configs: Sequence[RunConfig], name: str) -> tuple[RunLayout, str]:
    """Name the sweep's folder and write its script, which must do for all of its runs.

    Where no job may requeue there is no array: folder and script are those of the first run.

    Raises:
        ClusterError: The runs ask for different nodes.
    """
    layouts = [find_layout(config) for config in configs]
    folder = RunLayout.of(configs[0].run_root, f"{name}.sweep")
    texts = [write_script(config.model_copy(update={"name": name}), folder, layouts) for config in configs]
    for config, text in zip(configs, texts, strict=True):
        if text != texts[0]:
            paths = [
                path for path, _, _ in find_differences(configs[0], config) if path.startswith("cluster.")
            ]
            raise ClusterError(
                f"{', '.join(paths) or 'what is asked of Slurm'} differs between {configs[0].name} and "
                f"{config.name}, and the jobs of a sweep ask for the same; submit these one by one"
            )
    if not configs[0].cluster.slurm.requeue:
        return layouts[0], write_script(configs[0], layouts[0])
    return folder, texts[0]


def describe_sweep(rows: Sequence[Row], config: RunConfig) -> str:
    """Say which job trains which run, and where the words of each go."""
    width = max(len(job) for job, _ in rows)
    lines = [f"{job.ljust(width)}  {run}\n" for job, run in rows]
    waiting = sum(job != DONE for job, _ in rows)
    if not waiting:
        return "".join(lines)
    root, slurm = Path(config.run_root).absolute(), config.cluster.slurm
    how = "one job array" if slurm.requeue else "jobs that wait for each other"
    again = " | scontrol requeue JOB" if slurm.requeue else ""
    return (
        f"{'job'.ljust(width)}  run\n{''.join(lines)}"
        f"{waiting} run{'s' * (waiting > 1)} as {how}, {slurm.array_limit} at a time "
        f"(cluster.slurm.array_limit); one that fails leaves the others\n"
        f"log   {root}/RUN/logs/job_JOB.log\n"
        f"next  metier status | metier watch RUN | metier why RUN{again}\n"
    )
