"""Which nodes of an allocation can be trained on now."""

import os
from collections.abc import Collection, Mapping, Sequence

from launcher.slurm.call import PATIENT, SlurmError, call_slurm

MOST_DEPUTIES = 3

_DEAD = ("down", "fail", "unk", "no_respond", "not_resp", "power", "boot", "err")


def list_nodes(nodelist: str, *, attempts: int = 1) -> list[str]:
    """Write out ``node[1-3]`` as single names, in Slurm's order."""
    return call_slurm(["scontrol", "show", "hostnames", nodelist], attempts=attempts).split()


def ask_nodelist(job: str) -> str:
    """Ask which nodes the job has now: one that died and came back is none of its nodes any more.

    Empty where Slurm does not say.
    """
    try:
        return call_slurm(["squeue", "--noheader", f"--jobs={job}", "--format=%N"], attempts=6).strip()
    except SlurmError:
        return ""


def find_states(nodelist: str) -> dict[str, str]:
    """Ask for each node's state; empty where Slurm does not say."""
    try:
        said = call_slurm(
            ["sinfo", "--noheader", "--Node", f"--nodes={nodelist}", "--format=%N %t"], attempts=6
        )
    except SlurmError:
        return {}
    return dict(line.split(maxsplit=1) for line in said.splitlines() if len(line.split()) > 1)


def find_living(job: str, without: Collection[str]) -> list[str]:
    """Name the nodes of the job this process runs in that live and are trusted, in their order."""
    nodelist = ask_nodelist(job) or os.environ["SLURM_JOB_NODELIST"]
    return choose_living(list_nodes(nodelist, attempts=PATIENT), find_states(nodelist), without)


def choose_living(names: Sequence[str], states: Mapping[str, str], without: Collection[str]) -> list[str]:
    """Choose the nodes that live and are trusted, in their order.

    Args:
        names: The allocation's nodes.
        states: State of each as ``sinfo`` writes it; a node that it does not name counts as living.
        without: Nodes that the preflight found bad.
    """
    return [name for name in names if name not in without and is_living(states.get(name, ""))]


def choose_deputies(living: Sequence[str], own: str) -> list[str]:
    """Choose who looks after the job beside its script's ``own`` node: the last ones, spare nodes first."""
    return [name for name in living if name != own][-MOST_DEPUTIES:]


def is_living(state: str) -> bool:
    """Whether a node in this state can run a task.

    ``*`` does not answer, ``#`` starts, ``~`` is switched off; ``$``, reserved for maintenance, runs the jobs
    of that reservation (man sinfo, NODE STATE CODES).
    """
    return not state.endswith(("*", "#", "~")) and not state.lower().startswith(_DEAD)
