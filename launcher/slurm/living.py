"""Which nodes of an allocation can be trained on now."""

from collections.abc import Collection, Mapping, Sequence

from launcher.slurm.call import SlurmError, call_slurm

_DEAD = ("down", "fail", "unk", "no_respond", "not_resp", "power", "boot", "err")


def list_nodes(nodelist: str, *, attempts: int = 1) -> list[str]:
    """Write out ``node[1-3]`` as single names, in Slurm's order."""
    return call_slurm(["scontrol", "show", "hostnames", nodelist], attempts=attempts).split()


def find_states(nodelist: str) -> dict[str, str]:
    """Ask for each node's state; empty where Slurm does not say."""
    try:
        said = call_slurm(
            ["sinfo", "--noheader", "--Node", f"--nodes={nodelist}", "--format=%N %t"], attempts=6
        )
    except SlurmError:
        return {}
    return dict(line.split(maxsplit=1) for line in said.splitlines() if len(line.split()) > 1)


def choose_nodes(
    names: Sequence[str], states: Mapping[str, str], without: Collection[str], wanted: int
) -> list[str] | None:
    """Choose ``wanted`` nodes that live, the first ones; None where there are fewer.

    Args:
        names: The allocation's nodes.
        states: State of each as ``sinfo`` writes it; a node that it does not name counts as living.
        without: Nodes that the preflight found bad.
        wanted: How many the run needs.
    """
    living = [name for name in names if name not in without and is_living(states.get(name, ""))]
    return living[:wanted] if len(living) >= wanted else None


def is_living(state: str) -> bool:
    """Whether a node in this state can run a task: ``*`` and ``#`` mean that it does not answer."""
    return not state.endswith(("*", "#", "~", "$")) and not state.lower().startswith(_DEAD)
