"""Which matrices of a model the ranks of a team share, and how: by the model's own plan in transformers.

A linear layer is cut by its outputs (``colwise``: some heads, some inner features), or by its inputs
(``rowwise``: the next layer, which takes these), arXiv:1909.08053. All else is whole on every rank:
embeddings, norms and the output layer, which the fused loss reads as a whole.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from training.errors import ModelError
from training.fragments.runs import Runs, Stretch
from training.model.arithmetic import check_tensor_cut

_DIMENSIONS = {"colwise": 0, "rowwise": 1}
_SUMMED = "replicated_with_grad_allreduce"
"""A norm of each head: whole on every rank, where it sees the rank's own heads alone."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A parameter of which each rank of a team has an equal part."""

    shape: tuple[int, ...]
    """Of the whole."""

    dimension: int

    def shape_of_part(self, size: int) -> tuple[int, ...]:
        """Give the shape of what each of ``size`` ranks has."""
        return tuple(n // size if at == self.dimension else n for at, n in enumerate(self.shape))

    def find(self, start: int, stop: int, index: int, size: int) -> Stretch:
        """Say which elements of the whole are [start, stop) of the part of rank ``index`` among ``size``."""
        if self.dimension == 0:
            part = self.shape[0] // size
            for extent in self.shape[1:]:
                part *= extent
            return Stretch(index * part + start, index * part + stop)
        stride = self.shape[-1]
        return Stretch(start, stop, Runs(index * (stride // size), stride // size, stride))


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """What of a model is cut."""

    cuts: Mapping[str, Cut]
    """By the parameter's name in the model."""

    styles: Mapping[str, str]
    """``colwise`` or ``rowwise``, of the modules whose whole name a regular expression matches."""

    summed: tuple[str, ...]
    """Parameters that are whole on every rank and see the rank's own heads: gradients are to be summed."""


def plan_cuts(model: PreTrainedModel, size: int) -> TensorPlan:
    """Read the model's own plan for its layers, and look up what it cuts.

    Raises:
        ModelError: It has no plan, one that cannot be carried out, or sizes that ``size`` does not divide.
    """
    name = type(model).__name__
    decoder = model.get_decoder()
    whole: dict[str, str] = getattr(decoder.config, "base_model_tp_plan", None) or {}
    plan = {pattern: style for pattern, style in whole.items() if pattern.startswith("layers.")}
    instead = "use strategy.tensor_parallel_size=1 with strategy=zero3"
    if not plan:
        raise ModelError(f"{name} has no plan in transformers for cutting its layers over ranks; {instead}")
    check_tensor_cut(decoder.config.to_dict(), size)
    prefix = next(path for path, module in model.named_modules() if module is decoder)
    styles, summed = {}, []
    cuts: dict[str, Cut] = {}
    for pattern, style in plan.items():
        if style not in {*_DIMENSIONS, _SUMMED}:
            raise ModelError(f"{name} cannot be cut over ranks: its {pattern} is {style}; {instead}")
        regex = re.escape(f"{prefix}.{pattern}" if prefix else pattern).replace(r"\*", r"\d+")
        found = {path: module for path, module in model.named_modules() if re.fullmatch(regex, path)}
        if style == _SUMMED:
            summed += [
                f"{path}.{each}" for path, module in found.items() for each, _ in module.named_parameters()
            ]
            continue
        styles[regex] = style
        for path, module in found.items():
            cuts |= _cut_layer(path, module, _DIMENSIONS[style], size)
    for each in _find_others(model, cuts, summed):
        raise ModelError(f"{name} cannot be cut over ranks: its plan does not name {each}; {instead}")
    return TensorPlan(cuts, styles, tuple(summed))


def _find_others(model: PreTrainedModel, cuts: Mapping[str, Cut], summed: Sequence[str]) -> list[str]:
    """Name what lies between cut layers, sees a rank's own part, and would get the gradient of that alone."""
    blocks = {name.rsplit(".", 2)[0] for name in cuts}
    return [
        name
        for name, _ in model.named_parameters()
        if any(name.startswith(f"{block}.") for block in blocks)
        and name not in cuts
        and name not in summed
        # A bias behind a layer cut by its inputs is added once all ranks' parts are summed.
        and name.removesuffix(".bias") + ".weight" not in cuts
    ]


def _cut_layer(path: str, module: Any, dimension: int, size: int) -> dict[str, Cut]:
    if not isinstance(module, nn.Linear) or module.weight.shape[dimension] % size:
        raise ModelError(
            f"{path} is no linear layer that strategy.tensor_parallel_size={size} divides; use 1 with "
            "strategy=zero3"
        )
    cuts = {f"{path}.weight": Cut(tuple(module.weight.shape), dimension)}
    if module.bias is not None and dimension == 0:
        cuts[f"{path}.bias"] = Cut(tuple(module.bias.shape), 0)
    return cuts
