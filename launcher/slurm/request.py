"""What a run asks of Slurm, as words: sbatch's directives, the script's set-up, srun's options, the ranks.

Pure: the configuration in, words out. docs/slurm.md explains the script that they end up in.
"""

import re
import shlex
from pathlib import Path

from launcher.commands import package_variables
from launcher.slurm.containers import LOCAL_FOLDERS, plan_container_srun, plan_entry, plan_local_folders
from launcher.slurm.fabrics import plan_network
from launcher.slurm.times import parse_time
from training.batch import find_world_size
from training.config.cluster import ClusterConfig, SlurmConfig
from training.config.schema import RunConfig
from training.errors import ConfigError
from training.layout import RunLayout

_LEAST_LEAD_SECONDS = 60
"""What the stop takes beside the save; also how much earlier than asked for Slurm may send its signal."""

_LOOK_GRACE_SECONDS = 30
"""Of a preflight, beyond its budget: the start of Python."""

_LOOK_BUDGETS = 2
"""So often the budget, and the grace, is waited for a preflight's verdict: ranks wait so for their lead."""

_PULL_SECONDS = 1200
"""What an image of a registry may take to be fetched and unpacked; 20 GB at 20 MB/s."""

_OWNED = {
    "account": "cluster.slurm.account",
    "array": "metier train -m",
    "chdir": "the folder in which metier is called",
    "comment": "cluster.slurm.comment",
    "constraint": "cluster.slurm.constraint",
    "cpus-per-task": "cluster.slurm.cpus_per_process",
    "dependency": "after",
    "error": "run_root",
    "exclude": "cluster.slurm.exclude",
    "exclusive": "cluster.slurm.exclusive",
    "export": "cluster.environment.variables",
    "gpus": "cluster.gpus_per_node",
    "gpus-per-node": "cluster.gpus_per_node",
    "gpus-per-task": "cluster.gpus_per_node",
    "job-name": "name",
    "mail-type": "cluster.slurm.mail_events",
    "mail-user": "cluster.slurm.mail_user",
    "mem": "cluster.slurm.memory",
    "mem-per-cpu": "cluster.slurm.memory",
    "mem-per-gpu": "cluster.slurm.memory",
    "no-kill": "cluster.slurm.spare_nodes",
    "no-requeue": "cluster.slurm.requeue",
    "nodes": "cluster.nodes",
    "ntasks": "cluster.nodes and cluster.gpus_per_node",
    "ntasks-per-node": "cluster.gpus_per_node or cluster.processes_per_node",
    "open-mode": "run_root",
    "output": "run_root",
    "partition": "cluster.slurm.partition",
    "qos": "cluster.slurm.qos",
    "requeue": "cluster.slurm.requeue",
    "reservation": "cluster.slurm.reservation",
    "signal": "cluster.slurm.stop_lead_seconds",
    "time": "cluster.slurm.time",
    "time-min": "cluster.slurm.time",
    "wrap": "metier train",
}
"""Options of sbatch that the configuration owns, and the setting that does; for those of slurm.extra."""

_OPTION = re.compile(r"--(?P<name>[a-z][a-z0-9-]*)(=(?P<value>.*))?")


def plan_directives(config: RunConfig, layout: RunLayout) -> list[str]:
    """Give sbatch's options, ``--name`` or ``--name=value``, quoted as they stand behind ``#SBATCH``.

    Raises:
        ConfigError: ``cluster.slurm.extra`` says again what another setting says, or a time cannot be.
    """
    cluster, slurm = config.cluster, config.cluster.slurm
    # A percent sign would begin one of Slurm's own patterns; only ours, %j, is one.
    log = str(layout.job_log("\0")).replace("%", "%%").replace("\0", "%j")
    options: dict[str, object] = {
        "job-name": config.name,
        "chdir": Path.cwd(),
        "output": log,
        "open-mode": "append",
        "nodes": cluster.nodes + slurm.spare_nodes,
        "ntasks-per-node": find_processes_per_node(cluster),
        "gpus-per-node": _gpus(cluster),
        "cpus-per-task": slurm.cpus_per_process,
        "mem": slurm.memory,
        "time": slurm.time,
        "account": slurm.account,
        "partition": slurm.partition,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "reservation": slurm.reservation,
        "exclusive": slurm.exclusive,
        "exclude": ",".join(slurm.exclude) or None,
        "mail-user": slurm.mail_user,
        "mail-type": ",".join(slurm.mail_events) or None,
        "comment": slurm.comment,
        "requeue": slurm.requeue,
        "no-requeue": not slurm.requeue,
        # A node that dies takes its part of the job with it, not the whole job.
        "no-kill": slurm.spare_nodes > 0,
        # Else a cloud's job may begin while its nodes still start.
        "wait-all-nodes": 1,
        # To the batch script alone, which relays it to the ranks.
        "signal": f"B:USR1@{find_notice_seconds(slurm)}",
    }
    written = [
        _write(name, value) for name, value in options.items() if value is not None and value is not False
    ]
    return written + [_check_extra(option) for option in slurm.extra]


