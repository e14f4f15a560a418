"""The batch script of a run, as text."""

import shlex
import sys
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launcher.slurm.job import ENOUGH, REQUEUED
from launcher.slurm.request import (
    find_processes_per_node,
    plan_command,
    plan_directives,
    plan_setup,
    plan_srun,
)
from training.config.schema import RunConfig
from training.layout import RunLayout

TEMPLATE = Path(__file__).resolve().parent.parent.parent / "slurm" / "job.sbatch.j2"


def write_script(config: RunConfig, layout: RunLayout) -> str:
    """Write the script that trains this run: short, commented, to be submitted by hand as well.

    Raises:
        ConfigError: A further option of sbatch is owned by a setting.
    """
    cluster = config.cluster
    per_node = find_processes_per_node(cluster)
    shape = _shape(cluster.nodes, per_node)
    everywhere = _shape(cluster.nodes + cluster.slurm.spare_nodes, per_node)
    further = plan_srun(config)
    template = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - a shell script; what goes in is quoted
    ).get_template(TEMPLATE.name)
    return template.render(
        name=config.name,
        directives=plan_directives(config, layout),
        script=shlex.quote(str(layout.job_script)),
        run=shlex.quote(str(layout.root)),
        python=shlex.quote(config.cluster.environment.python or sys.executable),
        setup=plan_setup(config),
        enough=ENOUGH,
        requeued=REQUEUED,
        preflight=""
        if cluster.preflight.mode == "off"
        else shlex.join(plan_command(config, "training.preflight", layout.root)),
        srun_all=shlex.join([*everywhere, *further]),
        srun=shlex.join([*shape, *further]),
        worker=shlex.join(plan_command(config, "training.worker", layout.root)),
    )


def _shape(nodes: int, per_node: int) -> list[str]:
    # All three: what srun takes over from the job's environment counts the spare nodes.
    return [f"--nodes={nodes}", f"--ntasks={nodes * per_node}", f"--ntasks-per-node={per_node}"]
