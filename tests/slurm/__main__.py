"""A test cluster by hand: ``python -m tests.slurm up 4``, ``exec -- sinfo``, ``power-off node2``, ``down``.

The cluster lies in a folder of its own, by default one per user; ``--root`` names another.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.slurm.cluster import Cluster
from tests.slurm.jobs import node_states
from tests.slurm.lifetime import down, find, up
from tests.slurm.linux import FaultyClusterError
from tests.slurm.settings import LOGIN, Settings

_DEFAULT_ROOT = Path(tempfile.gettempdir(), f"metier-slurm-{os.geteuid()}")
_OF_NODES = {
    "power-off": "power_off",
    "crash": "crash",
    "boot": "boot",
    "cut": "cut",
    "heal": "heal",
    "pause": "pause",
    "resume": "resume",
    "kill-slurmd": "kill_slurmd",
    "start-slurmd": "start_slurmd",
}
_OF_THE_CONTROLLER = {"stop-controller": "stop_controller", "start-controller": "start_controller"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.slurm", description=__doc__)
    parser.add_argument("--root", type=Path, default=_DEFAULT_ROOT)
    verbs = parser.add_subparsers(dest="verb", required=True)
    start = verbs.add_parser("up", help="start a cluster")
    start.add_argument("nodes", type=int, nargs="?", default=4)
    start.add_argument("--gpus", type=int, default=2, help="devices per node that look like GPUs")
    start.add_argument("--accounting", action="store_true", help="sacct works: slurmdbd and MariaDB")
    start.add_argument("--plain", action="store_true", help="no namespaces: several slurmd of one host")
    start.add_argument("--tracking", choices=("linuxproc", "pgid", "cgroup"), default="linuxproc")
    start.add_argument("--signals-preemption", action="store_true", help="preempt_send_user_signal")
    start.add_argument("--enforces-memory", action="store_true", help="kill jobs that use too much")
    start.add_argument("--shared-disk", default="", help="size of a small disk for all, as 1M")
    start.add_argument("--local-disk", default="", help="size of each node's own disk, as 1M")
    verbs.add_parser("down", help="end the cluster and all its processes")
    verbs.add_parser("status", help="print the nodes and the jobs")
    execute = verbs.add_parser("exec", help="run a command on a host")
    execute.add_argument("--on", default=LOGIN)
    execute.add_argument("words", nargs=argparse.REMAINDER)
    for verb in (*_OF_NODES, "restart"):
        verbs.add_parser(verb).add_argument("host")
    for verb in _OF_THE_CONTROLLER:
        verbs.add_parser(verb)
    return parser


def _up(given: argparse.Namespace) -> None:
    began = time.monotonic()
    values = {name: value for name, value in vars(given).items() if name not in {"verb", "plain", "root"}}
    given.root.mkdir(exist_ok=True)
    up(Settings(**values, root=given.root, namespaces=not given.plain))
    print(f"{given.nodes} nodes are idle after {time.monotonic() - began:.1f} s, in {given.root}")
    print("now, for instance: .venv/bin/python -m tests.slurm exec -- sinfo")


def _act(cluster: Cluster, given: argparse.Namespace) -> None:
    if given.verb == "status":
        for name, state in node_states(cluster).items():
            print(f"{name:8} {state}")
        print(cluster.run("squeue", "-l").stdout, end="")
    elif given.verb == "exec":
        words = cluster.words(*given.words[given.words[:1] == ["--"] :], on=given.on)
        os.execvp(words[0], words)  # noqa: S606 - the words are those that were typed
    elif given.verb == "restart":
        cluster.power_off(given.host)
        cluster.boot(given.host)
    elif given.verb in _OF_NODES:
        getattr(cluster, _OF_NODES[given.verb])(given.host)
    else:
        getattr(cluster, _OF_THE_CONTROLLER[given.verb])()


def main() -> int:
    """Do what was typed."""
    given = _parser().parse_args()
    try:
        if given.verb == "up":
            _up(given)
        elif given.verb == "down":
            down(given.root)
        else:
            _act(find(given.root), given)
    except FaultyClusterError as fault:
        print(fault, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
