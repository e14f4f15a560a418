"""A rank's share of the training state, as fragments that fit into any other cut of the same model."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from training.engine.matrices import CutMatrices
from training.engine.slots import (
    Slot,
    counts_in_tensors,
    find_slots,
    holds_everything,
    publish_weights,
    release_weights,
    saved_state_of,
    state_of,
)
from training.engine.swapped import at_hand, lies_on_disk
from training.engine.tensor_parallel import TensorTeam
from training.errors import CheckpointError
from training.fragments.fragment import DTYPES, Fragment, read_into
from training.fragments.index import WEIGHT, Parameter
from training.fragments.reader import FragmentReader
from training.fragments.runs import Stretch
from training.ranks import Ranks


class Shards:
    """What one rank holds of the parameters being trained and of their optimizer state."""

    def __init__(
        self, model: nn.Module, optimizer: Any, ranks: Ranks, zero_stage: int, team: TensorTeam
    ) -> None:
        """Look at the optimizer that DeepSpeed has made of ``model``'s trained parameters."""
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._team = team
        self._shapes = {name: team.whole_shape(name) for name in trained}
        self._names = {id(parameter): name for name, parameter in trained.items()}
        self._optimizer = optimizer
        self._ranks = ranks
        self._writes_blocks = ranks.is_lead or not holds_everything(optimizer)
        self._cut = f"{ranks.world_size} processes at ZeRO stage {zero_stage}"

    def find_matrices(self, device: torch.device) -> CutMatrices | None:
        """Learn where the stretches of cut matrices lie; None where every rank has all. Collective."""
        if holds_everything(self._optimizer):
            return None
        return CutMatrices(self._find_slots(), self._shapes, self._ranks, device)

    def fragments(self) -> Iterator[Fragment]:
        """Yield what this rank has to write: all ranks' together is everything, once."""
        slots = self._find_slots()
        begin, end = 0, sum(held.length for slot in slots for held in slot.held)
        if holds_everything(self._optimizer):
            rank, world_size = self._ranks.rank, self._ranks.world_size
            begin, end = end * rank // world_size, end * (rank + 1) // world_size
        passed = 0
        for number, slot in enumerate(slots):
            tensors, scalars, blocks = _sort_state(slot, saved_state_of(self._optimizer, slot))
            on_disk = lies_on_disk(self._optimizer, slot.owner)
            for held in slot.held:
                share = self._team.share_of(held)
                first, last = max(begin - passed, share[0]), min(end - passed, share[1])
                if first < last:
                    place = held.offset + first
                    start, _, runs = self._team.find(held, first, last)
                    yield Fragment(
                        name=held.name,
                        shape=self._shapes[held.name],
                        start=start,
                        tensors={key: flat[place : place + last - first] for key, flat in tensors.items()},
                        scalars=scalars,
                        runs=runs,
                        on_disk=on_disk,
                    )
                passed += held.length
            for key, block in blocks.items() if self._writes_blocks else ():
                yield Fragment(
                    name=self._name_block(number, key),
                    shape=tuple(block.shape),
                    start=0,
                    tensors={key: block.view(-1)},
                    scalars={},
                )

    @torch.no_grad()
    def load(self, reader: FragmentReader) -> None:
        """Take up the state of a checkpoint, whatever cut it was written under. Collective.

        Reads only the elements that this rank holds.

        Raises:
            CheckpointError: It is of other parameters, or of an optimizer whose state cannot be cut anew.
        """
        parameters = reader.index.parameters
        self._check_names(parameters)
        release_weights(self._optimizer)
        for number, slot in enumerate(self._find_slots()):
            with at_hand(self._optimizer, number, slot.owner) as values:
                self._load_slot(reader, number, slot if values is None else replace(slot, values=values))
        publish_weights(self._optimizer)

    def _load_slot(self, reader: FragmentReader, number: int, slot: Slot) -> None:
        member = _describe(slot, reader.index.parameters)
        state = state_of(self._optimizer, slot)
        for key, dtype in member.keys.items():
            flat = slot.values if key == WEIGHT else _place(state, key, slot, DTYPES[dtype])
            for held in slot.held:
                target = flat[held.offset : held.offset + held.length]
                read_into(target, reader, held.name, key, self._team.find(held, 0, held.length))
        for key, value in member.scalars.items():
            state[key] = self._scalar(state.get(key), value, slot)
        self._load_blocks(reader, number, state)

    def _find_slots(self) -> list[Slot]:
        return find_slots(self._optimizer, self._names)

    def _scalar(self, known: object, value: float, slot: Slot) -> object:
        if isinstance(known, Tensor):
            return known.fill_(value)
        if counts_in_tensors(self._optimizer):
            fused = any(
                group.get("fused") or group.get("capturable") for group in self._optimizer.param_groups
            )
            return torch.tensor(value, dtype=torch.float32, device=slot.values.device if fused else None)
        return int(value) if value.is_integer() else value

    def _name_block(self, number: int, key: str) -> str:
        rank = "all" if holds_everything(self._optimizer) else self._ranks.rank
        return f"({self._cut}, rank {rank}, group {number}, {key})"

    def _load_blocks(self, reader: FragmentReader, number: int, state: dict[str, Any]) -> None:
        """Take up what an optimizer keeps per block of elements, which holds for one cut alone."""
        suffix = f", group {number}, "
        saved = [name for name in reader.index.parameters if name.startswith("(") and suffix in name]
        for key in {name.rsplit(", ", 1)[1].removesuffix(")") for name in saved}:
            name = self._name_block(number, key)
            if name not in saved:
                cut = saved[0].removeprefix("(").split(", rank")[0]
                raise CheckpointError(
                    f"the optimizer keeps {key} by blocks of one cut, which was {cut}; this start has "
                    f"{self._cut}; use the same cluster and strategy, or an optimizer with 32-bit state"
                )
            entry = reader.index.parameters[name]
            block = torch.empty(entry.shape, dtype=DTYPES[entry.keys[key]])
            read_into(block.view(-1), reader, name, key, Stretch(0, entry.numel))
            state[key] = block.to(self._find_slots()[number].values.device)

    def _check_names(self, parameters: Mapping[str, Parameter]) -> None:
        saved = {name: entry.shape for name, entry in parameters.items() if not name.startswith("(")}
        if saved == self._shapes:
            return
        odd = sorted(saved.items() ^ self._shapes.items())
        raise CheckpointError(
            f"the checkpoint and the model differ in {odd[0][0]} ({len({name for name, _ in odd})} such "
            "parameters); it is of another model or adapter"
        )


