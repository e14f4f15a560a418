"""What each rank does in a preflight: it comes, looks at itself, measures with the others, answers."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from training.config.cluster import ClusterConfig
from training.config.schema import RunConfig
from training.errors import ModelError
from training.files import is_url
from training.layout import RunLayout
from training.model.place import find_model_folder
from training.preflight.board import Board, find_prefix, open_store
from training.preflight.device import look_at_device
from training.preflight.disk import look_at_read, look_at_written
from training.preflight.facts import HostFacts, NetworkFacts, Pair, PathFacts, RankFacts
from training.preflight.host import (
    find_adapters,
    find_interfaces,
    find_limits,
    find_shared_memory,
    find_versions,
    measure_memory_copy,
)
from training.preflight.looks import LOOK, MEET, PAIR, Clock, Looks
from training.preflight.network import FIRST_ROUNDS, Meeting, Roll, plan_tournament
from training.preflight.nodes import find_node
from training.preflight.nvml import count_gpus, find_driver, load_nvml
from training.ranks import Ranks
from training.verdict import UNNAMED

START, ROLL, PAIRS, DONE = "start", "roll", "pairs", "done"
"""The lead's messages."""

HERE, FACTS, NETWORK, LINKS, BYE = "here", "facts", "network", "links", "bye"
"""Each rank's; its number follows."""

_PATIENCE = 2
"""Budgets that a rank waits for the lead to come up."""

_TRIED_NODES = 8
"""So many nodes measure the shared disk at the same time; the others only see that they can write there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is looked at."""

    cluster: ClusterConfig
    run_directory: Path
    local_folder: Path
    read: Mapping[Literal["corpus", "model"], Path]
    """Corpus and model."""

    @classmethod
    def of(cls, config: RunConfig, layout: RunLayout) -> "Subject":
        """Take from a run's configuration what a node must have for it."""
        local = config.cluster.local_path
        return cls(
            cluster=config.cluster,
            run_directory=layout.root,
            local_folder=Path(os.path.expandvars(local)) if local else Path(tempfile.gettempdir()),
            read=dict(_find_read(config)),
        )


class Member:
    """One rank."""

    def __init__(self, subject: Subject, ranks: Ranks, environ: Mapping[str, str]) -> None:
        """Find the lead's board.

        Raises:
            ClusterError: It cannot be reached.
        """
        self.subject, self.ranks, self.node = subject, ranks, find_node(environ)
        budget = subject.cluster.preflight.budget_seconds
        # The lead may have been the last to import all it needs.
        self._store: TCPStore = open_store(environ, ranks, _PATIENCE * budget)
        self.clock = Clock(budget)
        self._prefix = find_prefix(environ)
        self.board = Board(self._store, self._prefix)
        self._meeting: Meeting | None = None

    def post(self, name: str, value: Any) -> None:
        """Leave a message of this rank."""
        self.board.post(f"{name}/{self.ranks.rank}", value)

    def attend(self) -> None:
        """Do what every rank but the lead does, from coming to the end."""
        self.post(HERE, self.node)
        start = self.board.find(START, self.clock.left(1))
        if start is None or self.ranks.rank not in start["ranks"]:
            return
        self.clock = self.clock.agree(start["spent"])
        self.post(FACTS, self.look().model_dump(mode="json"))
        roll = self.board.find(ROLL, self.clock.left(1))
        if roll is None or self.ranks.rank not in roll["ranks"]:
            return
        self.post(NETWORK, self.meet(read_roll(roll)).model_dump(mode="json"))
        if self.board.find(PAIRS, self.clock.left(1)):
            self.post(LINKS, [pair.model_dump(mode="json") for pair in self.play()[0]])
        # The others may still be reading what this one has sent.
        if self.board.find(DONE, self.clock.left(1)):
            self.post(BYE, True)

    def look(self) -> RankFacts:
        """Look at this rank's device, and as a node's first rank at the node."""
        looks, cluster, local_rank = Looks(self.clock, LOOK), self.subject.cluster, self.ranks.local_rank
        device = look_at_device(looks, gpus_per_node=cluster.gpus_per_node, local_rank=local_rank)
        host = self._look_at_host(looks) if local_rank == 0 else None
        return RankFacts(
            rank=self.ranks.rank, node=self.node, device=device, host=host, undone=tuple(looks.undone)
        )

    def meet(self, roll: Roll) -> NetworkFacts:
        """Measure with the others. Collective over the roll."""
        self._meeting = Meeting(roll, self.ranks, gpus_per_node=self.subject.cluster.gpus_per_node)
        return self._meeting.measure(Looks(self.clock, MEET), self._store, self._prefix)

    def play(self) -> tuple[tuple[Pair, ...], list[str]]:
        """Measure the links that are left; give what was not done as well. Collective over the roll."""
        looks, meeting = Looks(self.clock, PAIR), self._meeting
        if meeting is None:
            return (), []
        rounds = plan_tournament(len(meeting.roll.leaders()))[FIRST_ROUNDS:]
        pairs = looks.take("all links between nodes", lambda: meeting.play(rounds), whole=True)
        return pairs or (), looks.undone

    def _look_at_host(self, looks: Looks) -> HostFacts:
        gpus, versions = None, find_versions()
        if self.subject.cluster.gpus_per_node:
            found = looks.take("NVML", _ask_nvml)
            gpus, driver = found or (None, None)
            versions |= {"NVIDIA driver": driver} if driver else {}
        return HostFacts(
            gpus=gpus,
            memory_copy_gbps=looks.take("memory copy", measure_memory_copy),
            paths=tuple(self._look_at_paths(looks)),
            shm_free_bytes=looks.take("shared memory", find_shared_memory),
            limits=find_limits(),
            infiniband=find_adapters(),
            interfaces=find_interfaces(),
            versions=versions,
        )

    def _look_at_paths(self, looks: Looks) -> Iterator[PathFacts]:
        subject, label = self.subject, f"{self.node}-{self.ranks.rank}"
        node = self.ranks.rank // (subject.cluster.gpus_per_node or subject.cluster.processes_per_node)
        tried = node < _TRIED_NODES
        run, local = subject.run_directory, subject.local_folder
        for what, folder, look in (
            ("run directory", run, partial(look_at_written, "run directory", run, label, tried)),
            ("local disk", local, partial(look_at_written, "local disk", local, label)),
            *((what, folder, partial(look_at_read, what, folder)) for what, folder in subject.read.items()),
        ):
            found = looks.insist(what, look, _refusal(what, folder))
            if found is not None:
                yield found


def read_roll(message: Any) -> Roll:
    """Read the lead's message."""
    return Roll(ranks=tuple(message["ranks"]), nodes=tuple(message["nodes"]))


def _refusal(what: Any, folder: Path) -> Callable[[str], PathFacts]:
    return lambda reason: PathFacts(what=what, path=str(folder), error=reason)


def _find_read(config: RunConfig) -> Iterator[tuple[Literal["corpus", "model"], Path]]:
    if config.name == UNNAMED:
        return
    if not is_url(config.data.path):
        yield "corpus", Path(config.data.path)
    try:
        folder = Path(find_model_folder(config.model))
    except ModelError:
        folder = Path(config.model.folder or config.model.path or "")
    # A name on the hub is no folder of this node's.
    if folder.is_dir() or config.model.source != "huggingface":
        yield "model", folder


def _ask_nvml() -> tuple[int, str]:
    nvml = load_nvml()
    return count_gpus(nvml), find_driver(nvml)
