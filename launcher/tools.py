"""The verbs that read their own words instead of composing a run: modules with ``run`` and ``HELP``."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from launcher.tree import ConfigTree
from training.config.names import nearest
from training.errors import ConfigError

TOOLS = {
    "preflight": ("launcher.preflight", "look at nodes, disks, clocks and the network before a run"),
    "checkpoints": ("launcher.checkpoints", "list, verify, prune or convert what a run has saved"),
    "status": ("launcher.seeing.status", "what every run is at: state, step, loss, speed, time left"),
    "watch": ("launcher.seeing.watch", "look on while a run trains, over its restarts"),
    "logs": ("launcher.seeing.logs", "what the ranks of a run, or a job, have said"),
    "stop": ("launcher.seeing.stop", "let a run save and end"),
    "why": ("launcher.why.why", "why a run ended, and what to do"),
    "sync": ("launcher.seeing.sync", "send to Weights & Biases what a run has not sent yet"),
    "scale": ("launcher.scaling.verb", "train briefly at several sizes: what more devices are worth"),
    "cluster": ("launcher.clusters", "write a cluster's configuration from what its Slurm says, or show it"),
    "drill": ("launcher.drill.verb", "interrupt a tiny run and prove that it goes on bit for bit"),
}
"""Verb: its module, and what it is for."""

VALUED = frozenset({"--rank", "--job", "--lines", "--log", "--partition", "--to", "--every", "--node-rank"})
"""Flags of these verbs that a value follows, with ``=`` or as the next word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What was typed after the verb, and where configurations are looked for."""

    plain: tuple[str, ...]
    """Without a dash in front: names, and KEY=VALUE."""

    flags: tuple[tuple[str, str], ...]
    """With dashes in front: the flag, and what followed its ``=``, or nothing."""

    tree: ConfigTree


class Tool(Protocol):
    """A module of ``TOOLS``."""

    HELP: str

    def run(self, words: Words) -> int:
        """Do it; give the exit code."""
        ...


def find_tool(verb: str) -> Tool:
    """Import a verb's module: help and the other verbs need not pay for it."""
    return cast(Tool, importlib.import_module(TOOLS[verb][0]))


def refuse_flags(words: Words, known: Sequence[str] = ()) -> None:
    """Refuse flags that a tool does not have.

    Raises:
        ConfigError: There is one.
    """
    for flag, _ in words.flags:
        if flag not in known:
            raise ConfigError(f"{flag} is no flag of this{nearest(flag, known)}")


def find_node_rank(words: Words) -> int | None:
    """Find the number that was typed for this host; None where none was.

    Raises:
        ConfigError: It is no number.
    """
    text = dict(words.flags).get("--node-rank")
    return None if text is None else read_node_rank(text)


def read_node_rank(value: str) -> int:
    """Read what follows ``--node-rank``.

    Raises:
        ConfigError: It is no number.
    """
    if not value.isdecimal():
        raise ConfigError(f"--node-rank={value or '(nothing)'}: wanted this host's number, 0 for the first")
    return int(value)
