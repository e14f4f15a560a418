"""`metier preflight`: starts one process per device, which look at their nodes and at the network."""

import os
import shlex
import sys
import time
from pathlib import Path

from launcher.checks import check_devices
from launcher.commands import merge_environment, package_variables, torchrun_command, training_variables
from launcher.compose import compose_values
from launcher.dry_run import describe_command
from launcher.hosts import check_cluster, explain_numbers, find_share
from launcher.processes import run_here, run_with_log
from launcher.run_directory import find_layout
from launcher.slurm.ask import ask_site, expand_hosts
from launcher.slurm.limits import judge_request
from launcher.slurm.request import (
    find_look_seconds,
    find_processes_per_node,
    plan_command,
    plan_directives,
    plan_look_srun,
    plan_setup,
)
from launcher.slurm.times import parse_time
from launcher.tools import Words, find_node_rank, refuse_flags
from launcher.versions import find_versions
from training.config.freeze import check_config, write_frozen
from training.config.schema import RunConfig
from training.errors import EXIT_FAILED, EXIT_OK, ClusterError, StorageError
from training.layout import RunLayout
from training.verdict import UNNAMED, blame_lead, find_report, read_verdict, say

_MODULE = "training.preflight"
_MISSING = "???"
_BATCH_ONLY = (
    "chdir",
    "mail-type",
    "mail-user",
    "no-requeue",
    "open-mode",
    "output",
    "requeue",
    "signal",
    "time",
    "wait-all-nodes",
)
"""Options of sbatch that srun does not have, or that are the run's and not this look's."""

_GRACE_MINUTES = 5

HELP = """\
metier preflight [experiment=NAME] [cluster=NAME] [KEY=VALUE ...] [--node-rank=N]

Looks at each node that a run would get: GPUs and their health, the rate of a matrix product, copies in memory
and to the GPU, run directory and local disk (free, written, read), corpus and model, /dev/shm, limits, clock,
versions; then at the all-reduce of all, and at the links between nodes. Takes at most
cluster.preflight.budget_seconds. Prints a table, and one line for each thing that is not as it should be
(docs/preflight.md).

Writes run_root/NAME/preflight/preflight.json, or without an experiment run_root/preflight/preflight.json; a
run itself is not touched.

  cluster=local      here, through torchrun
  cluster=slurm      inside of an allocation its nodes; else srun asks for nodes as a run would
  cluster=torchrun   the same command on each host, --node-rank=N on all but the first

Exit code: 0 all is well, or warnings; 3 nodes are to be excluded; 4 a run should not start; 1 no answer.

Examples
  metier preflight
  metier preflight experiment=medical_qlora_smol cluster.processes_per_node=2
  metier preflight cluster=slurm cluster.nodes=4 cluster.gpus_per_node=8 cluster.slurm.partition=gpu
"""


def run(words: Words) -> int:
    """Look, and give the exit code.

    Raises:
        MetierError: The words are no configuration, or nothing can be started.
    """
    refuse_flags(words, ("--node-rank",))
    config, dry_run = _compose(words)
    layout = _find_folder(config)
    node_rank = find_node_rank(words)
    check_cluster(config.cluster, node_rank)
    command, variables = _plan(config, layout, node_rank)
    if dry_run:
        sys.stdout.write(describe_command(command))
        return EXIT_OK
    if config.cluster.kind != "slurm":
        check_devices(config.cluster)
    elif "SLURM_JOB_ID" not in os.environ:
        # What Slurm would let wait for ever is refused, as before a training.
        judge_request(config.cluster, ask_site(), expand_hosts(config.cluster.slurm.exclude))
    _make_ready(config, layout)
    environment = merge_environment(os.environ, variables)
    patience = _Patience(layout.preflight, find_look_seconds(config.cluster))
    if config.cluster.kind == "slurm":
        # The lead says it on this screen.
        code, told = run_here(command, environment, is_late=patience.is_over), True
    else:
        log = layout.logs / "preflight.log"
        (code, _), told = run_with_log(command, environment, log, is_late=patience.is_over), False
    if patience.is_over() and read_verdict(layout.preflight).kind == "unknown":
        line = blame_lead(layout.preflight, config.cluster.preflight, patience.seconds)
        sys.stderr.write(f"metier preflight: {line}\n")
        return read_verdict(layout.preflight).exit_code
    return _end(layout, code, told=told)