def find_notice_seconds(slurm: SlurmConfig) -> int:
    """How long before the end of the job's time Slurm is to send its notice.

    The ranks know the end themselves and stop in time for a save as long as the longest so far; this is for
    the case that they could not tell. A short job gets it at half its time, else it would come at the start.

    Raises:
        ConfigError: The lead leaves no time to train.
    """
    seconds = parse_time(slurm.time)
    lead = slurm.stop_lead_seconds or 2 * _LEAST_LEAD_SECONDS
    notice = lead + _LEAST_LEAD_SECONDS
    if not seconds:  # 0 is Slurm's way of asking for no limit.
        return notice
    if slurm.stop_lead_seconds is not None and slurm.stop_lead_seconds >= seconds:
        raise ConfigError(
            f"cluster.slurm.stop_lead_seconds={slurm.stop_lead_seconds} is not less than the job's time, "
            f"cluster.slurm.time={slurm.time} ({seconds} s); use a longer time or a shorter lead"
        )
    return min(notice, seconds // 2)


def plan_setup(config: RunConfig) -> list[str]:
    """Give the lines of bash that make a node ready: modules, the site's own lines, exported variables.

    ``cluster.environment.variables`` come last: what the user says counts.
    """
    environment = config.cluster.environment
    lines: list[str] = []
    if environment.modules:
        lines.append("# shellcheck disable=SC1091 # a batch shell may not know the command")
        lines.append("command -v module > /dev/null || source /etc/profile")
    for name in environment.modules:
        lines.append(f"module load {shlex.quote(name)} || exit 1")
    lines += environment.setup
    if lines:
        lines = ["set +u  # modules and conda were not written for it", *lines, "set -u"]
    variables = plan_variables(config)
    path = variables.pop("PYTHONPATH", None)
    if path is not None:
        lines.append(f"export PYTHONPATH={shlex.quote(path)}${{PYTHONPATH:+:$PYTHONPATH}}")
    if "OMP_NUM_THREADS" not in variables:
        processes = find_processes_per_node(config.cluster)
        share = f"$((${{SLURM_CPUS_ON_NODE:-1}} / {processes}))"
        lines.append(f"threads={share}; export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))")
    for name, value in variables.items():
        lines += ["# shellcheck disable=SC2016 # as it is"] if "$" in value or "`" in value else []
        lines.append(f"export {name}={shlex.quote(value)}")
    lines.append("# Caches and temporary files on the node's own disk, once a rank is there.")
    lines.append("# shellcheck disable=SC2016 # evaluated by each rank's shell")
    lines.append(f"export {LOCAL_FOLDERS}={shlex.quote(plan_local_folders(config))}")
    return lines


def plan_variables(config: RunConfig) -> dict[str, str]:
    """Name the variables of every process of the job that are known before it starts."""
    cluster = config.cluster
    variables = package_variables()
    threads = cluster.threads_per_process or cluster.slurm.cpus_per_process
    if threads:
        variables["OMP_NUM_THREADS"] = str(threads)
    if cluster.gpus_per_node == 0:
        # As in launcher/commands.py, child_variables.
        variables |= {"DS_ACCELERATOR": "cpu", "OMP_WAIT_POLICY": "PASSIVE"}
    if cluster.container.kind != "none":
        # Packages in the user's home are of another Python than the image's.
        variables["PYTHONNOUSERSITE"] = "1"
    variables |= plan_network(cluster.network, nodes=cluster.nodes, on_gpus=cluster.gpus_per_node > 0)
    return variables | cluster.environment.variables


def plan_srun(config: RunConfig) -> list[str]:
    """Give srun's options, unquoted; how many nodes and tasks is decided in the job.

    Raises:
        ConfigError: A folder cannot be shown inside the container.
    """
    cpus = config.cluster.slurm.cpus_per_process
    is_slingshot = config.cluster.network.fabric == "slingshot" and config.cluster.gpus_per_node > 0
    return [
        # A rank that fails takes the others along, those that are stopped or hang as well.
        "--kill-on-bad-exit=1",
        # The site's WaitTime would end ranks that are still writing when the first is done.
        "--wait=0",
        "--mpi=none",
        "--export=ALL",
        # Slurm 22.05 and later: srun does not take it over from sbatch. Without a number a task would be
        # bound to a single core; unbound it may use all cores of the job.
        f"--cpus-per-task={cpus}" if cpus else "--cpu-bind=none",
        # HPE asks for it beside FI_CXI_RDZV_PROTO=alt_read (shs-ccl-docs, ccl_env.sh).
        *(["--network=disable_rdzv_get"] if is_slingshot else []),
        *plan_container_srun(config, sorted({"OMP_NUM_THREADS", LOCAL_FOLDERS, *plan_variables(config)})),
    ]


def find_look_seconds(cluster: ClusterConfig) -> int:
    """How long a preflight may take from its start: a lead that has said nothing by then hangs."""
    look = _LOOK_BUDGETS * cluster.preflight.budget_seconds + _LOOK_GRACE_SECONDS
    return look + (_PULL_SECONDS if pulls_image(cluster) else 0)


def pulls_image(cluster: ClusterConfig) -> bool:
    """Whether each node first fetches and unpacks the image: pyxis does, of one that is no file."""
    image = cluster.container.image
    return cluster.container.kind == "pyxis" and image is not None and not image.startswith(("/", "./"))


def plan_look_srun(config: RunConfig) -> list[str]:
    """Give srun's options for a preflight, unquoted: a node that cannot start is to be named, not feared.

    Raises:
        ConfigError: A folder cannot be shown inside the container.
    """
    return [
        *plan_srun(config),
        # A node on which nothing starts would take the lead, which names it, along.
        "--kill-on-bad-exit=0",
        # What still hangs when all is over is ended; counted from the first rank that ends, however it does.
        f"--wait={config.cluster.preflight.budget_seconds + _LOOK_GRACE_SECONDS}",
    ]


def plan_command(config: RunConfig, module: str, path: Path | str) -> list[str]:
    """Give the words that srun starts for each rank, unquoted.

    Args:
        config: The run.
        module: A Python module with one argument, for instance training.worker.
        path: The argument.

    Raises:
        ConfigError: A folder cannot be shown inside the container, or no image is given.
    """
    return plan_entry(config, ["-m", module, str(path)])


def find_processes_per_node(cluster: ClusterConfig) -> int:
    """Give the ranks of each node."""
    return find_world_size(cluster) // cluster.nodes


def _gpus(cluster: ClusterConfig) -> str | None:
    if cluster.gpus_per_node == 0:
        return None
    kind = cluster.slurm.gpu_type
    return f"{kind}:{cluster.gpus_per_node}" if kind else str(cluster.gpus_per_node)


def _write(name: str, value: object) -> str:
    return f"--{name}" if value is True else f"--{name}={shlex.quote(str(value))}"


def _check_extra(option: str) -> str:
    form = _OPTION.fullmatch(option)
    if form is None:
        raise ConfigError(
            f"cluster.slurm.extra: {option} is no option of sbatch; write --name=value, or --name alone"
        )
    name, value = form["name"], form["value"]
    owner = _OWNED.get(name)
    if name == "gres" and re.search(r"(^|[,/])gpu\b", value or ""):
        owner = "cluster.gpus_per_node and cluster.slurm.gpu_type"
    if owner:
        raise ConfigError(f"cluster.slurm.extra: --{name} is said by {owner}; set that instead")
    return _write(name, True if value is None else value)
