"""The exact commands that a run starts, and the environment they start in."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from training.batch import find_world_size
from training.config.cluster import ClusterConfig
from training.config.schema import RunConfig
from training.fence import newest_incarnation
from training.layout import RunLayout

_PACKAGE_ROOT = Path(__file__).resolve().parent.parent
_GRACE_SECONDS = "120"


def torchrun_command(
    config: RunConfig,
    run_directory: Path,
    node_rank: int | None = None,
    module: str = "training.worker",
) -> list[str]:
    """Give the command that starts a host's share of the run.

    Args:
        config: The run.
        run_directory: Its folder, the same one on all hosts.
        node_rank: The host's number, where hosts are told their numbers.
        module: What each process is.
    """
    cluster, layout = config.cluster, RunLayout(run_directory)
    rendezvous = ["--standalone"]
    if cluster.nodes > 1:
        # An agent of an earlier start that still lives on some host must not be met.
        start = f"{config.name}.{newest_incarnation(layout.incarnations) + 1}"
        rendezvous = [f"--nnodes={cluster.nodes}", *_meeting(cluster, node_rank), f"--rdzv-id={start}"]
        # A stop means: finish the step and save, whichever way it is asked for.
        rendezvous.append("--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    if cluster.elastic_restarts:
        rendezvous.append(f"--max-restarts={cluster.elastic_restarts}")
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *rendezvous,
        f"--nproc-per-node={_processes_per_node(cluster)}",
        # Else each start leaves a folder behind in the system's temporary one.
        f"--log-dir={layout.torchrun}",
        "-m",
        module,
        str(run_directory),
    ]


def _meeting(cluster: ClusterConfig, node_rank: int | None) -> list[str]:
    seconds = cluster.timeout_seconds
    if cluster.rendezvous == "c10d":
        return [
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={cluster.head_address}:{cluster.head_port}",
            f"--rdzv-conf=join_timeout={seconds},read_timeout={seconds}",
        ]
    return [
        f"--node-rank={node_rank or 0}",
        f"--master-addr={cluster.head_address}",
        f"--master-port={cluster.head_port}",
        f"--rdzv-conf=timeout={seconds}",
    ]


def module_command(module: str, path: Path) -> list[str]:
    """Give the command of one training module with its one argument."""
    return [sys.executable, "-m", module, str(path)]


def child_variables(cluster: ClusterConfig, cores: int, *, processes: int) -> dict[str, str]:
    """Name the environment variables that a run needs besides the ones that are there.

    Args:
        cluster: For the threads per process.
        cores: What this host has.
        processes: How many share the cores.
    """
    threads = cluster.threads_per_process or max(1, cores // processes)
    variables = {
        "OMP_NUM_THREADS": str(threads),
        # A stop means: finish the step and save. torchrun would kill after 30 seconds.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": _GRACE_SECONDS,
    }
    if cluster.gpus_per_node == 0:
        # DeepSpeed looks for an accelerator and would complain on the user's screen that there is none.
        variables["DS_ACCELERATOR"] = "cpu"
        # Threads that wait by spinning starve each other where cores are shared (python -m
        # tests.benchmarks.precision --busy 1 shows it).
        variables["OMP_WAIT_POLICY"] = "PASSIVE"
    if cluster.nodes > 1:
        # Else torchrun's restart after a lost rank fails (pytorch issues 135712 and 108158): workers would
        # meet in the store of the agent, which still holds the addresses of those that are gone.
        variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        if cluster.network.interface:
            variables["GLOO_SOCKET_IFNAME"] = variables["NCCL_SOCKET_IFNAME"] = cluster.network.interface
    return variables | package_variables() | cluster.environment.variables


def package_variables() -> dict[str, str]:
    """Let a child find our packages, and no others of the same name."""
    # A folder `training` of the user's in the current directory is not ours.
    variables = {"PYTHONSAFEPATH": "1"}
    if _PACKAGE_ROOT.name not in {"site-packages", "dist-packages"}:
        variables["PYTHONPATH"] = str(_PACKAGE_ROOT)
    return variables


def merge_environment(environ: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """Lay our variables over the environment; PYTHONPATH is put in front of the user's."""
    merged = {**environ, **variables}
    if "PYTHONPATH" in variables and environ.get("PYTHONPATH"):
        merged["PYTHONPATH"] = os.pathsep.join((variables["PYTHONPATH"], environ["PYTHONPATH"]))
    return merged


def show_command(command: list[str], variables: Mapping[str, str]) -> str:
    """Write a command as it would be typed in a shell."""
    return " ".join(
        [*(f"{name}={shlex.quote(value)}" for name, value in variables.items()), shlex.join(command)]
    )


def count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def training_variables(config: RunConfig) -> dict[str, str]:
    """Name the variables of a training start on this host."""
    return child_variables(config.cluster, count_cores(), processes=_processes_per_node(config.cluster))


def _processes_per_node(cluster: ClusterConfig) -> int:
    return find_world_size(cluster) // cluster.nodes
