"""DeepSpeed's AutoTP (version 0.19): the ranks of a team share a model's matrices and every pass."""

import re
from typing import Any

import numpy as np
from deepspeed.utils import groups
from torch import Tensor

from training.engine.slots import Held
from training.errors import ModelError
from training.fragments.runs import Stretch
from training.model.kind import AnyModel, base_of
from training.model.packed import PackedLanguageModel
from training.model.self_test import LIMITS, find_difference, lay_row
from training.model.tensor_parallel import TensorPlan, plan_cuts

_TOKENS, _STEP = 24, 7919
"""Tokens of the row that is asked before and after, and from one to the next in the vocabulary."""

_SPECS: dict[str, dict[str, Any]] = {
    "colwise": {"partition_type": "column"},
    "rowwise": {"partition_type": "row"},
}
_SUMMED = {"partition_type": "skip", "grad_allreduce": True}


class TensorTeam:
    """This rank's part of each matrix. A team of one has the whole of all of them."""

    def __init__(self, model: AnyModel, rank: int, size: int) -> None:
        """Plan the cut of a model that is whole.

        Raises:
            ModelError: It cannot be cut.
        """
        self.index, self.size = rank % size, size
        self._plan = plan_cuts(base_of(model), size) if size > 1 else TensorPlan({}, {}, ())
        self._trained = {name for name, p in model.named_parameters() if p.requires_grad}
        self._shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in model.named_parameters()}

    def complete(self, config: dict[str, Any], prefix: str) -> dict[str, Any]:
        """Write the plan into DeepSpeed's configuration, for a model whose names begin with ``prefix``."""
        if self.size == 1:
            return config
        specs = [
            {"patterns": [f"{re.escape(prefix)}{pattern}\\.weight$"], **_SPECS[style]}
            for pattern, style in self._plan.styles.items()
        ]
        # What is frozen has no gradient that DeepSpeed could be told of.
        summed = [re.escape(f"{prefix}{name}") + "$" for name in self._plan.summed if name in self._trained]
        specs.append({"patterns": summed, **_SUMMED})
        partition = {"use_default_specs": False, "layer_specs": specs}
        return config | {"tensor_parallel": config["tensor_parallel"] | {"partition_config": partition}}

    def ask(self, packed: PackedLanguageModel) -> Tensor | None:
        """Give the logits of a few tokens; None in a team of one, where nothing will change them."""
        return _say(packed) if self.size > 1 else None

    def check(self, engine: Any, packed: PackedLanguageModel, before: Tensor | None) -> None:
        """Make sure that DeepSpeed has cut what was planned, and that the model says the same. Collective.

        Args:
            engine: DeepSpeed's.
            packed: What it was handed.
            before: What ``ask`` gave when the model was whole.

        Raises:
            ModelError: It has not.
        """
        if before is None:
            return
        # It would compare the first batch of the ranks, by an operator that our batches do not have.
        engine.first_dataloader_check.remove()
        instead = "use strategy.tensor_parallel_size=1, and please report this"
        for name, parameter in packed.hf_model.named_parameters():
            cut = self._plan.cuts.get(name)
            wanted = cut.shape_of_part(self.size) if cut else self._shapes[name]
            if tuple(parameter.shape) != wanted:
                raise ModelError(
                    f"{name} has shape {list(parameter.shape)} after DeepSpeed's cut, planned was "
                    f"{list(wanted)}; {instead}"
                )
        difference = find_difference(_say(packed), before)
        if not difference <= LIMITS[before.dtype]:
            raise ModelError(
                f"strategy.tensor_parallel_size={self.size} changes what the model says by {difference:.2%} "
                f"of its logits' size (rounding explains {LIMITS[before.dtype]:.2%}); {instead}"
            )

    def whole_shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of a whole parameter."""
        return self._shapes[name]

    def find(self, held: Held, first: int, last: int) -> Stretch:
        """Say which elements of the whole parameter are the [first, last) of what a slot holds of it."""
        cut = self._plan.cuts.get(held.name)
        start, stop = held.start + first, held.start + last
        return cut.find(start, stop, self.index, self.size) if cut else Stretch(start, stop)

    def share_of(self, held: Held) -> tuple[int, int]:
        """Say what of it this rank writes: all of what it alone has, an equal part of what all have."""
        if held.name in self._plan.cuts:
            return 0, held.length
        return held.length * self.index // self.size, held.length * (self.index + 1) // self.size

    def leave(self) -> None:
        """Let DeepSpeed forget the teams, which it would take for those of this process' next engine."""
        if self.size > 1:
            groups.mpu = None
            groups._TENSOR_MODEL_PARALLEL_GROUP = groups._MODEL_PARALLEL_GROUP = None
            groups._DATA_PARALLEL_GROUP = None


def _say(packed: PackedLanguageModel) -> Tensor:
    embeddings: Any = base_of(packed.hf_model).get_input_embeddings()
    row = lay_row([np.arange(_TOKENS) * _STEP % embeddings.num_embeddings])
    packed.eval()
    logits = packed.logits(row.to(embeddings.weight.device), alone=True)
    packed.train()
    return logits
