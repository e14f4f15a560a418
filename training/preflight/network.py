"""What ranks measure together: clocks, the all-reduce of all, the link between two nodes.

Every function here hangs where a peer hangs; whoever calls it gives it a deadline (``Looks.take``).
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from training.errors import first_line
from training.interface import tell_gloo
from training.preflight.device import find_gpu
from training.preflight.facts import NetworkFacts, Pair
from training.preflight.looks import Looks
from training.ranks import Ranks

Value = TypeVar("Value")

_PINGS = 8
_SMALL_ROUNDS, _LARGE_ROUNDS, _EXCHANGES = 20, 3, 4
_LARGE_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
_PAIR_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}
_NEVER = timedelta(days=1)

FIRST_ROUNDS = 2
"""Rounds of the tournament that are always played: two links of each node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """The ranks that take part, in order, and the node of each."""

    ranks: tuple[int, ...]
    nodes: tuple[str, ...]

    def leaders(self) -> list[int]:
        """Give the place in the roll of each node's first rank."""
        return [self.nodes.index(node) for node in dict.fromkeys(self.nodes)]


class Meeting:
    """This rank among those of the roll."""

    def __init__(self, roll: Roll, ranks: Ranks, *, gpus_per_node: int) -> None:
        """Know the others; nothing is said yet."""
        self.roll, self._rank = roll, ranks.rank
        self._place = roll.ranks.index(ranks.rank)
        self._node = roll.nodes[self._place]
        self._device = find_gpu(ranks.local_rank) if gpus_per_node else torch.device("cpu")

    def measure(self, looks: Looks, store: TCPStore, prefix: str) -> NetworkFacts:
        """Meet the others and measure; once a part fails, the ones after it are left out. Collective."""
        refused = looks.take("the first contact of all ranks", lambda: self._join(store, prefix), whole=True)

        def take(name: str, look: Callable[[], Value]) -> Value | None:
            return None if looks.undone or refused else looks.take(name, look, whole=True)

        clock = take("clocks", self._compare_clocks)
        latency = take("all-reduce of one number", self._time_small)
        bus = take("all-reduce of many", self._time_large)
        rounds = plan_tournament(len(self.roll.leaders()))[:FIRST_ROUNDS]
        pairs = take("links between nodes", lambda: self.play(rounds))
        return NetworkFacts(
            rank=self._rank,
            node=self._node,
            clock_offset_seconds=clock[0] if clock else None,
            clock_doubt_seconds=clock[1] if clock else None,
            latency_seconds=latency,
            bus_gbps=bus,
            pairs=pairs or (),
            contact_error=refused,
            undone=tuple(looks.undone),
        )

    def play(self, rounds: Sequence[Sequence[tuple[int, int]]]) -> tuple[Pair, ...]:
        """Measure the links of these rounds; a round's pairs work at the same time, and share no node."""
        leaders, found = self.roll.leaders(), list[Pair]()
        for one_round in rounds:
            for first, second in one_round:
                ends = (leaders[first], leaders[second])
                if self._place not in ends:
                    continue
                gbps = self._exchange(ends[0] if self._place == ends[1] else ends[1], self._place == ends[0])
                if self._place == ends[0]:
                    names = (self.roll.nodes[ends[0]], self.roll.nodes[ends[1]])
                    found.append(Pair(nodes=names, gbps=gbps))
        return tuple(found)

    def _join(self, store: TCPStore, prefix: str) -> str | None:
        """Come into contact with all others; give the reason where this fails."""
        try:
            self._begin_group(store, prefix)
            self._small_reduce()
        except RuntimeError as error:
            return first_line(error)
        return None

    def _begin_group(self, store: TCPStore, prefix: str) -> None:
        # A connection of its own: one that waits for ever would hold up the board's.
        own = TCPStore(store.host, store.port, is_master=False, wait_for_workers=False, timeout=_NEVER)
        tell_gloo(os.environ)
        # NCCL would end the process when its time is over; the deadline is kept by whoever called.
        dist.init_process_group(
            backend="gloo" if self._device.type == "cpu" else "cpu:gloo,cuda:nccl",
            store=PrefixStore(f"{prefix}/group", own),
            rank=self._place,
            world_size=len(self.roll.ranks),
            timeout=_NEVER,
        )

    def _small_reduce(self) -> None:
        dist.all_reduce(torch.ones(1, device=self._device))
        self._finish()

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _compare_clocks(self) -> tuple[float, float] | None:
        """Ping-pong between the lead and each node's first rank: offset and half of the quickest trip."""
        leaders = self.roll.leaders()
        if self._place == 0:
            for peer in leaders[1:]:
                for _ in range(_PINGS):
                    dist.recv(torch.zeros(1), src=peer)
                    dist.send(torch.tensor([time.time()], dtype=torch.float64), dst=peer)
            return 0.0, 0.0
        if self._place not in leaders:
            return None
        trips = []
        for _ in range(_PINGS):
            there = torch.zeros(1, dtype=torch.float64)
            began = time.time()
            dist.send(torch.zeros(1), dst=0)
            dist.recv(there, src=0)
            ended = time.time()
            trips.append((ended - began, (began + ended) / 2 - float(there)))
        seconds, offset = min(trips)
        return offset, seconds / 2

    def _time_small(self) -> float:
        return statistics.median(_seconds(self._small_reduce) for _ in range(_SMALL_ROUNDS))

    def _time_large(self) -> float:
        count = _LARGE_BYTES[self._device.type]
        tensor = torch.zeros(count // 4, device=self._device)

        def work() -> None:
            dist.all_reduce(tensor)
            self._finish()

        work()
        best, world = min(_seconds(work) for _ in range(_LARGE_ROUNDS)), len(self.roll.ranks)
        # https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
        return 2 * (world - 1) / world * count / best / 1e9

    def _exchange(self, peer: int, begins: bool) -> float:
        count = _PAIR_BYTES[self._device.type]
        tensor = torch.zeros(count // 4, device=self._device)

        def work() -> None:
            for _ in range(2):
                if begins:
                    dist.send(tensor, dst=peer)
                    dist.recv(tensor, src=peer)
                else:
                    dist.recv(tensor, src=peer)
                    dist.send(tensor, dst=peer)
            self._finish()

        work()  # opens the connection
        seconds = min(_seconds(work) for _ in range(_EXCHANGES // 2))
        return 2 * 2 * count / seconds / 1e9


def plan_tournament(count: int) -> list[list[tuple[int, int]]]:
    """Let each of ``count`` meet each other once, as many as possible at the same time (circle method)."""
    seats: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    rounds = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        met = zip(seats[:half], reversed(seats[half:]), strict=True)
        rounds.append([(min(a, b), max(a, b)) for a, b in met if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