class _Patience:
    """How long the lead is waited for, from the moment it has begun: srun may wait in the queue before."""

    def __init__(self, path: Path, seconds: int) -> None:
        """The lead writes its name into ``path`` first of all."""
        self.seconds = seconds
        self._path, self._began = path, 0.0

    def is_over(self) -> bool:
        """Whether it has had its time."""
        if not self._began and self._path.exists():
            self._began = time.monotonic()
        return bool(self._began) and time.monotonic() - self._began > self.seconds


def _compose(words: Words) -> tuple[RunConfig, bool]:
    """Compose a run of which the cluster alone has to make sense: no rule across its settings is asked."""
    overrides = list(words.plain)
    values = compose_values(overrides, words.tree)
    if values["name"] == _MISSING:
        values["name"] = UNNAMED
    dry_run = values.pop("dry_run")
    values.pop("after")
    return check_config(values), bool(dry_run)


def _find_folder(config: RunConfig) -> RunLayout:
    root = find_layout(config).root
    return RunLayout(root if config.name == UNNAMED else root / UNNAMED)


def _plan(config: RunConfig, layout: RunLayout, node_rank: int | None) -> tuple[list[str], dict[str, str]]:
    """Give the command that starts this machine's share, and its variables."""
    if config.cluster.kind == "slurm":
        return ["bash", "-c", "\n".join([*plan_setup(config), _srun(config, layout)])], package_variables()
    share = find_share(config.cluster, node_rank, os.environ)
    if share is None:
        raise ClusterError(explain_numbers(config.cluster))
    command = torchrun_command(config, layout.root, share.node_rank, module=_MODULE)
    return command, training_variables(config)


def _srun(config: RunConfig, layout: RunLayout) -> str:
    cluster = config.cluster
    words = ["srun"]
    if "SLURM_JOB_ID" in os.environ:
        words.append(f"--nodes={cluster.nodes}")
        words.append(f"--ntasks-per-node={find_processes_per_node(cluster)}")
    else:
        options = [shlex.split(option)[0] for option in plan_directives(config, layout)]
        words += [option for option in options if option[2:].partition("=")[0] not in _BATCH_ONLY]
        words.append(f"--time={_find_minutes(config)}")
    return "exec " + shlex.join(
        [*words, *plan_look_srun(config), *plan_command(config, _MODULE, layout.root)]
    )


def _find_minutes(config: RunConfig) -> int:
    """Long enough for the look, and no longer than the run may ask for."""
    asked = (parse_time(config.cluster.slurm.time) or 0) // 60
    look = _GRACE_MINUTES + -(-config.cluster.preflight.budget_seconds // 60)
    wanted = max(look, -(-find_look_seconds(config.cluster) // 60))
    return min(asked, wanted) if asked else wanted


def _make_ready(config: RunConfig, layout: RunLayout) -> None:
    try:
        layout.logs.mkdir(parents=True, exist_ok=True)
        layout.preflight.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{layout.root} cannot be written ({error.strerror}); set its permissions, or choose another "
            "run_root"
        ) from None
    write_frozen(layout.config, config, find_versions())


def _end(layout: RunLayout, code: int, *, told: bool) -> int:
    report, verdict = find_report(layout.preflight), read_verdict(layout.preflight)
    if report is None or verdict.kind == "unknown":
        log = "" if told else f"; see {layout.logs / 'preflight.log'}"
        sys.stderr.write(f"metier preflight: ended with {code} and no verdict ({verdict.reason}){log}\n")
        return EXIT_FAILED
    if not told:
        for finding in report.findings:
            sys.stderr.write(f"metier preflight: {say(finding, verdict)}\n")
    return verdict.exit_code