def _sort_state(
    slot: Slot, state: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Tensor]]:
    """Tell apart what is kept of each element, once, and per block of elements."""
    tensors, scalars, blocks = {WEIGHT: slot.values}, {}, {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim() > 0:
            if value.numel() == slot.values.numel():
                tensors[key] = value.detach().view(-1)
            else:
                blocks[key] = value.detach()
        elif isinstance(value, Tensor | int | float):
            scalars[key] = float(value)
    return tensors, scalars, blocks


def _describe(slot: Slot, parameters: Mapping[str, Parameter]) -> Parameter:
    """Say what is kept of a slot's parameters: the same for all of them."""
    first = parameters[slot.members[0]]
    for name in slot.members:
        if (parameters[name].keys, parameters[name].scalars) != (first.keys, first.scalars):
            raise CheckpointError(
                f"{name} and {slot.members[0]} have taken another number of steps, or by another optimizer; "
                "this cut steps them together: use the ZeRO stage that the checkpoint was written under"
            )
    return first


def _place(state: dict[str, Any], key: str, slot: Slot, dtype: torch.dtype) -> Tensor:
    """Find or make the optimizer's tensor of a key; padding is zero, as after steps on zero gradients."""
    known = state.get(key)
    if not isinstance(known, Tensor):
        known = state[key] = torch.zeros_like(slot.owner, dtype=dtype, requires_grad=False)
    return known.view(-1)
