"""Puts matrices together that ZeRO has cut over the ranks, for an optimizer that needs them whole (Muon).

Every rank holds stretches of many matrices. In each round a rank is sent all stretches of one matrix, works
on it, and sends them back: each matrix is worked on once, and a rank has one whole matrix at a time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from training.collectives import gather_over_ranks
from training.engine.slots import Held, Slot
from training.optimizers.muon import orthogonalize
from training.ranks import Ranks

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Task:
    """One matrix: its shape, and what each rank holds of it."""

    shape: Shape
    held: tuple[tuple[Held, ...], ...]


class CutMatrices:
    """The matrices of every slot of this rank's optimizer, and where their stretches lie."""

    def __init__(
        self, slots: Sequence[Slot], shapes: Mapping[str, Shape], ranks: Ranks, device: torch.device
    ) -> None:
        """Learn what every rank holds. Collective.

        Args:
            slots: This rank's; every rank has as many, and the same parameters in them.
            shapes: Of every trained parameter, whole.
            ranks: Who holds the others.
            device: Where matrices travel and are worked on.
        """
        self._rank, self._world_size, self._device = ranks.rank, ranks.world_size, device
        told = gather_over_ranks([slot.held for slot in slots])
        self._rounds = {
            id(slot.owner): self._plan(slot.members, shapes, [each[number] for each in told])
            for number, slot in enumerate(slots)
        }

    def __call__(self, owner: Tensor, direction: Tensor) -> Tensor:
        """Orthogonalize what this rank has of a slot's matrices. Collective.

        Args:
            owner: The slot's, under which the optimizer keeps its state.
            direction: [N] like the slot's values.

        Returns:
            [N]; zero in the padding.
        """
        flat = direction.view(-1)
        result = torch.zeros_like(flat)
        for tasks in self._rounds[id(owner)]:
            self._walk(tasks, flat, result)
        return result.view_as(direction)

    def _plan(
        self, members: Sequence[str], shapes: Mapping[str, Shape], held: Sequence[Sequence[Held]]
    ) -> list[list[_Task]]:
        """Cut the matrices into rounds of one for each rank; those of a round are about as large."""
        known: dict[str, list[list[Held]]] = {name: [[] for _ in held] for name in members}
        for rank, stretches in enumerate(held):
            for stretch in stretches:
                known[stretch.name][rank].append(stretch)
        tasks = [_Task(shapes[name], tuple(map(tuple, known[name]))) for name in members]
        tasks.sort(key=lambda task: -_cost(task.shape))
        return [tasks[first : first + self._world_size] for first in range(0, len(tasks), self._world_size)]

    def _walk(self, tasks: Sequence[_Task], flat: Tensor, result: Tensor) -> None:
        """Do a round: rank n works on the n-th matrix."""
        mine = tasks[self._rank] if self._rank < len(tasks) else None
        # Of each matrix of this round, what I hold; and of mine, what each rank holds.
        sent = [task.held[self._rank] for task in tasks] + [()] * (self._world_size - len(tasks))
        received = mine.held if mine else ((),) * self._world_size
        pieces = self._exchange([_join(flat, stretches) for stretches in sent], received)
        if mine is not None:
            whole = torch.empty(math.prod(mine.shape), dtype=flat.dtype, device=self._device)
            for stretches, piece in zip(received, pieces, strict=True):
                _spread(piece, stretches, whole, to_parameter=True)
            whole = orthogonalize(whole.view(mine.shape)).view(-1)
            pieces = [_join(whole, stretches, of_parameter=True) for stretches in received]
        for stretches, piece in zip(sent, self._exchange(pieces, sent), strict=True):
            _spread(piece.to(result.device), stretches, result)

    def _exchange(self, pieces: Sequence[Tensor], wanted: Sequence[Sequence[Held]]) -> list[Tensor]:
        """Send the n-th piece to rank n; give what each rank sends, as long as what is ``wanted`` of it."""
        sizes = [sum(stretch.length for stretch in stretches) for stretches in wanted]
        pieces = [piece.to(self._device) for piece in pieces]
        if self._world_size == 1:
            return list(pieces)
        received = torch.empty(sum(sizes), dtype=pieces[0].dtype, device=self._device)
        dist.all_to_all_single(received, torch.cat(pieces), sizes, [piece.numel() for piece in pieces])
        return list(torch.split(received, sizes))


def _join(flat: Tensor, stretches: Sequence[Held], *, of_parameter: bool = False) -> Tensor:
    """Lay stretches of a slot, or of a whole parameter, end to end."""
    parts = [flat[place : place + held.length] for held, place in _places(stretches, of_parameter)]
    return torch.cat(parts) if parts else flat[:0]


def _spread(piece: Tensor, stretches: Sequence[Held], flat: Tensor, *, to_parameter: bool = False) -> None:
    """Put what ``_join`` has laid end to end back to its places."""
    first = 0
    for held, place in _places(stretches, to_parameter):
        flat[place : place + held.length] = piece[first : first + held.length]
        first += held.length


def _places(stretches: Sequence[Held], in_parameter: bool) -> list[tuple[Held, int]]:
    return [(held, held.start if in_parameter else held.offset) for held in stretches]


def _cost(shape: Shape) -> int:
    """Estimate the work on a matrix: the Gram matrix of its shorter side."""
    return math.prod(shape) * min(shape[-2:])
