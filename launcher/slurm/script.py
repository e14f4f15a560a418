"""The batch script of a run, as text."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launcher.slurm.job import ENOUGH, REQUEUED
from launcher.slurm.request import (
    find_look_seconds,
    find_processes_per_node,
    plan_command,
    plan_directives,
    plan_look_srun,
    plan_setup,
    plan_srun,
)
from training.config.schema import RunConfig
from training.layout import RunLayout

_TEMPLATES = Path(__file__).resolve().parent.parent.parent / "slurm"
_RUN = "RUN-DIRECTORY"


def write_script(config: RunConfig, layout: RunLayout, runs: Sequence[RunLayout] = ()) -> str:
    """Write the script that trains this run: short, commented, to be submitted by hand as well.

    Args:
        config: The run.
        layout: Its folder; of a job array, the folder that its script and its log are in.
        runs: Of a job array: the run of each task.

    Raises:
        ConfigError: A further option of sbatch is owned by a setting.
    """
    cluster = config.cluster
    per_node = find_processes_per_node(cluster)
    shape = _shape(cluster.nodes, per_node)
    everywhere = _shape(cluster.nodes + cluster.slurm.spare_nodes, per_node)
    further = plan_srun(config)
    directives = plan_directives(config, layout)
    if runs:
        directives = for_array(directives, len(runs), limit=cluster.slurm.array_limit)
    return render(
        "job.sbatch.j2",
        name=config.name,
        directives=directives,
        script=shlex.quote(str(layout.job_script)),
        run=shlex.quote(str(layout.root)),
        runs=[quote_always(str(each.root)) for each in runs],
        python=find_script_python(config),
        setup=plan_setup(config),
        enough=ENOUGH,
        requeued=REQUEUED,
        deputies=f"{find_script_python(config)} -m launcher.slurm.deputy"
        if cluster.slurm.spare_nodes
        else "",
        preflight=""
        if cluster.preflight.mode == "off"
        else _in_run(plan_command(config, "training.preflight", _RUN)),
        look_seconds=find_look_seconds(cluster),
        srun_all=shlex.join([*everywhere, *plan_look_srun(config)]),
        srun=shlex.join([*shape, *further]),
        worker=_in_run(plan_command(config, "training.worker", _RUN)),
    )


def find_script_python(config: RunConfig) -> str:
    """Name the Python of the job's script, which runs outside of any container: there this command's own."""
    outside = config.cluster.container.kind == "none" and config.cluster.environment.python
    return shlex.quote(outside or sys.executable)


def render(template: str, **values: Any) -> str:
    """Fill a script's template of the folder ``slurm``."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - a shell script; what goes in is quoted
    )
    return environment.get_template(template).render(**values)


def for_array(directives: Sequence[str], tasks: int, *, limit: int) -> list[str]:
    """Make the directives of one job those of an array, whose tasks share a log until each opens its own."""
    one = [each.replace("%j", "%A") if each.startswith("--output=") else each for each in directives]
    return [*one, f"--array=0-{tasks - 1}%{limit}"]


def quote_always(text: str) -> str:
    """Quote an element of an array, in which a comma looks like a mistake."""
    quoted = shlex.quote(text)
    return quoted if quoted != text else f"'{text}'"


def _in_run(words: Sequence[str]) -> str:
    """Write a command whose last word is the run directory, which the script knows."""
    return f'{shlex.join(words[:-1])} "$run"'


def _shape(nodes: int, per_node: int) -> list[str]:
    # All three: what srun takes over from the job's environment counts the spare nodes.
    return [f"--nodes={nodes}", f"--ntasks={nodes * per_node}", f"--ntasks-per-node={per_node}"]
