"""Build a model of which every rank reads and keeps its own part alone: ZeRO-3 from the first byte on.

The modules are made empty. Then one parameter after the other gets its values from the mapped files, of which
a rank looks at no more than what it keeps; of a 4-bit one the blocks that it keeps, whose scales all ranks
need, for double quantisation asks for their mean. So no rank ever has more than its part and one tensor.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.config.learning import AdapterConfig, ModelConfig
from training.model.attention import choose_attention, register_attention
from training.model.empty import build_empty, names_by_parameter
from training.model.four_bit import is_four_bit, make_four_bit, quantise
from training.model.kind import AnyModel
from training.model.load import (
    DTYPES,
    FOUR_BITS,
    build_model,
    count_wanted_rows,
    prepare_forward,
    read_config,
    train_parts,
)
from training.model.match import check_match, find_obstacle
from training.model.place import find_model_folder
from training.model.vocabulary import append_mean_rows, resize_embeddings
from training.model.weights import WeightFiles, find_weights


class Partition(Protocol):
    """How parameters are shared out among the ranks. Each method is collective."""

    device: torch.device
    """Where this rank computes."""

    def stretches(self, elements: int) -> Sequence[tuple[int, int]]:
        """Say which elements [start, stop) this rank keeps of a parameter of so many."""

    def cut(self, parameter: nn.Parameter) -> None:
        """Keep this rank's part of a parameter that holds values there at least, and let go of the rest."""

    def greatest(self, values: Tensor) -> Tensor:
        """Give the greatest of each value that a rank has."""

    def gathering(self) -> AbstractContextManager[None]:
        """Let peft gather the parameters that it looks at."""


def build_partitioned_model(
    model: ModelConfig,
    adapter: AdapterConfig,
    *,
    precision: str,
    share_out: Callable[[PreTrainedModel], Partition],
    seed: int,
    activation_checkpointing: str | int,
) -> tuple[AnyModel, str | None]:
    """Build the model that ``build_model`` builds, its base's parameters shared out among the ranks.

    Collective. What an adapter adds is whole on every rank, until the engine shares it out.

    Args:
        model: As ``build_model``.
        adapter: As ``build_model``.
        precision: As ``build_model``.
        share_out: Given the empty model, how its parameters are shared out.
        seed: As ``build_model``.
        activation_checkpointing: As ``build_model``.

    Returns:
        The model; and None, or why every rank has built all of it after all.

    Raises:
        ModelError: As ``build_model``; or a tensor is missing or has another shape, or a file is cut short.
    """
    register_attention()
    folder, dtype = find_model_folder(model), DTYPES[precision]
    base = build_empty(read_config(folder), folder, dtype)
    partition = share_out(base)
    base.set_attn_implementation(choose_attention(model.attention, partition.device, dtype))
    files = find_weights(folder)
    reason = find_obstacle(base, files, four_bit=adapter.base_bits == FOUR_BITS)
    if reason is not None or files is None:
        whole = build_model(
            model,
            adapter,
            precision=precision,
            device=partition.device,
            seed=seed,
            activation_checkpointing=activation_checkpointing,
        )
        return whole, reason
    check_match(base, files)
    if adapter.base_bits == FOUR_BITS:
        make_four_bit(base, dtype)
    prepare_forward(base, activation_checkpointing)
    rows = resize_embeddings(base, count_wanted_rows(model))
    _fill(base, files, partition, rows)
    with partition.gathering():
        built = train_parts(base, adapter, dtype=dtype, seed=seed, grown=rows > 0)
    return built, None


def _fill(base: PreTrainedModel, files: WeightFiles, partition: Partition, rows: int) -> None:
    """Give every parameter its values, one at a time.

    Args:
        base: The empty model.
        files: Its weights.
        partition: How they are shared out.
        rows: How many rows the embeddings had before they grew; 0 where they did not.
    """
    grown = {id(p) for module in _embeddings(base) for p in module.parameters()} if rows else set()
    for names, places in _find_owners(base):
        module, attribute = places[0]
        empty = getattr(module, attribute)
        stored = files.read(next(name for name in names if name in files.tensors))
        if id(empty) in grown:
            stored = append_mean_rows(stored.to(empty.dtype), len(empty))
        fill = quantise if is_four_bit(empty) else _copy
        filled = fill(stored, empty, partition)
        partition.cut(filled)
        for module, attribute in places:
            setattr(module, attribute, filled)
    for name, buffer in base.named_buffers():
        if name in files.tensors:
            buffer.copy_(files.read(name))
    for module in base.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(partition.device))
    files.close()


def _copy(stored: Tensor, empty: nn.Parameter, partition: Partition) -> nn.Parameter:
    """Make a parameter in which this rank's elements alone are written: the others take no memory."""
    filled = torch.empty(empty.shape, dtype=empty.dtype, device=partition.device)
    flat, values = filled.view(-1), stored.reshape(-1)
    for start, stop in partition.stretches(flat.numel()):
        flat[start:stop] = values[start:stop]
    return nn.Parameter(filled, requires_grad=empty.requires_grad)


def _embeddings(base: PreTrainedModel) -> tuple[nn.Module, nn.Module]:
    return base.get_input_embeddings(), base.get_output_embeddings()


def _find_owners(base: PreTrainedModel) -> list[tuple[list[str], list[tuple[nn.Module, str]]]]:
    """List each parameter once: all its names, and the modules and attributes that hold it."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in base.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((module, attribute))
    return [(names, places[number]) for number, names in names_by_parameter(base).items()]
