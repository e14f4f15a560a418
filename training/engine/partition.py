"""ZeRO-3's partition of parameters before there is an engine: each is cut as soon as it has its values."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from deepspeed import comm as distributed
from deepspeed.runtime.zero import Init
from deepspeed.utils import groups
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from training.config.schema import RunConfig
from training.deepspeed_config import build_deepspeed_config
from training.engine.deepspeed_engine import Place
from training.engine.needs import check_room
from training.model.kind import AnyModel
from training.model.load import build_model
from training.model.partitioned import build_partitioned_model
from training.model.shape import measure_shape
from training.model.stage import near_model
from training.rules.strategies import effective_stage


class ZeroPartition:
    """Cuts parameters exactly as DeepSpeed's engine would when it is handed the whole model.

    That engine takes parameters that are cut already as they are. Upstream's own way of reading a model into
    them lets the lead rank read all of it and send each parameter to the others; here each reads its part.
    """

    def __init__(self, config: RunConfig, place: Place, empty: PreTrainedModel) -> None:
        """Ask DeepSpeed for its cut; ``empty`` is the model without values. Collective."""
        self.device = place.device
        # DeepSpeed counts ranks by its own module, which finds the group that was joined already.
        distributed.init_distributed(dist_init_required=False)
        shape = measure_shape(empty)
        check_room(config, shape, place.plan.world_size)
        self._config: dict[str, Any] = build_deepspeed_config(config, place.plan, shape)
        # Version 0.19.8: it never enters the context, which would replace torch's functions. The group of
        # secondary ranks exists already where another engine of this process has founded it; that engine's
        # may have been the only one to want it.
        wanted = config.strategy.secondary_ranks > 1
        self._cutter = Init(
            config_dict_or_path=self._config,
            zero_param_parallel_group=groups._get_zero_param_intra_parallel_group() if wanted else None,
        )

    def stretches(self, elements: int) -> Sequence[tuple[int, int]]:
        """Say which elements this rank keeps: its part among all ranks, and among its secondary ranks."""
        cutter = self._cutter
        shares = [(cutter.rank, cutter.dp_world_size)]
        if cutter.zero_param_process_group is not None:
            shares.append((cutter.rank_in_group, cutter.num_ranks_in_param_group))
        aligned = math.ceil(elements / cutter.dp_world_size) * cutter.dp_world_size
        kept = []
        for rank, ranks in shares:
            start = min(aligned // ranks * rank, elements)
            kept.append((start, min(start + aligned // ranks, elements)))
        return kept

    def cut(self, parameter: Any) -> None:
        """Keep this rank's part where the strategy wants it: on the device, in the host's memory, on NVMe."""
        self._cutter._convert_to_deepspeed_param(parameter)
        parameter.partition()

    def greatest(self, values: Tensor) -> Tensor:
        """Give the greatest of each value that a rank has."""
        distributed.all_reduce(values, op=distributed.ReduceOp.MAX)
        return values

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Let transformers say that ZeRO-3 is on: peft then gathers weights whose length DoRA begins with."""
        # transformers knows it by a weak reference.
        alive = HfDeepSpeedConfig(self._config)
        try:
            yield
        finally:
            unset_hf_deepspeed_config()
            del alive


def build_share(config: RunConfig, place: Place) -> tuple[AnyModel, str | None]:
    """Build the run's model: under ZeRO-3 this rank's share of it, else the whole. Collective.

    Returns:
        The model; and None, or why every rank had to build the whole under ZeRO-3 as well.

    Raises:
        ModelError: As ``build_model`` and ``build_partitioned_model``.
    """
    how: dict[str, Any] = {
        "precision": config.precision,
        "seed": config.seed,
        "activation_checkpointing": config.strategy.activation_checkpointing,
    }
    share_out = partial(ZeroPartition, config, place)
    with near_model(config.model, config.loader) as model:
        if effective_stage(config.strategy.zero_stage, config.precision) < 3:  # noqa: PLR2004
            return build_model(model, config.adapter, device=place.device, **how), None
        return build_partitioned_model(model, config.adapter, share_out=share_out, **how)
